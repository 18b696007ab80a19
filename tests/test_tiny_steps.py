"""The whole steps as a user runs them: ``-c tiny``, one after the other, from a directory of no project."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from interpreters import payload_python


def test_tiny_steps_run_from_anywhere_and_feed_each_other(
    nemotron: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for family in ("data", "train", "eval"):
        envs = Path(payload_python(family)).parents[2]
    prepared = ("data_prep/pretrain_prep", "data_prep/sft_packing", "data_prep/rl_prep")
    trained = ("pretrain/automodel", "peft/automodel", "sft/automodel")
    for step in (*prepared, "curate/nemo_curator", *trained, "eval/model_eval"):
        done = nemotron("steps", "run", step, "-c", "tiny", cwd=elsewhere, NEMOTRON_ENVS=str(envs))
        assert done.returncode == 0, f"{step}:\n{done.stdout[-2000:]}\n{done.stderr}"
    assert not list(elsewhere.iterdir())
    root = tmp_path / "home/.nemotron/artifacts"
    pointer = json.loads((root / "eval/model_eval/latest.json").read_text())
    manifest = json.loads((root / "eval/model_eval" / pointer["uri"] / "artifact.json").read_text())
    assert [i["asset"] for i in manifest["inputs"]] == [["sft", "automodel"]]
    assert {s["task"] for s in manifest["facts"]["scores"]} == {"roman_numerals", "roman_numerals_choice"}
