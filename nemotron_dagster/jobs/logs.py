"""The log of a submission, of all its jobs one after the other, as bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from nemotron_dagster.jobs.ledger import OPEN, Record, ledger
from nemotron_dagster.jobs.sync import look, target_of
from nemotron_dagster.project import Project

_PAUSE = (0.1, 1.0)  # seconds between two looks at a log that has nothing new; far away at least the longest


def pieces(project: Project, record: Record, follow: bool = False) -> Iterator[bytes | None]:
    """The log piece by piece. With ``follow`` until the last job has ended; None says that all there is was given.

    Raises:
        TargetError: the cluster cannot be reached.
        ProfileError: the target cannot be made any more.
    """
    book, target = ledger(project.state), target_of(project, record)
    number, cursor, pause = 0, dict[str, int](), _PAUSE[0]
    while True:
        record = book.get(record.key) or record
        ended = not follow or not _goes_on(project, record, number)  # asked before reading: what comes later is read
        if number < len(record.handles):
            chunk = target.read(record.handles[number], cursor)
            if chunk.log:
                cursor, pause = dict(chunk.cursor), _PAUSE[0]
                yield chunk.log
                continue
        if number + 1 < len(record.handles):
            number, cursor = number + 1, {}
            continue
        yield None
        if ended:
            return
        time.sleep(pause if target.shares_files else _PAUSE[1])
        pause = min(pause * 1.5, _PAUSE[1])


def ends(found: Iterator[bytes | None], lines: int) -> Iterator[bytes | None]:
    """``found``, of what is there already the last ``lines`` lines only."""
    kept = b""
    for piece in found:
        if piece is None:
            break
        kept += piece
        parts = kept.splitlines(keepends=True)
        kept = b"".join(parts[-lines - 1 :])  # one more: the last may not be whole yet
    yield b"".join(kept.splitlines(keepends=True)[-lines:]) if lines else b""
    yield from found


def _goes_on(project: Project, record: Record, number: int) -> bool:
    """Whether there may be more to come: the job runs, or another one follows it."""
    if record.phase not in OPEN:
        return False
    if record.handle is None or number + 1 < len(record.handles):
        return True
    [sight] = look(project, [record])
    if sight.status is None or not sight.status.state.final:
        return True
    watched = not ledger(project.state).orphaned(record.key)
    return watched and (sight.status.never_began or (sight.status.state.interrupted and record.may_continue))
