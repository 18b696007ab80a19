"""A project in a temporary directory with quick stdlib-only steps, and the command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

ROWS = '''\
# /// script
# [tool.runspec]
# name = "steps/demo/rows"
# [tool.runspec.run]
# launch = "python"
# [tool.runspec.resources]
# gpus_per_node = 0
# ///
"""Writes rows one by one, continuing where a killed run stopped."""
import json, os, sys, time
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]
from _runtime import payload


def main(cfg):
    out = Path(cfg["output_dir"])
    state = out / "state.txt"
    done = int(state.read_text()) if state.exists() else 0
    print("starting at", done, "secret is", "set" if os.environ.get("PLANTED_TOKEN") else "unset", flush=True)
    for i in range(done, cfg["n"]):
        with open(out / "rows.jsonl", "a") as f:
            f.write(json.dumps({"messages": [{"role": "user", "content": str(i)}]}) + "\\n")
        state.write_text(str(i + 1))
        payload.progress(i + 1, cfg["n"], loss=1 / (i + 1), lr=0.1)
        time.sleep(cfg["sleep"])
    if cfg["fail"]:
        raise payload.PayloadError("told", "row 7 is wrong", "Mend row 7.")
    if cfg["crash"] is not None:
        sys.exit(cfg["crash"])
    if cfg["garbage"]:
        (out / "rows.jsonl").write_text("not json\\n")
    payload.result(first=done)


payload.run(main, Path(__file__).parent / "config" / "default.yaml")
'''

ROWS_TOML = """\
[step]
id = "demo/rows"
name = "Rows"
category = "demo"
description = "Writes rows."
env = "engine"
resumable = true
[[produces]]
type = "raw_jsonl"
bind = "output_dir"
[[parameters]]
name = "sleep"
description = "Seconds per row."
[[parameters]]
name = "mode"
choices = ["a", "b", "null"]
"""

ROWS_YAML = """\
n: 5
sleep: 0.0
output_dir: ./out
fail: false
crash: null
garbage: false
section:
  inner: 1
mode: a
"""

COUNT = '''\
# /// script
# [tool.runspec]
# name = "steps/demo/count"
# [tool.runspec.run]
# launch = "python"
# [tool.runspec.resources]
# gpus_per_node = 0
# ///
"""Copies chat rows."""
import shutil, sys
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]
from _runtime import payload


def main(cfg):
    for file in sorted(Path(cfg["data"]).rglob("*.jsonl")) if Path(cfg["data"]).is_dir() else [Path(cfg["data"])]:
        shutil.copy(file, Path(cfg["output_dir"]) / file.name)


payload.run(main, Path(__file__).parent / "config" / "default.yaml")
'''

COUNT_TOML = """\
[step]
id = "demo/count"
name = "Count"
category = "demo"
description = "Copies chat rows."
[[consumes]]
type = "training_jsonl"
bind = "data"
from = "demo/rows"
[[produces]]
type = "training_jsonl"
bind = "output_dir"
"""


def add_step(root: Path, step_id: str, toml: str, script: str, **configs: str) -> Path:
    """Write a step folder below ``root/steps``."""
    folder = root / "steps" / step_id
    (folder / "config").mkdir(parents=True)
    (folder / "step.toml").write_text(toml)
    (folder / "step.py").write_text(script)
    for name, text in configs.items():
        (folder / "config" / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project with the steps demo/rows and demo/count."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "workspace.yaml").write_text((REPO / "workspace.yaml").read_text())
    add_step(root, "demo/rows", ROWS_TOML, ROWS, default=ROWS_YAML)
    add_step(root, "demo/count", COUNT_TOML, COUNT, default="data: /path/to/train.jsonl\noutput_dir: ./out\n")
    return root


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a command: a home of its own, none of the caller's settings of ours."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NEMOTRON_", "DAGSTER_", "XDG_"))}
    return {**kept, "HOME": str(home), "COLUMNS": "120"}


@pytest.fixture
def nemotron(environ: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``nemotron ARGS`` in ``cwd`` as a process."""

    def run(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nemotron_dagster.cli.main", *args],
            cwd=cwd,
            env={**environ, **env},
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run
