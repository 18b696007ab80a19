"""Steps run on a real Slurm through the command line, from its login node and over SSH."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from places import Place

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environ(environ: dict[str, str], sockets: Path) -> dict[str, str]:
    """Connections that a command leaves behind are ended with the test."""
    return {**environ, "XDG_RUNTIME_DIR": str(sockets)}


@pytest.fixture
def cluster_project(project: Path, place: Place) -> Path:
    """The test project, in a directory with a space in its name, and the profile ``cluster``."""
    root = project.rename(project.with_name("a project"))
    given = {"PLANTED_TOKEN": "${oc.env:PLANTED_TOKEN,''}"}
    profile = {**place.profile, "python": sys.executable, "env_vars": given, "gpus_per_node": 0}
    (root / "env.toml").write_text(tomli_w.dumps({"cluster": profile}))
    return root


def test_a_step_runs_on_the_cluster_and_its_artifact_is_published(
    cluster_project: Path, nemotron: Command, place: Place
) -> None:
    args = ("steps", "run", "demo/rows", "-r", "cluster", "n=3", "sleep=0.2")
    done = nemotron(*args, cwd=cluster_project, PLANTED_TOKEN="planted")
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("starting at 0 secret is set") == 1
    manifests = list((cluster_project / ".nemotron" / "artifacts").rglob("artifact.json"))
    assert len(manifests) == 1
    rows = manifests[0].parent / "rows.jsonl"
    assert len(rows.read_text().splitlines()) == 3
    assert json.loads(manifests[0].read_text())["reported"] == {"first": 0}, "what the payload says of itself arrived"
    listed = nemotron("artifacts", "ls", "--json", cwd=cluster_project)
    assert "demo/rows" in listed.stdout


def test_an_input_on_this_machine_reaches_the_job(cluster_project: Path, nemotron: Command) -> None:
    """Below the project and outside of it, a directory and a file; the output goes where the user wants it."""
    outside = cluster_project.with_name("elsewhere")
    outside.mkdir()
    for folder in (outside, cluster_project):
        (folder / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "1"}]}\n')
    for name, data in {"made here": outside, "and there": "rows.jsonl"}.items():
        args = ("steps", "run", "demo/count", "-r", "cluster", f"data={data}", f"output_dir={name}")
        done = nemotron(*args, cwd=cluster_project)
        assert done.returncode == 0, done.stderr
        assert (cluster_project / name / "rows.jsonl").read_text() == (outside / "rows.jsonl").read_text()


def test_a_failing_job_ends_the_command_with_its_log(cluster_project: Path, nemotron: Command) -> None:
    done = nemotron("steps", "run", "demo/rows", "-r", "cluster", "n=1", "crash=3", cwd=cluster_project)
    assert done.returncode == 1
    assert "the job failed" in done.stderr and "exit code 3" in done.stderr
    assert "starting at 0" in done.stderr
    assert not list((cluster_project / ".nemotron" / "artifacts").rglob("artifact.json"))


def test_what_the_cluster_refuses_ends_the_command_with_its_words(cluster_project: Path, nemotron: Command) -> None:
    done = nemotron("steps", "run", "demo/rows", "-r", "cluster", "run.env.constraint=purple", cwd=cluster_project)
    assert done.returncode == 6
    assert "Invalid feature specification. Change in the profile: constraint" in done.stderr
