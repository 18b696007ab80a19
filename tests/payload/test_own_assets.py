"""examples/own_assets for real: rows made by a Python asset train a model, in one command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from helpers import REPO
from interpreters import payload_python


def test_one_command_makes_the_rows_and_trains_on_them(tmp_path: Path) -> None:
    payload_python("train")
    folder = tmp_path / "own_assets"
    ignored = shutil.ignore_patterns(".nemotron", "__pycache__")
    shutil.copytree(REPO / "examples/own_assets", folder, ignore=ignored)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("NEMOTRON_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-m", "nemotron_dagster.cli.main", "pipelines", "run", "own_assets"],
        cwd=folder, capture_output=True, text=True, check=False, env={**environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr

    def manifest(asset: str) -> dict:
        root = folder / ".nemotron/artifacts" / asset
        return json.loads((root / json.loads((root / "latest.json").read_text())["uri"] / "artifact.json").read_text())

    taught, training = manifest("own_assets/taught"), manifest("calendar/training")
    (made_of,) = [i for i in taught["inputs"] if i["port"] == "training_jsonl"]
    assert made_of["asset"] == ["calendar", "training"] and made_of["content"] == training["content"]
    assert training["facts"]["rows"] == 336 and taught["facts"]["parameters"] > 100_000
