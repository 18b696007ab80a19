"""Watching a submission: outages, jobs that can never start, follow-up jobs, each byte of the log once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nemotron_dagster.artifacts.store import slot
from nemotron_dagster.errors import JobFailed, TargetError
from nemotron_dagster.jobs import run, watch
from nemotron_dagster.jobs.board import Board
from nemotron_dagster.jobs.ledger import Order, Record, ledger
from nemotron_dagster.jobs.prepare import written
from nemotron_dagster.jobs.target import Chunk, JobHandle, State, Status, Submission
from nemotron_dagster.jobs.watch import Watch
from nemotron_dagster.project import Project

Answer = Status | TargetError


@dataclass
class ScriptedTarget:
    """Stands in for a cluster: gives the answers it was told, one per question, the last one for ever."""

    answers: dict[str, list[Answer]]
    output: bytes = b""
    cluster: str = ""
    shares_files: bool = True
    cancelled: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    submitted: list[Submission] = field(default_factory=list)

    def statuses(self, handles: Iterable[JobHandle]) -> dict[str, Status]:
        found: dict[str, Status] = {}
        for handle in handles:
            waiting = self.answers[handle.key]
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if isinstance(answer, TargetError):
                raise answer
            found[handle.key] = answer
        return found

    def read(self, handle: JobHandle, cursor: Mapping[str, int]) -> Chunk:
        at = cursor.get("log", 0)
        data = self.output[at : at + 7]
        return Chunk(data, {"log": at + len(data)})

    def cancel(self, handle: JobHandle) -> None:
        self.cancelled.append(handle.key)

    def release(self, handle: JobHandle) -> None:
        self.released.append(handle.key)

    def submit(self, job: Submission) -> JobHandle:
        self.submitted.append(job)
        return JobHandle("x", job.key, "/nowhere")


@dataclass
class Heard:
    notes: list[str] = field(default_factory=list)
    output: bytes = b""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def log(self, data: bytes) -> None:
        self.output += data

    def progress(self, step: int | None, total: int | None, metrics: Mapping[str, float]) -> None:
        """Not looked at here."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)


HANDLE = JobHandle("x", "k", "/nowhere")
RUNNING, DONE = Status(State.RUNNING, nodes="n1"), Status(State.SUCCEEDED, 0)


def watching(target: ScriptedTarget, root: Path, **options: object) -> tuple[Watch, Heard]:
    heard = Heard()
    place = slot(root, ("a",), "d" * 64, "k")
    place.staging.mkdir(parents=True, exist_ok=True)
    return Watch(target, Board(root / "board", ledger(root)), place, heard, **options), heard  # type: ignore[arg-type]


def test_an_outage_is_no_state_it_is_told_once_a_minute_and_survived(tmp_path: Path) -> None:
    down = TargetError("cannot reach it.\nAsk its people.")
    target = ScriptedTarget({"k": [RUNNING, *[down] * 50, RUNNING, DONE]}, b"some output\n")
    seen, heard = watching(target, tmp_path)
    assert seen.until_ended(HANDLE) == DONE
    assert heard.notes == ["running on n1", "no answer, asking again: cannot reach it."]
    assert heard.output == seen.tail == b"some output\n" and target.cancelled == []


def test_watching_gives_up_after_long_silence_and_leaves_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**9, 300))
    monkeypatch.setattr(watch.time, "monotonic", lambda: float(next(clock)))
    target = ScriptedTarget({"k": [TargetError("cannot reach it")]})
    seen, _ = watching(target, tmp_path)
    with pytest.raises(TargetError, match="No answer for 60 minutes"):
        seen.until_ended(HANDLE)
    assert target.cancelled == [] and target.released == []


def test_a_job_that_can_never_start_is_cancelled_with_the_schedulers_reason(tmp_path: Path) -> None:
    never = Status(State.PENDING, reason="PartitionNodeLimit", hopeless=True, raw="PENDING")
    target = ScriptedTarget({"k": [never]})
    status = watching(target, tmp_path)[0].until_ended(HANDLE)
    assert status.state is State.FAILED and "never start: PartitionNodeLimit" in status.reason
    assert target.cancelled == ["k"]


