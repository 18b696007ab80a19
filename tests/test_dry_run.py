"""A dry run, and a run that would be refused, leave no trace: no file, no connection, no secret."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLANTED = "planted-s3cret"


def snapshot(*roots: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for root in roots:
        for path in [root, *root.rglob("*")]:
            status = path.lstat()
            found[str(path)] = (
                status.st_mode,
                status.st_mtime_ns,
                0 if stat.S_ISDIR(status.st_mode) else status.st_size,
            )
    return found


OFFLINE = """
import socket, sys
def refuse(*a, **k): raise AssertionError("the dry run opened a connection")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
sys.dont_write_bytecode = True
from nemotron_dagster.cli.main import main
main(sys.argv[1:])
"""
ENV_TOML = """
[wandb]
project = "w"
[s]
executor = "slurm"
account = "a"
partition = "p"
host = "login"
remote_job_dir = "/jobs"
container_image = "i"
env_vars = {HF_TOKEN = "${oc.env:HF_TOKEN}"}
[l]
executor = "lepton"
nemo_run_dir = "/n"
container_image = "i"
"""


@pytest.mark.parametrize("profile", [None, "s", "l"])
def test_a_dry_run_touches_neither_disk_nor_network(
    profile: str | None, project: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    (project / "env.toml").write_text(ENV_TOML)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = snapshot(project, Path(environ["HOME"]), temporary)
    for step in ("demo/rows", "rl/nemo_rl/dpo"):
        done = subprocess.run(
            [sys.executable, "-c", OFFLINE, "steps", "run", step, "-d", *(["-r", profile] if profile else [])],
            cwd=project,
            env={**environ, "HF_TOKEN": PLANTED, "TMPDIR": str(temporary)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "# submission" in done.stdout and PLANTED not in done.stdout
        assert PLANTED not in done.stderr and all(line.startswith("Warning: ") for line in done.stderr.splitlines())
    assert snapshot(project, Path(environ["HOME"]), temporary) == before


@pytest.mark.parametrize("how", ["-r", "-b"])
def test_a_run_that_would_be_refused_leaves_nothing_behind(
    how: str, project: Path, nemotron: Callable[..., subprocess.CompletedProcess[str]], environ: dict[str, str]
) -> None:
    (project / "env.toml").write_text(ENV_TOML)
    before = snapshot(project)
    done = nemotron("steps", "run", "demo/rows", how, "l", cwd=project, HF_TOKEN=PLANTED)
    assert done.returncode == 6
    assert "submitting to lepton is not built yet; nothing was run. `-d` shows" in done.stderr
    assert snapshot(project) == before
