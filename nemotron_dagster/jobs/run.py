"""One step run, from compiled spec to published artifact. Knows nothing of Dagster.

preflight  ->  ledger  ->  submit (or adopt)  ->  watch  ->  validate, picture, publish
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_dagster.artifacts import delivery
from nemotron_dagster.artifacts.localize import local_path
from nemotron_dagster.artifacts.manifest import ArtifactRef, write_json
from nemotron_dagster.artifacts.places import scratch
from nemotron_dagster.artifacts.port_locks import Result
from nemotron_dagster.artifacts.store import Slot, slot
from nemotron_dagster.catalog import Step
from nemotron_dagster.config.compile import JobSpec
from nemotron_dagster.errors import PayloadNotBuilt, PreflightError, TargetError
from nemotron_dagster.jobs.board import board
from nemotron_dagster.jobs.chain import Ended, give_up, next_job, submit_again
from nemotron_dagster.jobs.ledger import OPEN, Ledger, Record, ledger
from nemotron_dagster.jobs.memory import check_memory
from nemotron_dagster.jobs.messages import Reporter
from nemotron_dagster.jobs.preflight import examine, refuse
from nemotron_dagster.jobs.prepare import Request, code_digest, record_of, submission_of, written
from nemotron_dagster.jobs.publish import finish, slot_of
from nemotron_dagster.jobs.submission import (
    gpus_per_node,
    node_count,
    payload_python,
    references,
    variables,
    workdir,
)
from nemotron_dagster.jobs.target import State, Status, Target, relocation_of
from nemotron_dagster.jobs.watch import Watch
from nemotron_dagster.project import Project

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place


def job_key(request: Request, attempt: int = 0) -> str:
    """The digest that names the submission: (asset, partition, root run, compiled spec), and which try it is."""
    body = [list(request.asset), request.partition, request.identity, request.spec.digest]
    return hashlib.sha256(json.dumps([*body, *([attempt] if attempt else [])]).encode()).hexdigest()[:20]


def run_step(
    project: Project,
    target: Target,
    request: Request,
    reporter: Reporter,
    submitted: Callable[[Record], None] = lambda record: None,
    unwanted: Callable[[], bool] = lambda: False,
    locked: Callable[[list[Result]], None] = lambda results: None,
) -> ArtifactRef:
    """Run one step and publish its artifact.

    ``locked`` is told what the step's locks say, ``submitted`` the submission before it is watched; once
    ``unwanted`` is true the job is cancelled.

    Raises:
        PayloadNotBuilt, PreflightError, ArtifactError: refused; nothing was submitted.
        JobFailed, Cancelled: the job ended badly; its log is kept, a resumable step continues next time.
        TargetError: the target refused the job, or could not be reached for long.
    """
    record = submit(project, target, request, reporter, locked)
    with ledger(project.state).watched(record.key):
        submitted(record)
        return follow(project, target, record, reporter, unwanted, request.spec.step, request.run)


def follow(
    project: Project,
    target: Target,
    record: Record,
    reporter: Reporter,
    unwanted: Callable[[], bool] = lambda: False,
    step: Step | None = None,
    run: str | None = None,
) -> ArtifactRef:
    """Watch a submission to its end and publish its artifact; a step that can resume goes on in follow-up jobs.

    Raises:
        As ``run_step``.
    """
    book = ledger(project.state)
    if run is not None:
        record = book.change(record.key, run=run)
    place = slot_of(record.order, record.key)
    cursor = book.root / "cursors" / f"{record.key}-{run}.json" if run and target.cluster else None
    if cursor is not None:
        cursor.parent.mkdir(parents=True, exist_ok=True)
    watch = Watch(target, board(project.state, book), place, reporter, unwanted, cursor)
    with book.watched(record.key):
        record, status = _last(target, book, record, watch, unwanted)
        ref = finish(target, book, record, status, step, watch.tail, reporter)
    if cursor is not None:
        cursor.unlink(missing_ok=True)
    return ref


def _last(
    target: Target, book: Ledger, record: Record, watch: Watch, unwanted: Callable[[], bool]
) -> tuple[Record, Status]:
    """The submission with its last job, and how that ended."""
    while True:
        assert record.handle is not None
        status = watch.until_ended(record.handle)
        if status.never_began and unwanted():
            handle, status = give_up(target, record, record.handle, status)
            if status.state.final:
                return record, status
            target.cancel(handle)
            record = book.change(record.key, handle=handle)
            continue
        if not status.never_began and not (status.state.interrupted and record.may_continue):
            return record, status
        try:
            before = record
            if status.never_began:
                record = submit_again(target, book, record, watch.reporter.note)
            else:
                record = next_job(target, book, record, status, watch.reporter.note)
        except Ended as e:
            watch.reporter.note(str(e))
            return record, status
        if record.handle == before.handle:
            time.sleep(1.0)  # it has begun after all, and the scheduler will know it again


def submit(
    project: Project,
    target: Target,
    request: Request,
    reporter: Reporter,
    locked: Callable[[list[Result]], None] = lambda results: None,
) -> Record:
    """Check everything that can be checked before anything runs, then submit or adopt.

    Raises:
        As ``run_step``.
    """
    spec, step = request.spec, request.spec.step
    if not step.ready:
        raise PayloadNotBuilt(
            f"{step.id} is in the catalog, but its payload is not built yet; nothing was run. "
            f"`nemotron steps show {step.id}` prints its contract."
        )
    if spec.delivery is not None:
        delivery.check(spec.delivery)
    target.check()
    for port, ref in request.inputs.items():
        if not local_path(ref).exists():
            reporter.note(f"input {port}: downloading {ref.manifest.bytes / 1e6:,.1f} MB from {ref.uri}")
    results = examine(project, spec, request.inputs)
    locked(results)
    refuse(step, results)
    book = ledger(project.state)
    key, known = _attempt(book, request)
    place = _slot(request, key)
    check_hardware(target, spec)
    memory = check_memory(project, spec)
    if memory is not None and (doubt := memory.doubt()):
        reporter.note(doubt)
    variables(spec)  # a secret that is not set is told before anything is built
    relocation = relocation_of(project, spec.profile, spec.environment, step.runspec.image if step.runspec else None)
    python = payload_python(project, spec, target, relocation is not None, reporter.note)
    code = code_digest(step)
    with _claimed(request.artifact_root, place):
        if known is None and not request.new:
            known = _earlier(book, target, place, code)
        if known is not None and (found := _adopt(book, target, known)) is not None:
            reporter.note(f"adopting job {found.key}, which an earlier start of this very spec left behind")
            return found
        if request.new or _occupied(book, place):
            place = replace(place, staging=place.staging.with_name(f"{place.staging.name}-{key}"))
        if place.staging.exists() and not step.resumable:
            shutil.rmtree(place.staging)
        if place.output.is_dir() and any(place.output.iterdir()):
            reporter.note("continuing from what an earlier, unfinished job of this spec left behind")
        place.output.mkdir(parents=True, exist_ok=True)
        record = record_of(project, target, request, key, place, code, results)
        record = replace(record, memory=memory.told() if memory else "")
        inputs = [ref.uri for ref in request.inputs.values()]  # `artifacts gc` leaves them alone
        owner = {"key": key, "record": str(book.root / "open" / f"{key}.json"), "code": code, "inputs": inputs}
        write_json(place.owner, owner)
        job = submission_of(project, target, request, key, place, python, relocation, reporter.note)
        with book.watched(key):  # nobody takes it for one whose submitter was killed
            record = book.put(replace(record, job=written(job), references=references(spec)))
            try:
                handle = target.submit(job)
            except (PreflightError, TargetError) as e:
                if target_refused(e):
                    book.change(key, phase="failed", error=str(e))
                raise
            return book.change(key, phase="submitted", handle=handle)


def cancel(project: Project, target: Target, record: Record) -> None:
    """Stop the job that a submission runs now.

    Raises:
        TargetError: the target could not be reached; the job goes on.
    """
    now = ledger(project.state).get(record.key) or record
    if now.handle is not None:
        target.cancel(now.handle)


def target_refused(error: Exception) -> bool:
    """Whether a target said no, so that nothing was submitted; else it may have been, and the ledger stays open."""
    return isinstance(error, PreflightError) or bool(getattr(error, "refused", False))


def check_hardware(target: Target, spec: JobSpec) -> None:
    """Refuse a job that needs more than the target offers.

    Raises:
        PreflightError: too many nodes or GPUs, or a working directory that only its container image has.
    """
    offered = target.hardware()
    if offered is None:
        return
    needed, nodes, start = gpus_per_node(spec), node_count(spec), workdir(spec)
    if offered.nodes is not None and nodes > offered.nodes:
        raise PreflightError(
            f"{spec.step.id} -c {spec.config} needs {nodes} nodes; {offered.where} has {offered.nodes}. "
            "Use -c tiny, a profile of a cluster (-r PROFILE), or run.env.nodes=1."
        )
    if start and not target.cluster and not Path(start).is_dir():
        raise PreflightError(
            f"{spec.step.id} runs in {start}, which is not on this machine: it is part of its container image. "
            "Use a profile that runs containers (-r PROFILE), or -c tiny."
        )
    if offered.gpus_per_node is not None and needed > offered.gpus_per_node:
        raise PreflightError(
            f"{spec.step.id} -c {spec.config} needs {needed} GPUs per node; {offered.where} has "
            f"{offered.gpus_per_node}. Use -c tiny, a profile with GPUs (-r PROFILE), or run.env.gpus_per_node=N."
        )


@contextmanager
def _claimed(root: Place, place: Slot) -> Iterator[None]:
    """Only one process at a time decides who writes to a staging directory, or publishes from it.

    Raises:
        PreflightError: the artifact root cannot be written.
    """
    root = scratch(root)
    try:
        (root / ".locks").mkdir(parents=True, exist_ok=True)
        lock = os.open(root / ".locks" / place.staging.name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        raise PreflightError(f"{root}: cannot be written ({e.strerror}). Choose another artifact root.") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _attempt(book: Ledger, request: Request) -> tuple[str, Record | None]:
    """The key of this try, and the submission that has it already: a retry adopts what runs or has succeeded."""
    attempt = 0
    while True:
        key = job_key(request, attempt)
        record = book.get(key)
        if record is None or record.phase not in ("failed", "cancelled"):
            return key, record
        attempt += 1


def _earlier(book: Ledger, target: Target, place: Slot, code: str) -> Record | None:
    """The submission that writes to this staging directory now, or has finished there and was never published."""
    try:
        owner = json.loads(place.owner.read_text(encoding="utf-8"))
        record = book.get(str(owner["key"]))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    if record is None or record.phase not in OPEN or record.cluster != target.cluster:
        return None
    if record.handle is None:
        return record if owner.get("code") == code else None
    status = target.statuses([record.handle])[record.handle.key]
    whole = status.state is State.SUCCEEDED or status.never_began
    return record if not status.state.final or (whole and owner.get("code") == code) else None


def _adopt(book: Ledger, target: Target, record: Record) -> Record | None:
    """The submission with the job it has; None where its submitter died before there was one."""
    if record.handle is not None:
        return record
    handle = target.find(record.key)
    return book.change(record.key, phase="submitted", handle=handle) if handle is not None else None


def _occupied(book: Ledger, place: Slot) -> bool:
    """Whether another open submission still writes to this staging directory."""
    try:
        owner = json.loads(place.owner.read_text(encoding="utf-8"))
        record = book.get(str(owner["key"]))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return False
    return record is not None and record.phase in OPEN and not book.orphaned(record.key)


def _slot(request: Request, key: str) -> Slot:
    spec = request.spec
    return slot(request.artifact_root, request.asset, spec.digest, key, spec.explicit_output, request.partition)
