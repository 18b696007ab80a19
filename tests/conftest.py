"""A project in a temporary directory with quick stdlib-only steps, and the command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import COUNT, COUNT_TOML, REPO, ROWS, ROWS_TOML, ROWS_YAML, add_step
from hypothesis import settings

# The same examples in each run: a change is judged by what it changes. --hypothesis-profile=default finds new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


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
