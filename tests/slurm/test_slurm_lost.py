"""A slurmctld that is killed forgets what it has just taken: such a job is submitted again, and runs once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from processes import wait_until
from ticks import Ticks, new_project, tag_of

from nemotron_dagster.jobs.ledger import Record
from nemotron_dagster.jobs.sync import target_of
from nemotron_dagster.jobs.target import State
from nemotron_dagster.project import Project

#: Takes the job within five seconds of saving its state for another one, and dies: nothing of it is left.
_FORGETS = '"$real" --parsable --begin=now+1hour --wrap true >/dev/null; sleep 0.5; "$real" "$@"; kill -9 $(cat {pid})'


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("l"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def ticks(own: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ticks:
    """Jobs wait three seconds before they begin, so that none begins before its controller dies."""
    for name, value in own.env.items():
        monkeypatch.setenv(name, value)
    return new_project(tmp_path, own, lost_after=3, additional_parameters={"begin": "now+3"})


def _lost(ticks: Ticks, *options: str) -> Record:
    """A submission whose job was lost, and a controller that runs again; the watcher, if it is attached, too."""
    ticks.program("sbatch", _FORGETS.format(pid=ticks.cluster.root / "run/slurmctld.pid"))
    command = ticks.start("steps", "run", "demo/tick", "tag=one", *options)
    wait_until(lambda: [r for r in ticks.book.open() if r.handle], "it is submitted", 90)
    (ticks.root.parent / "bin/sbatch").unlink()
    ticks.cluster.start_controller()
    if "-b" in options:
        command.wait(60)
    [record] = ticks.book.all()
    name = f"--name=tick.{record.key}"
    assert not ticks.cluster.command("squeue", "-h", "-t", "all", name), "slurmctld has saved the job after all"
    return record


def _published_once(ticks: Ticks) -> Record:
    [record] = ticks.synced()
    assert record.phase == "published", record.error
    assert [sum(n.values()) for n in ticks.ran().values()] == [1]
    assert [tag_of(record)] == list(ticks.ran())
    return record


def test_sync_submits_a_lost_job_again_and_says_so(ticks: Ticks) -> None:
    key = _lost(ticks, "-b", "c").key
    said = ""

    def again() -> bool:
        nonlocal said
        said += ticks.run("runs", "sync").stderr
        return "lost job" in said

    wait_until(again, "it is submitted again", 90)
    assert f"{key}: the scheduler lost job" in said
    record = _published_once(ticks)
    assert [h.key for h in record.handles] == [key, f"{key}-2"] and record.lost == 1


def test_who_watches_a_lost_job_submits_it_again(ticks: Ticks) -> None:
    key = _lost(ticks, "-r", "c").key
    wait_until(lambda: not ticks.book.open() and not ticks.book.owed(), "its watcher publishes it", 120)
    record = _published_once(ticks)
    assert [h.key for h in record.handles] == [key, f"{key}-2"] and record.lost == 1
    assert "the scheduler lost job" in (ticks.root.parent / "commands.log").read_text()


def test_a_lost_job_that_turns_up_later_runs_nothing(ticks: Ticks) -> None:
    record = _lost(ticks, "-b", "c")
    _published_once(ticks)
    first = record.handles[0].directory
    assert os.readlink(f"{first}/claim") == f"{record.key}-2"
    late = ticks.cluster.command("sbatch", "--parsable", "--begin=now", f"{first}_sbatch.sh").strip()
    assert ticks.cluster.wait(int(late), "FAILED").exit_code == "75:0"
    assert [sum(n.values()) for n in ticks.ran().values()] == [1]


def test_a_lost_job_that_is_cancelled_is_not_submitted_again(ticks: Ticks) -> None:
    key = _lost(ticks, "-b", "c").key
    wait_until(lambda: "LOST" in ticks.run("runs", "list").stdout, "it is known to be lost", 90)
    done = ticks.run("runs", "cancel", key)
    assert done.returncode == 0, done.stdout + done.stderr
    [record] = ticks.synced()
    assert record.phase == "cancelled" and len(record.handles) == 1 and not ticks.ran()


def test_a_job_that_has_the_id_of_a_lost_one_is_not_taken_for_it(ticks: Ticks) -> None:
    lost = _lost(ticks, "-b", "c").handles[0]
    assert ticks.run("steps", "run", "demo/tick", "tag=two", "-b", "c").returncode == 0
    [other] = [r.handles[0] for r in ticks.book.open() if r.handles[0].key != lost.key]
    assert other.id == lost.id, "Slurm gives the id again"
    target = target_of(Project(ticks.root, ticks.root / ".nemotron"), ticks.book.open()[0])

    def ended() -> bool:
        now = target.statuses([lost, other])
        assert now[lost.key].state in (State.PENDING, State.LOST), now
        return now[other.key].state is State.SUCCEEDED and now[lost.key].never_began

    wait_until(ended, "one has ended, the other is lost", 90)
    records = ticks.synced()
    assert [r.phase for r in records] == ["published"] * 2, [r.error for r in records]
    assert {tag: sum(n.values()) for tag, n in ticks.ran().items()} == {"one": 1, "two": 1}
