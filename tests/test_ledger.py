"""The ledger of submissions and the board of states: durable, shared by processes, one question per poll."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import REPO

from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs import board as boards
from nemotron_dagster.jobs.board import Board
from nemotron_dagster.jobs.ledger import Ledger, Order, Record, ledger, record_from
from nemotron_dagster.jobs.target import JobHandle, State, Status

ORDER = Order("demo/rows", "tiny", "d" * 64, "c" * 64, ("demo", "rows"), "raw_jsonl", ".", "/data", "/data/.staging/d")


def record(key: str, **fields: object) -> Record:
    made = Record(key, "big", "slurm", "slurm here", {"account": "a"}, ORDER, detached=False)
    return replace(made, handles=(JobHandle("slurm", key, f"/jobs/{key}", "7"),), phase="submitted", **fields)


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return ledger(tmp_path)


def test_a_record_is_read_back_as_it_was_written(book: Ledger) -> None:
    status = Status(State.TIMEOUT, 0, "time limit", "TIMEOUT", started=1.5, gpus=2, figures={"cpu_efficiency": 0.5})
    written = book.put(record("k", status=status, runs=("r",), references={"HF_TOKEN": "${oc.env:HF_TOKEN}"}))
    assert book.get("k") == written
    assert record_from(json.loads(json.dumps(written.as_dict()))) == written


def test_closing_a_record_moves_it_and_it_is_never_missing(book: Ledger) -> None:
    book.put(record("k"))
    closed = book.change("k", phase="published", uri="/a")
    assert closed.closed and book.open() == [] and book.get("k") == closed and book.all() == [closed]
    assert book.change("k", run="r1").runs == ("r1",) and book.change("k", run="r1").runs == ("r1",)
    with pytest.raises(KeyError):
        book.change("nosuch", phase="failed")


def test_a_record_is_found_by_the_start_of_its_key_and_by_its_job_id(book: Ledger) -> None:
    book.put(record("abc"))
    book.put(record("abd"))
    assert [r.key for r in book.find("abc")] == ["abc"] and len(book.find("ab")) == 2 and len(book.find("7")) == 2
    assert book.find("x") == []


def test_a_broken_record_is_named_and_hides_no_other(book: Ledger) -> None:
    book.put(record("good"))
    (book.root / "open/bad.json").write_text('{"key": "bad"')
    assert [r.key for r in book.open()] == ["good"]
    with pytest.raises(TargetError, match=r"bad\.json: is no record"):
        book.get("bad")


def _add(root: Path, n: int) -> None:
    for i in range(n):
        Ledger(root).change("k", run=f"{os.getpid()}-{i}")


def test_processes_that_change_one_record_lose_no_change(book: Ledger) -> None:
    book.put(record("k"))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add, args=(book.root, 20)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = book.get("k")
    assert found is not None and len(found.runs) == 80


def test_a_submission_is_an_orphan_once_its_watcher_was_killed(book: Ledger) -> None:
    book.put(record("k"))
    assert book.orphaned("k")
    code = (
        "import sys, time; from pathlib import Path; from nemotron_dagster.jobs.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])).watched('k'):\n    print('watching', flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", code, str(book.root)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as watcher:
        assert watcher.stdout is not None and watcher.stdout.readline() == "watching\n"
        with book.watched("k"):
            assert not book.orphaned("k")
        assert not book.orphaned("k")
        watcher.send_signal(signal.SIGKILL)
    assert book.orphaned("k")


class CountedScheduler:
    """Stands in for a cluster: says what ``states`` holds and counts the questions."""

    cluster = "slurm here"

    def __init__(self, states: dict[str, State]) -> None:
        self.states, self.asked, self.down = states, [], False

    def statuses(self, handles: Iterable[JobHandle]) -> dict[str, Status]:
        self.asked.append(sorted(h.key for h in handles))
        if self.down:
            raise TargetError("the cluster is down. Ask its people.")
        return {key: Status(self.states[key]) for key in self.asked[-1]}


@pytest.fixture
def many(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> tuple[Board, CountedScheduler, list[JobHandle]]:
    clock = [1000.0]
    monkeypatch.setattr(boards.time, "time", lambda: clock[0])
    for n in range(30):
        book.put(record(f"k{n:02d}"))
    scheduler = CountedScheduler({f"k{n:02d}": State.RUNNING for n in range(30)})
    scheduler.clock = clock  # type: ignore[attr-defined]
    handles = [r.handle for r in book.open() if r.handle]
    return Board(book.root / "board", book), scheduler, handles


def test_all_jobs_of_a_cluster_are_asked_for_in_one_call(many) -> None:
    board, scheduler, handles = many
    for _ in range(3):
        assert {board.status(scheduler, h).state for h in handles} == {State.RUNNING}
    assert [len(asked) for asked in scheduler.asked] == [30]


def test_the_pause_grows_while_nothing_changes_and_shrinks_when_something_does(many) -> None:
    board, scheduler, handles = many
    times = []
    for _ in range(400):
        seen = len(scheduler.asked)
        board.status(scheduler, handles[0])
        if len(scheduler.asked) > seen:
            times.append(scheduler.clock[0])
        scheduler.clock[0] += 0.5
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[0] <= 1.5 and gaps[-1] == 30 and gaps == sorted(gaps)
    scheduler.states["k01"] = State.FAILED
    scheduler.clock[0] += 30
    assert board.status(scheduler, handles[1]).state is State.FAILED
    seen = len(scheduler.asked)
    scheduler.clock[0] += 1
    board.status(scheduler, handles[0])
    assert len(scheduler.asked) == seen + 1
    assert "k01" not in scheduler.asked[-1], "what has ended is not asked for again"


def test_an_urgent_question_is_asked_at_once_but_once_a_second(many) -> None:
    board, scheduler, handles = many
    for _ in range(40):
        board.status(scheduler, handles[0])
        scheduler.clock[0] += 2
    seen = len(scheduler.asked)
    for _ in range(20):
        board.status(scheduler, handles[0], urgent=True)
        scheduler.clock[0] += 0.1
    assert 2 <= len(scheduler.asked) - seen <= 3


def test_an_outage_is_told_to_all_asked_about_slowly_and_forgets_nothing(many) -> None:
    board, scheduler, handles = many
    scheduler.states["k05"] = State.SUCCEEDED
    board.status(scheduler, handles[0])
    scheduler.down = True
    scheduler.clock[0] += 60
    for _ in range(100):
        with pytest.raises(TargetError, match="is down"):
            board.status(scheduler, handles[0])
        scheduler.clock[0] += 0.1
    assert len(scheduler.asked) < 8
    scheduler.down = False
    scheduler.clock[0] += 60
    assert board.status(scheduler, handles[0]).state is State.RUNNING
    assert board.status(scheduler, handles[5]).state is State.SUCCEEDED


def test_a_job_of_another_cluster_is_not_asked_for_here(many, book: Ledger) -> None:
    board, scheduler, handles = many
    book.put(replace(record("far"), cluster="slurm there"))
    board.status(scheduler, handles[0])
    assert "far" not in scheduler.asked[0]


def test_processes_share_one_poll(book: Ledger, tmp_path: Path) -> None:
    for n in range(3):
        book.put(record(f"k{n}"))
    code = """
import sys, time
from pathlib import Path
from nemotron_dagster.jobs.board import Board
from nemotron_dagster.jobs.ledger import Ledger
from nemotron_dagster.jobs.target import State, Status
class Counted:
    cluster = "slurm here"
    def statuses(self, handles):
        with open(sys.argv[2], "a") as out:
            out.write("asked\\n")
        time.sleep(0.05)
        return {h.key: Status(State.RUNNING) for h in handles}
book = Ledger(Path(sys.argv[1]))
[first, *_] = book.open()
end = time.time() + 4
while time.time() < end:
    Board(book.root / "board", book).status(Counted(), first.handle)
    time.sleep(0.02)
"""
    asked = tmp_path / "asked"
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    began = time.time()
    workers = [subprocess.Popen([sys.executable, "-c", code, str(book.root), str(asked)], env=env) for _ in range(4)]
    assert [w.wait() for w in workers] == [0] * 4
    questions, seconds = len(asked.read_text().splitlines()), time.time() - began
    assert 1 <= questions <= seconds + 1, "more than one question a second"
