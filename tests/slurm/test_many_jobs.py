"""Five hundred jobs are watched by several processes with one question to the scheduler per poll."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crowd
import pytest
from cluster import Cluster
from processes import wait_until
from ticks import Ticks, new_project

from nemotron_dagster.jobs.board import POLL

_JOBS, _WATCHERS = 500, 3

#: Watches all jobs, each by itself, until none has an end to come; notes what it saw of each round.
_WATCH = """
import json, pathlib, sys, time
from nemotron_dagster.jobs.board import board
from nemotron_dagster.jobs.ledger import ledger
from nemotron_dagster.jobs.sync import target_of
from nemotron_dagster.project import Project
root, out = map(pathlib.Path, sys.argv[1:])
project = Project(root, root / ".nemotron")
book = ledger(project.state)
records = book.open()
target, answers = target_of(project, records[0]), board(project.state, book)
for rounds in range(10**6):
    seen = {r.key: answers.status(target, r.handle) for r in records}
    states = sorted({s.state for s in seen.values()})
    out.write_text(json.dumps({"rounds": rounds + 1, "jobs": len(seen), "states": states}))
    if all(s.state.final for s in seen.values()):
        break
    time.sleep(0.2)
"""


@pytest.fixture
def ticks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ticks]:
    folder = tmp_path_factory.mktemp("m")
    cluster = Cluster(folder / "s")
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])  # it is in the name under which the cluster is asked
    cluster.start()
    try:
        yield new_project(folder, cluster)
    finally:
        cluster.stop()


def test_500_jobs_are_watched_with_one_question_per_poll_whoever_watches(ticks: Ticks) -> None:
    crowd.hold(ticks, _JOBS)
    crowd.count_questions(ticks)
    outs = [ticks.root / f"watcher{n}" for n in range(_WATCHERS)]
    argv = [sys.executable, "-W", "ignore", "-c", _WATCH, str(ticks.root)]
    began = time.monotonic()
    watchers = [subprocess.Popen([*argv, str(out)], env=ticks.env, start_new_session=True) for out in outs]
    try:
        seen: dict[Path, dict[str, Any]] = {out: {} for out in outs}

        def all_have_looked(times: int) -> bool:
            assert all(w.poll() in (None, 0) for w in watchers), "a watcher has failed"
            for out in outs:
                seen[out] = json.loads(out.read_text() or "{}") if out.exists() else {}
            return all(s.get("rounds", 0) >= times for s in seen.values())

        wait_until(lambda: all_have_looked(5), "everybody has looked five times", 120)
        assert all((s["jobs"], s["states"]) == (_JOBS, ["PENDING"]) for s in seen.values()), seen
        asked = crowd.questions(ticks)
        assert 1 <= len(asked) <= 1 + (time.monotonic() - began) / POLL[0], "one poll asks more than once"
        assert set(asked) == {"squeue"}, "of jobs that wait, accounting is asked"
        crowd.cancel_all(ticks)
        assert [w.wait(120) for w in watchers] == [0] * _WATCHERS
    finally:
        for watcher in watchers:
            watcher.kill()
            watcher.wait()
    assert all_have_looked(6)
    assert all((s["jobs"], s["states"]) == (_JOBS, ["CANCELLED"]) for s in seen.values()), seen
    asked = crowd.questions(ticks)
    assert asked.count("squeue") <= 1 + (time.monotonic() - began) / POLL[0], asked
    assert asked.count("sacct") <= 4 * asked.count("squeue"), "accounting that lags is asked four times at most"
