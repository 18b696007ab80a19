"""The next job of a submission: after one that the scheduler has interrupted, or in place of one that it lost."""

from __future__ import annotations

from collections.abc import Callable

from nemotron_dagster.artifacts.locks import held
from nemotron_dagster.errors import ProfileError, TargetError
from nemotron_dagster.jobs.ledger import OPEN, Ledger, Record
from nemotron_dagster.jobs.prepare import NoSecret, follow_up
from nemotron_dagster.jobs.publish import gone, slot_of
from nemotron_dagster.jobs.target import JobHandle, State, Status, Target


class Ended(TargetError):
    """No job follows, and none will."""


_MOST = 5  # jobs of one submission that may be lost: who loses more will lose the next one too


def next_job(target: Target, book: Ledger, record: Record, status: Status, note: Callable[[str], None]) -> Record:
    """The submission with the follow-up job of a step that can resume.

    Raises:
        Ended: a secret of the submission cannot be had here, or the target refused the job.
        TargetError: the target cannot be reached.
    """
    assert record.handle is not None
    target.release(record.handle)
    number = len(record.handles) + 1
    note(
        f"the job ended by {status.state.lower().replace('_', ' ')}; continuing in job "
        f"{number - record.lost} of at most {record.max_chain}"
    )
    return book.change(record.key, handle=_submitted(target, record))


def submit_again(target: Target, book: Ledger, record: Record, note: Callable[[str], None]) -> Record:
    """The submission with a job in place of its last one, which the scheduler lost before it began.

    Who was killed meanwhile is no harm: the next one finds the job. As it was, where that job has begun after all, or
    another process has done so already.

    Raises:
        Ended: it was lost too often, or another submission does its work; or as ``next_job``.
        TargetError: as ``next_job``.
    """
    with held(book.locks / f"{record.key}.again"):
        now = book.get(record.key) or record
        lost = now.handle
        if now.phase not in OPEN or lost is None or lost != record.handle:
            return now
        problem = gone(slot_of(now.order, now.key), now.key)
        if problem or now.lost >= _MOST:
            raise Ended(f"{now.key}: not submitted again: {problem or f'{_MOST} jobs of it were lost already.'}")
        if not target.abandon(lost, f"{now.key}-{len(now.handles) + 1}"):
            return now
        target.release(lost)
        note(f"the scheduler lost job {lost.id or lost.key} before it began; submitting it again")
        return book.change(now.key, handle=_submitted(target, now), lost=now.lost + 1)


def _submitted(target: Target, record: Record) -> JobHandle:
    try:
        return target.submit(follow_up(record, len(record.handles) + 1))
    except (NoSecret, ProfileError) as e:
        raise Ended(str(e)) from e
    except TargetError as e:
        raise (Ended(str(e)) if getattr(e, "refused", False) else e) from e


def give_up(target: Target, record: Record, handle: JobHandle, status: Status) -> tuple[JobHandle, Status]:
    """Cancel a job that was lost before it began: what there still is to cancel, and how it is.

    That is the job which another process was about to put in its place, or itself where it has begun after all.

    Raises:
        TargetError: the target cannot be reached.
    """
    successor = f"{record.key}-{len(record.handles) + 1}"
    if not target.abandon(handle, successor):
        return handle, target.statuses([handle])[handle.key]
    found = target.find(successor)
    if found is None:
        return handle, Status(State.CANCELLED, reason="before it began", raw=status.raw)
    return found, target.statuses([found])[found.key]
