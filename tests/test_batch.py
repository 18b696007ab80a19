"""``steps run -b``: returns at once; the job goes on, and the attached run adopts it."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def batch(project: Path) -> Path:
    (project / "env.toml").write_text('[lap]\nexecutor = "local"\n')
    return project


def jobs(project: Path) -> list[Path]:
    return sorted((project / ".nemotron/jobs").iterdir())


def artifacts(project: Path) -> list[Path]:
    return sorted((project / ".nemotron/artifacts/demo/rows").glob("*/artifact.json"))


def finished(job: Path) -> None:
    deadline = time.monotonic() + 60
    while not (job / "exit.json").exists():
        assert time.monotonic() < deadline, f"{job} did not end"
        time.sleep(0.05)


def test_b_returns_while_the_job_runs_and_the_attached_run_adopts_and_publishes_it(
    nemotron: Run, batch: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release"  # the job ends when it is there
    args = ("steps", "run", "rows", "n=60", f"until={release}")
    done = nemotron(*args, "-b", "lap", cwd=batch)
    assert done.returncode == 0, done.stderr
    [job] = jobs(batch)
    assert not (job / "exit.json").exists() and not artifacts(batch)
    assert job.name in done.stdout and str(job) in done.stdout
    for command in (f"logs -f {job.name}", f"attach {job.name}", f"sync {job.name}"):
        assert f"nemotron runs {command}\n" in done.stdout

    again = nemotron(*args, "-b", "lap", "--json", cwd=batch)
    told = json.loads(again.stdout)
    assert told["adopted"] and told["job"]["key"] == job.name and told["state"] == "RUNNING"

    assert told["key"] == job.name and told["attach"] == ["nemotron", "runs", "attach", job.name]
    threading.Timer(2, release.touch).start()
    attached = nemotron("steps", "run", "rows", "n=60", f"until={release}", "-r", "lap", cwd=batch)
    assert attached.returncode == 0 and f"adopting job {job.name}" in attached.stdout, attached.stderr
    assert jobs(batch) == [job] and len(artifacts(batch)) == 1
    assert json.loads(artifacts(batch)[0].read_text())["facts"]["rows"] == 60


def test_a_job_that_ended_meanwhile_is_published_by_the_attached_run(nemotron: Run, batch: Path) -> None:
    assert nemotron("steps", "run", "rows", "-b", "lap", cwd=batch).returncode == 0
    [job] = jobs(batch)
    finished(job)
    told = json.loads(nemotron("steps", "run", "rows", "-b", "lap", "--json", cwd=batch).stdout)
    assert told["adopted"] and told["state"] == "SUCCEEDED"
    assert nemotron("steps", "run", "rows", "-r", "lap", cwd=batch).returncode == 0
    assert jobs(batch) == [job] and len(artifacts(batch)) == 1


def test_a_step_that_takes_an_upstream_artifact_is_adopted_too(nemotron: Run, batch: Path) -> None:
    assert nemotron("steps", "run", "rows", cwd=batch).returncode == 0
    assert nemotron("steps", "run", "count", "-b", "lap", cwd=batch).returncode == 0
    done = nemotron("steps", "run", "count", "-r", "lap", cwd=batch)
    assert done.returncode == 0 and "adopting job" in done.stdout, done.stdout + done.stderr
    [manifest] = (batch / ".nemotron/artifacts/demo/count").glob("*/artifact.json")
    assert json.loads(manifest.read_text())["inputs"][0]["asset"] == ["demo", "rows"]


def test_nothing_of_a_detached_run_is_executed_by_dagster(nemotron: Run, batch: Path) -> None:
    assert nemotron("steps", "run", "rows", "-b", "lap", cwd=batch).returncode == 0
    assert not (batch / ".nemotron/dagster").exists()
    finished(jobs(batch)[0])


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["rows", "-b", "nosuch"], 4),
        (["rows", "-b", "lap", "nosuch=1"], 3),
        (["rows", "-b", "lap", "run.env.gpus_per_node=512"], 5),
        (["count", "-b", "lap", "data=/no/such.jsonl"], 8),
        (["data_designer", "-b", "lap"], 9),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_submitted(
    nemotron: Run, batch: Path, args: list[str], code: int
) -> None:
    done = nemotron("steps", "run", *args, cwd=batch)
    assert (done.returncode, done.stdout) == (code, "") and done.stderr.startswith("Error: ")
    assert not (batch / ".nemotron/jobs").exists()
