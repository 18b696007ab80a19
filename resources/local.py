"""The ``local`` target: jobs are processes of this machine that outlive whoever submitted them.

NeMo-Run's LocalExecutor cannot detach (leaving its context kills the child) and another process cannot cancel its
jobs, so a small supervisor process runs the command here; see nemotron_dagster/jobs/supervisor.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nemotron_dagster.artifacts.manifest import write_json
from nemotron_dagster.errors import PreflightError, TargetError
from nemotron_dagster.jobs import launch, supervisor
from nemotron_dagster.jobs.settings import CommonSettings, Count, Positive
from nemotron_dagster.jobs.target import Chunk, Hardware, JobHandle, Preview, State, Status, Submission

_START_LIMIT = 15.0  # seconds in which a submitted job must have started


class Settings(CommonSettings):
    """Keys of a local profile. What only a cluster has (image, mounts) is accepted and not used."""

    executor: Literal["local"] = "local"
    python: str | None = Field(None, description="Interpreter of the payload, instead of the built environment's.")
    nodes: Positive | None = Field(None, description="More than 1 is refused when the job is submitted.")
    gpus_per_node: Count | None = Field(None, description="GPUs of this machine that the job uses.")
    container_image: str | None = Field(None, description="Not used here: jobs run in the payload's environment.")
    container: str | None = Field(None, description="Not used here: jobs run in the payload's environment.")
    mounts: tuple[str | dict[str, Any], ...] = Field((), description="Not used here: jobs see this machine's files.")
    remote_job_dir: str | None = Field(None, description="Not used here: jobs lie in the project's state.")


def make_target(settings: Settings, state: Path) -> LocalTarget:
    return LocalTarget(state / "jobs")


def gpu_count() -> int:
    """GPUs that a job here can see: CUDA_VISIBLE_DEVICES, else nvidia-smi, else 0."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() and d.strip() != "-1"])
    if not shutil.which("nvidia-smi"):
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def command(job: Submission) -> tuple[str, ...]:
    """The argv of the job: torchrun for several processes, and a shell in front where there are startup commands."""
    argv = launch.torchrun(job)
    if not job.startup:
        return argv
    return ("bash", "-c", launch.startup(job.startup) + "exec " + shlex.join(argv))


class LocalTarget:
    """Jobs in ``<state>/jobs/<key>/``: job.json, config.yaml, log, pid.json, exit.json."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        return

    def preview(self, job: Submission) -> Preview:
        return Preview(
            target="local",
            command=command(job),
            directory=job.cwd,
            workdir=job.workdir or job.cwd,
            nodes=job.nodes,
            gpus_per_node=job.gpus_per_node,
            processes_per_node=job.processes_per_node,
            env=tuple(job.env),
            secrets=tuple(job.secrets),
            files=job.files,
        )

    cluster = ""  # nobody but this machine is asked
    shares_files = True

    def job_directory(self, key: str) -> str:
        return str(self.root / key)

    def hardware(self) -> Hardware:
        return Hardware(gpus_per_node=gpu_count())

    def send(self, inputs: Mapping[Path, str]) -> dict[str, str]:
        return {}

    def submit(self, job: Submission) -> JobHandle:
        directory = self.root / job.key
        if not (directory / "job.json").exists():
            try:
                directory.mkdir(parents=True, exist_ok=True)
                for name, text in job.files.items():
                    (directory / name).write_text(text, encoding="utf-8")
                write_json(
                    directory / "job.json",
                    {
                        "step": job.step,
                        "argv": command(job),
                        "env": dict(job.env),
                        "cwd": job.workdir or job.cwd,
                        "gpus": job.nodes * job.gpus_per_node,
                        "time": time.time(),
                    },
                )
            except OSError as e:
                raise PreflightError(
                    f"{directory}: cannot be written ({e.strerror}). Free space or set NEMOTRON_HOME."
                ) from e
        handle = JobHandle("local", job.key, str(directory))
        if self._status(handle).state is State.PENDING:
            self._start(directory, job.secrets)
        return handle

    def find(self, key: str) -> JobHandle | None:
        directory = self.root / key
        return JobHandle("local", key, str(directory)) if (directory / "job.json").exists() else None

    def statuses(self, handles: Iterable[JobHandle]) -> dict[str, Status]:
        return {h.key: self._status(h) for h in handles}

    def read(self, handle: JobHandle, cursor: Mapping[str, int]) -> Chunk:
        try:
            with open(Path(handle.directory, "log"), "rb") as f:
                f.seek(cursor.get("log", 0))
                data = f.read(1 << 20)
        except FileNotFoundError:
            data = b""
        return Chunk(data, {"log": cursor.get("log", 0) + len(data)})

    def collect(self, handle: JobHandle, output: Path) -> None:
        return

    def release(self, handle: JobHandle) -> None:
        return

    def abandon(self, handle: JobHandle, successor: str) -> bool:
        return False  # none is lost before it began

    def cancel(self, handle: JobHandle) -> None:
        pid = _json(Path(handle.directory, "pid.json"))
        if pid and self._status(handle).state is State.RUNNING:
            try:
                os.kill(pid["supervisor"], signal.SIGTERM)
            except ProcessLookupError:  # the supervisor was killed; its job was not
                os.killpg(pid["child"], signal.SIGKILL)

    def _status(self, handle: JobHandle) -> Status:
        directory = Path(handle.directory)
        alive = _locked(directory / "lock")
        done = _json(directory / "exit.json") or {}
        given, began = _json(directory / "job.json") or {}, _json(directory / "pid.json") or {}
        known = Status(
            State.PENDING,
            submitted=given.get("time"),
            started=began.get("time"),
            ended=done.get("time"),
            gpus=int(given.get("gpus") or 0),
        )
        if done:
            code = int(done["exit_code"])
            if done.get("cancelled"):
                return replace(known, state=State.CANCELLED, exit_code=code)
            if code < 0:
                reason = f"killed by {signal.Signals(-code).name}"
                return replace(known, state=State.FAILED, exit_code=code, reason=reason)
            return replace(known, state=State.SUCCEEDED if code == 0 else State.FAILED, exit_code=code)
        if alive:
            return replace(known, state=State.RUNNING)
        if began:
            return replace(known, state=State.LOST, reason="its supervisor was killed or the machine restarted")
        return known

    def _start(self, directory: Path, secrets: Mapping[str, str]) -> None:
        """Start the supervisor and wait until it holds the lock, or has finished."""
        subprocess.Popen(
            [sys.executable, "-I", supervisor.__file__, str(directory)],
            cwd="/",
            env={**os.environ, **secrets},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_LIMIT
        while time.monotonic() < deadline:
            if (directory / "pid.json").exists() or (directory / "exit.json").exists():
                return
            time.sleep(0.02)
        raise TargetError(f"{directory}: the job did not start within {_START_LIMIT:.0f} s. See its log; run again.")


def _locked(file: Path) -> bool:
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _json(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return None
