"""What any process can do with the submissions of a project: look at them, cancel them, find those to publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nemotron_dagster.errors import NemotronError, TargetError, UsageError
from nemotron_dagster.jobs.board import board
from nemotron_dagster.jobs.chain import Ended, give_up, submit_again
from nemotron_dagster.jobs.ledger import OPEN, Ledger, Record, ledger
from nemotron_dagster.jobs.target import JobHandle, State, Status, Target, make_target
from nemotron_dagster.project import Project

PATIENCE = 60.0  # seconds that a cancelled job has to end: schedulers grant half a minute between asking and killing
_PAUSES = (0.1, 2.0)  # seconds between two questions meanwhile
_UNTOLD = (30.0, 300.0)  # seconds after which a submission without a job gets none, and after which it has none


@dataclass(frozen=True)
class Sight:
    """One submission as it is now.

    Attributes:
        status: of its present job; the last one known where the cluster cannot be asked, None where there is none.
        problem: why it could not be asked.
    """

    record: Record
    status: Status | None
    problem: str = ""

    @property
    def ended(self) -> bool:
        """The job is known to have ended."""
        return not self.problem and self.status is not None and self.status.state.final

    @property
    def due(self) -> bool:
        """The submission can be closed: its job has ended, or can never start."""
        return self.ended or (not self.problem and self.status is not None and self.status.hopeless)


def target_of(project: Project, record: Record) -> Target:
    """The target of a submission, as it was when it was submitted.

    Raises:
        ProfileError: its module is gone or does not take these settings any more.
    """
    return make_target(project, record.profile, record.settings)


def look(project: Project, records: Iterable[Record]) -> list[Sight]:
    """The records as they are now, in their order: each cluster is asked once at most, and none for closed ones."""
    book, found = ledger(project.state), {}
    groups: dict[tuple[str, str], list[Record]] = {}
    records = list(records)
    for record in records:
        if record.phase in OPEN and record.handle is not None:
            groups.setdefault((record.executor, record.cluster), []).append(record)
        else:
            found[record.key] = Sight(record, record.status)
    for (_, cluster), group in groups.items():
        known, problem = _asked(project, book, group)
        if problem and cluster:
            known = board(project.state, book).last(cluster, [r.handle for r in group if r.handle])
        for record in group:
            assert record.handle is not None
            status = known.get(record.handle.key)
            final = status is not None and status.state.final  # what has ended has ended
            found[record.key] = Sight(record, status or record.status, "" if final else problem)
    return [found[r.key] for r in records]


def _asked(project: Project, book: Ledger, group: list[Record]) -> tuple[dict[str, Status], str]:
    """What the cluster of a group says, or why it does not. Any settings that still make a target will do."""
    problem = ""
    for record in group:
        try:
            target = target_of(project, record)
        except NemotronError as e:
            problem = problem or str(e)
            continue
        try:
            return board(project.state, book).statuses(target, [r.handle for r in group if r.handle]), ""
        except TargetError as e:
            return {}, str(e)
    return {}, problem


def find(book: Ledger, name: str) -> Record:
    """The submission whose key begins with ``name``, or whose job has that id.

    Raises:
        UsageError: none or several; with those it may be.
    """
    found = [r for r in book.find(name) if r.key == name] or book.find(name)
    if len(found) == 1:
        return found[0]
    if found:
        rows = "\n".join(f"    {r.key}  {r.order.step}  {r.phase}" for r in found[-10:])
        raise UsageError(f"{name}: fits {len(found)} submissions:\n{rows}\nGive more of the key.")
    newest = ", ".join(r.key for r in book.all(5)[-5:]) or "none at all"
    raise UsageError(
        f"{name}: no submission has that key or job id. The newest: {newest}. See `nemotron runs list -a`."
    )


def located(project: Project, record: Record) -> Record:
    """The record with its job where its submitter was killed before it could write that down; closed without one.

    Raises:
        TargetError: the cluster cannot be reached.
        ProfileError: as ``target_of``.
    """
    book = ledger(project.state)
    if record.handle is not None or record.phase not in OPEN or not book.orphaned(record.key):
        return record
    target, age = target_of(project, record), time.time() - record.created
    handle, excluded = target.find(record.key), False
    if handle is None and age >= _UNTOLD[0]:  # what its submitter sent may still be on its way, and is not let in
        excluded = target.abandon(JobHandle(record.executor, record.key, target.job_directory(record.key)), "nobody")
        handle = None if excluded else target.find(record.key)
    if handle is not None:
        return book.change(record.key, phase="submitted", handle=handle)
    if not excluded and age < _UNTOLD[1]:
        return record
    error = f"{record.order.step}: whoever submitted it was killed before there was a job. Run it again."
    return book.change(record.key, phase="failed", error=error)


def unpublished(project: Project, note: Callable[[str], None]) -> list[Sight]:
    """The submissions that nobody watches, that have ended or can never start, and that Dagster's history lacks.

    A job that its scheduler lost before it began is submitted again on the way. ``note`` is told of that, and what
    could not be looked at, once per reason. Cheap where nothing is open.
    """
    book, problems = ledger(project.state), list[str]()
    records = []
    for record in book.open():
        if book.orphaned(record.key):
            try:
                records.append(located(project, record))
            except NemotronError as e:
                problems.append(str(e))
    sights = look(project, [r for r in records if r.phase in OPEN])
    for i, sight in enumerate(sights):
        if sight.ended and sight.status is not None and sight.status.never_began:
            sights[i] = _submitted_again(project, sight, note)
    for problem in dict.fromkeys([*problems, *(s.problem for s in sights if s.problem)]):
        note(problem)
    known = {s.record.key for s in sights}
    for key in book.owed():
        left = book.get(key) if key not in known else None
        if left is not None and left.phase == "published" and book.orphaned(key):
            sights.append(Sight(left, left.status))
    return [s for s in sights if s.due or s.record.phase == "published"]


def _submitted_again(project: Project, sight: Sight, note: Callable[[str], None]) -> Sight:
    """The submission with another job; as it was, where there cannot be one: who publishes it then tells why."""
    book, record = ledger(project.state), sight.record
    try:
        now = submit_again(target_of(project, record), book, record, lambda text: note(f"{record.key}: {text}"))
    except Ended:
        return sight
    except NemotronError as e:
        return Sight(record, sight.status, str(e))
    return Sight(now, None)


def cancel(
    project: Project, record: Record, patience: float = PATIENCE, asked: Callable[[], None] = lambda: None
) -> Record:
    """Cancel a submission, wait until its job has ended, and close it; the record as it is then.

    ``asked`` is called once the scheduler was told to stop the job.

    It is still open where the job ended by itself before, or has not ended within ``patience``. One that is closed
    already is left alone.

    Raises:
        TargetError: the cluster cannot be reached; the job goes on.
        ProfileError: as ``target_of``.
    """
    book = ledger(project.state)
    record = book.get(record.key) or record
    if record.phase not in OPEN:
        return record
    target, deadline = target_of(project, record), time.monotonic() + patience
    while record.handle is None and not book.orphaned(record.key) and time.monotonic() < deadline:
        time.sleep(_PAUSES[0])  # another process submits it this very moment
        record = book.get(record.key) or record
    handle = record.handle or target.find(record.key)
    if handle is None:
        return book.change(record.key, phase="cancelled", error=f"{record.order.step}: cancelled before it had a job.")
    status: Status | None = target.statuses([handle])[handle.key]
    if status is not None and status.never_began:
        handle, status = give_up(target, record, handle, status)
    if status is not None and not status.state.final:
        target.cancel(handle)
        asked()
        status = _ended(target, handle, patience)
    if status is None or status.state is not State.CANCELLED:
        return book.change(record.key, phase="submitted", handle=handle)
    target.release(handle)
    error = f"{record.order.step}: the job was cancelled."
    return book.change(record.key, phase="cancelled", handle=handle, status=status, error=error)


def _ended(target: Target, handle: JobHandle, patience: float) -> Status | None:
    deadline, pause = time.monotonic() + patience, _PAUSES[0]
    while True:
        status = target.statuses([handle])[handle.key]
        if status.state.final:
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(pause)
        pause = min(pause * 1.5, _PAUSES[1])
