"""Which Hugging Face model describes a Megatron checkpoint that has moved since it was made."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from interpreters import STEPS, payload_python

BASE = """
import sys
from pathlib import Path
from _runtime.conversion_inputs import base_model
from _runtime.payload import PayloadError
try:
    print(base_model(Path(sys.argv[1]), None))
except PayloadError as e:
    print(e.name)
"""


def described_by(iteration: Path) -> str:
    done = subprocess.run(
        [payload_python("train"), "-c", BASE, str(iteration)],
        env={**os.environ, "PYTHONPATH": str(STEPS)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip().splitlines()[-1]


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("beside", [True, False])
def test_a_record_of_the_staging_directory_gives_way_to_the_model_beside_the_checkpoint(
    tmp_path: Path, beside: bool
) -> None:
    iteration = tmp_path / "published" / "megatron" / "iter_0000000"
    iteration.mkdir(parents=True)
    (iteration / "run_config.yaml").write_text(f"model:\n  hf_model_id: {tmp_path}/.staging/job/output/hf\n")
    near = tmp_path / "published" / "hf"
    if beside:
        model(near)
    assert described_by(iteration) == (str(near) if beside else "missing_hf_config_or_tokenizer")


def test_a_recorded_model_that_is_there_is_taken_whatever_lies_beside_the_checkpoint(tmp_path: Path) -> None:
    iteration, recorded = tmp_path / "made" / "megatron" / "iter_0000000", model(tmp_path / "base")
    model(tmp_path / "made" / "hf")
    iteration.mkdir(parents=True)
    (iteration / "run_config.yaml").write_text(f"model:\n  hf_model_id: {recorded}\n")
    assert described_by(iteration) == str(recorded)
