"""kill -9 of run workers and of the daemon at random instants, with Dagster's own retries: as test_kills.py has it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import processes
import pytest
from processes import wait_until
from submissions import instance
from test_kills import check, ticks
from ticks import Ticks, tag_of

__all__ = ["ticks"]  # the fixture

_RUNS, _KILLS = 6, 15
_QUIET = 20.0  # seconds without a worker, after which none will come
_SETTINGS = """\
telemetry: {enabled: false}
nux: {enabled: false}
run_retries: {enabled: true, max_retries: 10}
run_monitoring: {enabled: true, poll_interval_seconds: 2, start_timeout_seconds: 120}
concurrency: {runs: {max_concurrent_runs: 3}}
"""
_LAUNCH = """mutation($p: ExecutionParams!) {launchPipelineExecution(executionParams: $p) {
    __typename ... on PythonError {message} ... on RunConfigValidationInvalid {errors {message}}}}"""
_OFFLINE = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Daemon:
    """The daemon and the workers that it starts; a killed one is replaced."""

    def __init__(self, ticks: Ticks) -> None:
        self.ticks = ticks
        self.started: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        self.started.append(_dagster(self.ticks, "daemon", "run"))

    def kill(self) -> None:
        self.started[-1].kill()
        self.started[-1].wait()

    def workers(self) -> list[int]:
        """Whatever runs a run; not the code server, which is no part of one."""
        found = [p for d in self.started for p in processes.of_cluster(self.ticks.cluster.root) if _session(p) == d.pid]
        return [p for p in found if b"multiprocessing" in _line(p) and b"resource_tracker" not in _line(p)]

    def stop(self) -> None:
        for daemon in self.started:
            processes.end([p for p in processes.of_cluster(self.ticks.cluster.root) if _session(p) == daemon.pid], 5)
            daemon.wait()


def _dagster(ticks: Ticks, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    argv = [str(Path(sys.executable).with_name(f"dagster-{program}")), *arguments, "-m", "nemotron_dagster.definitions"]
    env = {**ticks.env, "DAGSTER_HOME": str(ticks.root / ".nemotron/dagster"), "NEMOTRON_PROJECT": str(ticks.root)}
    with (ticks.root.parent / f"{program}.log").open("ab") as log:
        return subprocess.Popen(
            argv, cwd=ticks.root, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def web(ticks: Ticks) -> Iterator[str]:
    """The address of a webserver, which is not killed."""
    home = ticks.root / ".nemotron/dagster"
    home.mkdir(parents=True)
    (home / "dagster.yaml").write_text(_SETTINGS)
    with dg.DagsterInstance.from_config(str(home)):
        pass  # makes its tables
    port = _port()
    process = _dagster(ticks, "webserver", "-h", "127.0.0.1", "-p", str(port))

    def answers() -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, f"{ticks.root.parent}/webserver.log: it answers", 120)
        yield f"http://127.0.0.1:{port}/graphql"
    finally:
        processes.end([p for p in processes.of_cluster(ticks.cluster.root) if _session(p) == process.pid], 5)
        process.wait()


def _launch(url: str, tag: str) -> None:
    selector: dict[str, Any] = {
        "repositoryLocationName": "nemotron_dagster.definitions",
        "repositoryName": "__repository__",
    }
    selector |= {"pipelineName": "__ASSET_JOB", "assetSelection": [{"path": ["demo", "tick"]}]}
    op = {"config": {"profile": "c", "overrides": {"tag": tag, "sleep": 1.0}}}
    params = {"mode": "default", "selector": selector, "runConfigData": json.dumps({"ops": {"demo__tick": op}})}
    body = json.dumps({"query": _LAUNCH, "variables": {"p": params}}).encode()
    with _OFFLINE.open(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=60) as answer:
        told = json.load(answer)
    assert told.get("data", {}).get("launchPipelineExecution", {}).get("__typename") == "LaunchRunSuccess", told


def _open(ticks: Ticks) -> list[str]:
    """The states of the runs that have not ended; Dagster may still retry one that has."""
    with instance(ticks.root) as found:
        return sorted(r.status.value for r in found.get_runs() if not r.is_finished)


def _idle(ticks: Ticks, daemon: Daemon) -> bool:
    """Whether nobody works on a run, and none waits to begin.

    Dagster's code server ends the run of a worker that has died; where SQLite was busy in that moment it may not, and
    such a run says STARTED for ever. Its job is followed all the same, which is what is tested here.
    """
    return not set(_open(ticks)) - {"STARTED", "CANCELING"} and not daemon.workers()


def _settle(ticks: Ticks, daemon: Daemon) -> None:
    """Wait until every run has ended, or nobody has worked on one for a while."""
    busy = time.monotonic()

    def settled() -> bool:
        nonlocal busy
        if not _idle(ticks, daemon):
            busy = time.monotonic()
        return not _open(ticks) or time.monotonic() - busy > _QUIET

    try:
        wait_until(settled, "every run has ended", 900)
    except AssertionError as e:
        raise AssertionError(f"{e}: {_open(ticks)}, workers {daemon.workers()}") from e


def test_kill_9_of_run_workers_and_of_the_daemon_at_random_instants(ticks: Ticks, web: str) -> None:
    instant, killed = random.Random(7), 0
    for n in range(_RUNS):
        _launch(web, f"run{n}")
    daemon = Daemon(ticks)
    try:
        for n in range(_KILLS):
            if n % 5 == 4:
                time.sleep(instant.uniform(0, 3))
                daemon.kill()
                daemon.start()
                killed += 1
                continue
            wait_until(lambda: daemon.workers() or _idle(ticks, daemon), "there is a worker", 300)
            time.sleep(instant.uniform(0, 6))
            if workers := daemon.workers():
                os.kill(instant.choice(workers), signal.SIGKILL)
                killed += 1
        _settle(ticks, daemon)
    finally:
        daemon.stop()
    check(ticks)
    published = [tag_of(r) for r in ticks.book.all() if r.phase == "published"]
    assert published and set(published) == set(ticks.ran()), "what began is published"
    assert killed > _KILLS // 2, "there was hardly anybody to kill"
