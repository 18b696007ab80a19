"""Slurm targets for tests: here, and behind a login node."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from sshd import Sshd

from nemotron_dagster.jobs.target import JobHandle, Status, Submission, Target, make_target
from nemotron_dagster.project import Project


@dataclass
class Place:
    """A cluster as a profile reaches it; ``profile`` are its keys."""

    cluster: Cluster
    profile: dict[str, Any]
    tunnel: str

    def target(self, **settings: Any) -> Target:
        return make_target(Project(None, Path("/nonexistent")), "p", {**self.profile, **settings})

    def job(self, key: str, script: str, **more: Any) -> Submission:
        """A job that runs a bash script on each node."""
        directory = self.target().job_directory(key)
        files = {"configs/config.yaml": "a: 1\n"}
        return Submission(key, "demo/job", ("bash", "-c", script), cwd=directory, files=files, **more)

    def submit(self, key: str, script: str, settings: Mapping[str, Any] | None = None, **more: Any) -> JobHandle:
        return self.target(**(settings or {})).submit(self.job(key, script, **more))

    def names(self, key: str) -> int:
        """How many jobs of this key the scheduler has ever had."""
        name = f"--name={self.profile['job_name']}.{key}"
        queued = self.cluster.command("squeue", "-h", "--states=all", name, "--format=%A")
        told = self.cluster.command("sacct", "-n", "-P", "-X", name, "--starttime=2000-01-01", "--format=JobIDRaw")
        return len({*queued.split(), *told.split()})  # accounting is told of a job when it may start

    def until(self, handle: JobHandle, true: Callable[[Status], object], seconds: float = 90) -> Status:
        """Its status, once ``true`` of it."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.target().statuses([handle])[handle.key]
            if true(status):
                return status
            assert time.monotonic() < deadline, f"{handle}: still {status}"
            time.sleep(0.3)

    def ended(self, handle: JobHandle, seconds: float = 90) -> Status:
        return self.until(handle, lambda s: s.state.final, seconds)

    def log(self, handle: JobHandle) -> str:
        return read_all(self.target(), handle, {})[0].decode(errors="replace")


def read_all(target: Target, handle: JobHandle, cursor: Mapping[str, int]) -> tuple[bytes, dict[str, int]]:
    """All that is new in the log, and the cursor after it, which has been through JSON."""
    log = b""
    while True:
        chunk = target.read(handle, cursor)
        cursor = json.loads(json.dumps(dict(chunk.cursor)))
        log += chunk.log
        if not chunk.log and not chunk.messages:
            return log, dict(cursor)


def here(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """This machine is the login node."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    return Place(cluster, _profile(folder, tunnel="local"), "local")


def over_ssh(cluster: Cluster, folder: Path, login: Sshd) -> Place:
    """The login node is behind ``login``, and nothing of Slurm is known here."""
    known = {"identity": str(login.identity), "known_hosts": str(login.known_hosts), "port": login.port}
    profile = _profile(folder, tunnel="ssh", host=login.host, user=login.user, strict_host_key_checking="yes", **known)
    return Place(cluster, profile, "ssh")


def _profile(folder: Path, **more: Any) -> dict[str, Any]:
    settings = {"executor": "slurm", "partition": "debug", "time": "00:05:00", "remote_job_dir": str(folder / "jobs")}
    return {**settings, "job_name": f"t{uuid.uuid4().hex[:8]}", **more}  # other tests have jobs there too
