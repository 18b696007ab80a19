"""kill -9 at random instants, on a real Slurm: no job is lost, none runs twice, each result is in the history once.

What a submission is worth is counted where it cannot be argued with: the payload notes that it ran, the scheduler knows
its jobs, Dagster has the asset's history.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster import Cluster
from submissions import history, materialized_keys
from ticks import JOB_NAME, Ticks, new_project, tag_of

_LOST_AFTER = 10
_AT_ONCE = 4  # commands


@pytest.fixture
def ticks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ticks]:
    """A project of a cluster of the test's own."""
    folder = tmp_path_factory.mktemp("k")
    cluster = Cluster(folder / "s")
    cluster.start()
    try:
        yield new_project(folder, cluster, lost_after=_LOST_AFTER, time="00:02:00")
    finally:
        cluster.stop()


def check(ticks: Ticks) -> Counter[str]:
    """Sync until nothing is open, and hold what there is then against what was wanted; the number of each phase."""
    records = ticks.synced()
    began, ended = ticks.ran("began"), ticks.ran("ended")
    jobs = Counter(j.name for j in ticks.cluster.jobs() if j.name.startswith(JOB_NAME) and j.exit_code != "75:0")
    made = Counter(materialized_keys(ticks.root, "demo/tick"))
    for record in records:
        tag, published = tag_of(record), record.phase == "published"
        assert published or record.error, f"{record} failed without a word"
        assert made[record.key] == int(published), f"{record} stands {made[record.key]} times in the history"
        assert not published or len(ended[tag]) == 1, f"{record} was published, and ended in {ended[tag]}"
        assert jobs[f"{JOB_NAME}.{record.key}"] <= 1, f"{record} is {jobs} at the scheduler"
    assert {tag: len(ran) for tag, ran in began.items() if len(ran) > 1} == {}, "several jobs ran one submission"
    assert sum(made.values()) == len(history(ticks.root, "demo/tick")) == sum(r.phase == "published" for r in records)
    of_tags = Counter(tag_of(r) for r in records if r.phase == "published")
    assert all(n == 1 for n in of_tags.values()), of_tags
    unheard = {t for t in ended if t not in of_tags}
    failed = {tag_of(r): r.error for r in records if r.phase == "failed"}
    assert unheard <= set(failed), f"{unheard} have ended, and no record says so"
    return Counter(r.phase for r in records)


def _kill(ticks: Ticks, seconds: float, *argv: str) -> None:
    """Start a command, and kill it and what it has started on this machine after so long."""
    command = ticks.start("steps", "run", "demo/tick", *argv)
    try:
        command.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(command.pid, signal.SIGKILL)
        command.wait()


def _whole(ticks: Ticks, options: tuple[str, ...], what: str) -> float:
    """Seconds that a command takes when it is left alone among others, so that instants lie within what it does."""
    began = time.monotonic()
    commands = [ticks.start("steps", "run", "demo/tick", f"tag={what}{n}", *options) for n in range(_AT_ONCE)]
    assert [c.wait(240) for c in commands] == [0] * _AT_ONCE
    return time.monotonic() - began


@pytest.mark.parametrize(("options", "kills"), [(("-b", "c"), 36), (("-r", "c"), 24)], ids=["detached", "attached"])
def test_kill_9_of_the_command_at_random_instants(ticks: Ticks, options: tuple[str, ...], kills: int) -> None:
    instant = random.Random(5)
    seconds = _whole(ticks, options, "whole")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for n in range(kills):
            pool.submit(_kill, ticks, instant.uniform(0, seconds), f"tag=killed{n}", *options)
    phases = check(ticks)
    assert phases["published"] > _AT_ONCE, "no instant lay behind a submission"
    assert set(phases) <= {"published", "failed"}
    for record in ticks.book.all():
        assert record.phase == "published" or "killed before there was a job" in record.error, record.error


def test_kill_9_of_the_controller_at_random_instants(ticks: Ticks) -> None:
    kills, instant = 25, random.Random(6)
    seconds = _whole(ticks, ("-b", "c"), "whole")
    commands = []
    for n in range(kills):
        options = ("-r", "c") if n % 6 == 5 else ("-b", "c")
        commands.append(
            ticks.start("steps", "run", "demo/tick", f"tag=c{n}", f"sleep={instant.uniform(0, 3)}", *options)
        )
        time.sleep(instant.uniform(0, seconds / 2))
        ticks.cluster.kill_controller()
        time.sleep(instant.uniform(0, 1))
        ticks.cluster.start_controller()
    for command in commands:
        command.wait(240)
    phases = check(ticks)
    assert sum(phases.values()) >= kills + _AT_ONCE, "an outage refuses no submission"
    for record in ticks.book.all():
        # Its end was lost, or a controller that died midway held it, or came back not knowing that it had begun.
        words = ("Slurm", "time limit", "launch failed", "Unable to confirm allocation")
        told = any(w in record.error for w in words)
        assert record.phase == "published" or told, record.error
