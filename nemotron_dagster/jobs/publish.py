"""What happens when a job has ended: its artifact is published, or its failure told. Once, by whoever comes first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_dagster import artifacts
from nemotron_dagster.artifacts import delivery, fingerprints
from nemotron_dagster.artifacts.locks import held
from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest, now, tally
from nemotron_dagster.artifacts.places import place as place_of
from nemotron_dagster.artifacts.store import Slot, publish, published, set_aside, slot
from nemotron_dagster.catalog import Step
from nemotron_dagster.config.delivery import Delivery
from nemotron_dagster.errors import ArtifactError, Cancelled, JobFailed, NemotronError, PayloadNotBuilt
from nemotron_dagster.jobs.causes import likely_cause, tail_of
from nemotron_dagster.jobs.ledger import Ledger, Order, Record
from nemotron_dagster.jobs.messages import Reporter, read_messages
from nemotron_dagster.jobs.target import JobHandle, State, Status, Target

NOT_BUILT, BAD_INPUT = 9, 3  # exit codes of steps/_runtime/payload.py


def slot_of(order: Order, key: str) -> Slot:
    """Where the output of a submission is put together and published."""
    output = Path(order.output) if order.output else None
    root = place_of(order.root)
    if output is None:
        return replace(slot(root, order.asset, order.digest, key, None, order.partition), staging=Path(order.staging))
    return Slot(Path(order.staging), output)


def finish(
    target: Target, ledger: Ledger, record: Record, status: Status, step: Step | None, log: bytes, reporter: Reporter
) -> ArtifactRef:
    """Publish what a job that has ended made, or record why there is nothing; closes the submission.

    ``step`` is the catalog's, for its known errors; ``log`` the end of the job's output.

    Raises:
        Cancelled, JobFailed, PayloadNotBuilt: the job did not succeed.
        ArtifactError: its output is not valid (the submission is closed), or could not be stored (it stays open).
    """
    place, handle = slot_of(record.order, record.key), record.handle
    assert handle is not None
    target.release(handle)
    if status.state is State.CANCELLED:
        error: NemotronError = Cancelled(f"{record.order.step}: the job was cancelled{_words(status)}.")
        ledger.change(record.key, phase="cancelled", status=status, error=str(error))
        raise error
    if status.state is not State.SUCCEEDED:
        error = failure(record, step, status, place, log)
        ledger.change(record.key, phase="failed", status=status, error=str(error))
        raise error
    with held(place.staging.with_name(f".{place.staging.name}.finishing")):  # who adopted the same job may be here too
        if not isinstance(place.final, Path):
            reporter.note(f"publishing to {place.final}")
        if not target.shares_files and published(place) is None:
            reporter.note(f"fetching the output from {target.job_directory(record.key)}")
            target.collect(handle, place.output)
        ledger.owe(record.key)
        try:
            ref = publish_output(record, handle, place)
        except InvalidOutput as e:
            ledger.change(record.key, phase="failed", status=status, error=str(e))
            ledger.recorded(record.key)
            raise
        given = record.order.delivery
        if given is not None:
            wanted = Delivery(str(given["key"]), Path(str(given["path"])), bool(given["force"]))
            if not delivery.delivered(wanted, ref):
                reporter.log(f"{delivery.said(delivery.deliver(wanted, ref), ref)}\n".encode())
        ledger.change(record.key, phase="published", status=status, uri=ref.uri)
    return ref


class InvalidOutput(ArtifactError):
    """The job succeeded, but what it wrote is no valid artifact; it was set aside."""


def publish_output(record: Record, handle: JobHandle, place: Slot) -> ArtifactRef:
    """Validate what the job wrote, draw it, and publish it.

    Raises:
        InvalidOutput: it is not a valid artifact; it is set aside for a look, and the next run starts afresh.
        ArtifactError: the store cannot be reached.
    """
    from nemotron_dagster.artifacts.describe import draw, headline

    order = record.order
    if not place.output.is_dir() and (found := published(place)) is not None:
        return found  # another process that adopted the same job has published it
    if problem := gone(place, record.key):
        raise InvalidOutput(f"{order.step}: job {record.key} ended, but {problem} Run it again.")
    inner = _real(place.output, order.path)
    try:
        facts = artifacts.validate(order.type, place.output / inner)
    except ArtifactError as e:
        aside = set_aside(place)
        raise InvalidOutput(
            f"{order.step} ended, but its output is no valid {order.type}; it was not published.\n"
            f"{str(e).replace(str(place.output), str(aside))}\nIt lies in {aside} for a look."
        ) from e
    messages = read_messages(place.messages)
    reported: dict[str, Any] = {}
    for message in messages:
        if message.get("type") == "result":
            reported |= message.get("facts", {})
    facts["pictures"] = draw(order.type, place.output, facts, reported, messages)
    files, content, size = tally(place.output, place.digests)
    manifest = Manifest(
        type=order.type,
        producer=order.step,
        step=order.step,
        partition=order.partition,
        asset=list(order.asset),
        key=record.key,
        path=inner,
        config=order.config,
        config_digest=order.digest,
        code_digest=order.code,  # of what ran, not of what lies there now
        inputs=[dict(row) for row in order.inputs],
        facts=facts,
        reported=reported,
        files=files,
        content=content,
        bytes=size,
        created=now(),
        job=handle.as_dict(),
        settings=dict(order.settings),
        git=dict(order.git or {}),
        counts=fingerprints.counts(len(files), headline(order.type, facts, reported)),
    )
    return publish(place, replace(manifest, **fingerprints.of(facts, reported, order.known)))


def failure(record: Record, step: Step | None, status: Status, place: Slot, log: bytes) -> NemotronError:
    """The error of a failed job: the payload's own words where it left some, else the end of its log."""
    order, handle = record.order, record.handle
    assert handle is not None
    told = [m for m in read_messages(place.messages) if m.get("type") == "error" and m.get("time", 0) >= record.created]
    where = f"Log: {handle.directory}/log" if not status.raw else f"Log: nemotron runs logs {record.key}"
    if told and status.exit_code in (BAD_INPUT, NOT_BUILT):
        last = told[-1]
        errors = step.errors if step else ()
        known: Mapping[str, Any] = next((e for e in errors if e.get("name") == last.get("name")), {})
        recovery = last.get("recovery") or known.get("recovery") or ""
        kind = PayloadNotBuilt if status.exit_code == NOT_BUILT else JobFailed
        return kind(f"{order.step}: {last.get('message')}\n{recovery}".strip() + f"\n{where}")
    cause = likely_cause(status.raw or status.state, status.exit_code, log.decode("utf-8", errors="replace"))
    how = status.reason or f"exit code {status.exit_code}"
    again = (
        "Run it again to continue from its last checkpoint." if order.resumable else "Mend the cause and run it again."
    )
    told_by = f"Likely cause: {cause}\n" if cause else ""
    return JobFailed(f"{order.step}: the job failed ({how}).\n{told_by}{tail_of(log)}\n{where}. {again}")


def gone(place: Slot, key: str) -> str:
    """Why the staged output is not what this submission wrote, or nothing."""
    if not place.output.is_dir():
        return f"its output, {place.output}, is gone."
    try:
        owner = str(json.loads(place.owner.read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""
    return "" if owner == key else f"submission {owner} writes to {place.output} since."


def _words(status: Status) -> str:
    return f" ({status.reason})" if status.reason else ""


def _real(output: Path, path: str) -> str:
    """``path`` below ``output`` with symlinks (LATEST) resolved, as a relative path."""
    try:
        return (output / path).resolve(strict=True).relative_to(output.resolve()).as_posix()
    except (FileNotFoundError, ValueError):
        return path
