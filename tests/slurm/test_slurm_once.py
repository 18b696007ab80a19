"""One job for one key, whatever dies and when: counted at the scheduler of a real Slurm."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import places
import pytest
from cluster import Cluster
from helpers import REPO
from places import Place
from processes import wait_until
from sshd import Sshd

from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.target import State


@pytest.fixture(params=["local", "ssh"])
def tools(
    request: pytest.FixtureRequest, slurm: Cluster, sockets: Path, tmp_path: Path
) -> Iterator[tuple[Place, Path]]:
    """The cluster, and a directory of programs that come before Slurm's on its login node."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = f"{folder}:{slurm.env['PATH']}"
    if request.param == "local":
        monkeypatch = request.getfixturevalue("monkeypatch")
        place = places.here(slurm, tmp_path, monkeypatch)
        monkeypatch.setenv("PATH", path)
        yield place, folder
        return
    login = Sshd(tmp_path / "sshd", {**slurm.env, "PATH": path})
    login.start()
    yield places.over_ssh(slurm, tmp_path, login), folder
    login.stop()


#: What happens to the submitting shell around ``sbatch``; the real one runs it.
DEATHS = {
    "before sbatch": "kill -9 $PPID; exit 1",
    "before the id is written": '"$real" "$@" >/dev/null; kill -9 $PPID; exit 1',
    "while sbatch goes on alone": 'kill -9 $PPID; sleep 3; "$real" "$@" >/dev/null; exit 1',
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_submitter_that_is_killed_leaves_one_job_that_the_next_finds(tools: tuple[Place, Path], death: str) -> None:
    place, folder = tools
    (folder / "sbatch").write_text(
        f"#!/bin/sh\nreal={shutil.which('sbatch', path=place.cluster.env['PATH'])}\n{DEATHS[death]}\n"
    )
    (folder / "sbatch").chmod(0o755)
    job = place.job("k", "echo once", secrets={"A_TOKEN": "planted"})
    with pytest.raises(TargetError) as e:
        place.target().submit(job)
    assert not getattr(e.value, "refused", False), "nobody knows whether there is a job"
    (folder / "sbatch").unlink()
    handle = place.target().submit(job)
    assert place.ended(handle).state is State.SUCCEEDED
    assert place.log(handle).startswith("once\n")
    assert place.names("k") == 1
    assert place.target().submit(job) == handle and place.target().find("k") == handle


SUBMIT = """
import json, pathlib, sys
from nemotron_dagster.jobs.target import Submission, make_target
from nemotron_dagster.project import Project
profile, key, directory = json.loads(sys.argv[1])
target = make_target(Project(None, pathlib.Path("/nonexistent")), "p", profile)
job = Submission(key, "demo/job", ("bash", "-c", "sleep 1"), cwd=directory, files={"configs/config.yaml": "a: 1"})
target.preview(job)
print("ready", flush=True)
print(target.submit(job).id, flush=True)
"""


def test_kill_9_of_the_submitting_process_at_random_instants_loses_nothing_and_doubles_nothing(place: Place) -> None:
    import json

    seconds = random.Random(4)
    keys = [f"r{i}" for i in range(6)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    for key in keys:
        argument = json.dumps([place.profile, key, place.target().job_directory(key)])
        argv = [sys.executable, "-W", "ignore", "-c", SUBMIT, argument]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True) as process:
            assert process.stdout and process.stdout.readline() == "ready\n"
            time.sleep(seconds.uniform(0, 0.5))
            os.kill(process.pid, signal.SIGKILL)
    with ThreadPoolExecutor(6) as pool:
        handles = list(pool.map(lambda k: place.target().submit(replace(place.job(k, "sleep 1"))), keys))
    assert [place.ended(h).state for h in handles] == [State.SUCCEEDED] * len(keys)
    assert [place.names(k) for k in keys] == [1] * len(keys)


def test_many_submitters_at_once_make_one_job(place: Place) -> None:
    job = place.job("k", "echo once")
    place.target().preview(job)
    with ThreadPoolExecutor(8) as pool:
        handles = list(pool.map(lambda _: place.target().submit(job), range(8)))
    assert len(set(handles)) == 1 and place.names("k") == 1
    place.ended(handles[0])


def test_a_second_job_of_the_same_key_ends_without_running_anything(local_place: Place) -> None:
    """What no lock can exclude, the job's claim does; who asks for the second is told of the first."""
    first = local_place.submit("k", "echo once; sleep 5")
    wait_until(lambda: os.path.islink(f"{first.directory}/claim"), "the job has claimed its key")
    second = local_place.cluster.command("sbatch", "--parsable", f"{first.directory}_sbatch.sh").strip()
    local_place.cluster.wait(int(second), "FAILED")
    status = local_place.ended(replace(first, id=second))
    assert (status.state, status.exit_code) == (State.SUCCEEDED, 0)
    log = local_place.log(first)
    assert log.count("once\n") == 1
    assert f"job {first.id} does this very work already; job {second} ends without running anything" in log


def _own(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[Place]:
    cluster = Cluster(folder / "slurm", **settings)
    cluster.start()
    try:
        yield places.here(cluster, folder, monkeypatch)
    finally:
        cluster.stop()


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A cluster of the test's own, which it may break."""
    yield from _own(tmp_path_factory.mktemp("o"), monkeypatch)


@pytest.fixture
def forgetful(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """One that forgets a job two seconds after its end."""
    yield from _own(tmp_path_factory.mktemp("f"), monkeypatch, MinJobAge=2)


def test_outages_preemption_and_failing_nodes(own: Place) -> None:
    cluster = own.cluster
    low = own.submit("low", "sleep 300", {"partition": "low", "exclusive": True}, nodes=4)
    own.until(low, lambda s: s.state is State.RUNNING)
    high = own.submit("high", "true", {"partition": "high", "exclusive": True}, nodes=4)
    assert own.ended(low).state is State.PREEMPTED and own.ended(high).state is State.SUCCEEDED

    again = own.submit("again", "sleep 5", {"partition": "lowrequeue", "exclusive": True}, nodes=4)
    own.until(again, lambda s: s.state is State.RUNNING)
    own.submit("above", "true", {"partition": "high", "exclusive": True}, nodes=4)
    waits = own.until(again, lambda s: s.state is State.PENDING)
    assert waits.restarts == 1 and not waits.hopeless
    ended = own.ended(again, 120)
    assert (ended.state, ended.restarts) == (State.SUCCEEDED, 1)

    on_n2 = own.submit("n2", "sleep 300", {"nodelist": "n2", "requeue": False})
    own.until(on_n2, lambda s: s.state is State.RUNNING)
    cluster.kill_node("n2")
    failed = own.ended(on_n2)
    assert failed.state is State.NODE_FAIL and "a node failed" in failed.reason

    survivor = own.submit("survivor", "echo begun; sleep 3; echo alive")
    wait_until(lambda: "begun" in own.log(survivor), "the step runs: srun cannot start it without a controller", 60)
    cluster.stop_controller()
    for ask in (
        lambda: own.target().statuses([survivor]),
        lambda: own.target().cancel(survivor),
        lambda: own.submit("late", "true"),
    ):
        with pytest.raises(TargetError) as e:
            ask()
        assert not getattr(e.value, "refused", False), e.value
        assert "slurm controller" in str(e.value)
    cluster.start_controller()
    assert own.ended(survivor).state is State.SUCCEEDED and "alive" in own.log(survivor)
    late = own.submit("late", "true")
    assert own.ended(late).state is State.SUCCEEDED and own.names("late") == 1


def test_without_accounting_squeue_and_then_the_jobs_own_mark_say_how_it_ended(forgetful: Place) -> None:
    forgetful.cluster.kill_dbd()
    keys = {"ok": "true", "code": "exit 7", "segv": "kill -SEGV $$", "rank": '[ "$NODE_RANK" = 1 ] && exit 5; sleep 60'}
    handles = {k: forgetful.submit(k, s, nodes=2 if k == "rank" else 1) for k, s in keys.items()}
    wanted = {
        "ok": (State.SUCCEEDED, 0),
        "code": (State.FAILED, 7),
        "segv": (State.FAILED, -11),
        "rank": (State.FAILED, 5),
    }
    gone = forgetful.submit("gone", "sleep 300")
    forgetful.until(gone, lambda s: s.state is State.RUNNING)
    wait_until(lambda: os.path.islink(f"{gone.directory}/claim"), "its script has begun")
    forgetful.cluster.command("scontrol", "update", f"jobid={gone.id}", "requeue=0")
    forgetful.cluster.command("scancel", "--full", "--signal=TERM", gone.id)  # its script too, as a requeue does
    assert {k: _end(forgetful.ended(h)) for k, h in handles.items()} == wanted
    forgetful.ended(gone)

    def forgotten() -> bool:
        return not forgetful.cluster.command("squeue", "-h", "-t", "all").strip()

    wait_until(forgotten, "slurmctld forgets its jobs", 180)
    found = forgetful.target().statuses(handles.values())
    assert {k: _end(s) for k, s in found.items()} == wanted
    assert forgetful.target().statuses([gone])["gone"].state is State.FAILED, "not for what a signal ended a success"
    assert found["ok"].raw == "FORGOTTEN" and found["ok"].ended


def _end(status: Any) -> tuple[State, int | None]:
    return status.state, status.exit_code