def test_why_a_job_waits_is_told_when_it_changes(tmp_path: Path) -> None:
    queued = [Status(State.PENDING, reason=r) for r in ("Priority", "Priority", "Resources")]
    seen, heard = watching(ScriptedTarget({"k": [*queued, RUNNING, RUNNING, DONE]}), tmp_path)
    seen.until_ended(HANDLE)
    assert heard.notes == ["waiting: Priority", "waiting: Resources", "running on n1"]


def test_a_worker_that_takes_a_run_over_goes_on_in_the_log_where_the_last_one_was(tmp_path: Path) -> None:
    target, cursor = ScriptedTarget({"k": [RUNNING, DONE]}, b"0123456789"), tmp_path / "cursor.json"
    seen, first = watching(target, tmp_path, cursor_file=cursor)
    seen.until_ended(HANDLE)
    target.output += b"abc"
    seen, second = watching(target, tmp_path, cursor_file=cursor)
    seen.until_ended(HANDLE)
    assert (first.output, second.output) == (b"0123456789", b"abc")


def test_the_job_is_cancelled_once_when_nobody_wants_it_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**9, 3))
    monkeypatch.setattr(watch.time, "monotonic", lambda: float(next(clock)))
    target = ScriptedTarget({"k": [RUNNING] * 9 + [Status(State.CANCELLED)]})
    seen, _ = watching(target, tmp_path, unwanted=lambda: True)
    assert seen.until_ended(HANDLE).state is State.CANCELLED and target.cancelled == ["k"]


def order(root: Path, resumable: bool) -> Order:
    staging = str(root / "artifacts/a/.staging/d")
    return Order(
        "a/b", "tiny", "d", "c", ("a",), "raw_jsonl", ".", str(root / "artifacts"), staging, resumable=resumable
    )


@pytest.fixture
def submitted(tmp_path: Path) -> Record:
    """A submission of a step that can resume, in a chain of three jobs at most."""
    job = Submission("k", "a/b", ("python", "x y"), {"A": "1"}, {"TOKEN": "sesame"}, visible=("/data",))
    record = Record(
        "k", "big", "x", "", {}, order(tmp_path, True), False, written(job), {"TOKEN": "${oc.env:THE_TOKEN}"}
    )
    book = ledger(tmp_path)
    book.put(record)
    Path(record.order.staging).mkdir(parents=True)
    return book.change("k", phase="submitted", handle=HANDLE, max_chain=3)


@pytest.mark.parametrize("ended", [State.TIMEOUT, State.PREEMPTED, State.NODE_FAIL])
def test_a_step_that_can_resume_goes_on_in_follow_up_jobs_up_to_max_chain(
    tmp_path: Path, submitted: Record, ended: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_TOKEN", "sesame")
    target = ScriptedTarget({k: [Status(ended, reason="stopped")] for k in ("k", "k-2", "k-3")})
    with pytest.raises(JobFailed, match="stopped"):
        run.follow(Project(tmp_path, tmp_path), target, submitted, Heard())
    assert [j.key for j in target.submitted] == ["k-2", "k-3"] and target.released == ["k", "k-2", "k-3"]
    first = target.submitted[0]
    assert (first.argv, first.env, first.secrets) == (("python", "x y"), {"A": "1"}, {"TOKEN": "sesame"})
    closed = ledger(tmp_path).get("k")
    assert closed is not None and closed.phase == "failed" and [h.key for h in closed.handles] == ["k", "k-2", "k-3"]
    assert "sesame" not in "".join(p.read_text() for p in (tmp_path / "ledger").rglob("*.json"))


def test_what_ends_by_itself_is_not_continued(tmp_path: Path, submitted: Record) -> None:
    target = ScriptedTarget({"k": [Status(State.FAILED, 3, reason="exit code 3")]})
    with pytest.raises(JobFailed, match="exit code 3"):
        run.follow(Project(tmp_path, tmp_path), target, submitted, Heard())
    assert target.submitted == []


def test_a_secret_that_env_toml_holds_itself_ends_the_chain_with_a_word_on_it(
    tmp_path: Path, submitted: Record
) -> None:
    record, heard = ledger(tmp_path).change("k", references={}), Heard()
    target = ScriptedTarget({"k": [Status(State.TIMEOUT, reason="time limit")]})
    with pytest.raises(JobFailed, match="time limit"):
        run.follow(Project(tmp_path, tmp_path), target, record, heard)
    assert target.submitted == [] and "TOKEN is a secret that env.toml holds itself" in heard.notes[-1]
