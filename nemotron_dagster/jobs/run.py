"""One step run, from compiled spec to published artifact. Knows nothing of Dagster.

preflight  ->  ledger  ->  submit (or adopt)  ->  watch  ->  validate, picture, publish
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts import delivery
from nemotron_dagster.artifacts.localize import local_path
from nemotron_dagster.artifacts.manifest import ArtifactRef, write_json
from nemotron_dagster.artifacts.places import scratch
from nemotron_dagster.artifacts.port_locks import Result
from nemotron_dagster.artifacts.store import Slot, slot
from nemotron_dagster.catalog import Step
from nemotron_dagster.config.compile import JobSpec, bind_output
from nemotron_dagster.config.places import Relocation
from nemotron_dagster.config.secrets import redact
from nemotron_dagster.errors import PayloadNotBuilt, PreflightError, TargetError
from nemotron_dagster.jobs.board import board
from nemotron_dagster.jobs.inputs import check_inputs, check_locks, refuse
from nemotron_dagster.jobs.ledger import OPEN, Ledger, Order, Record, ledger
from nemotron_dagster.jobs.messages import Reporter
from nemotron_dagster.jobs.publish import finish, slot_of
from nemotron_dagster.jobs.submission import (
    gpus_per_node,
    here,
    moved,
    node_count,
    payload_python,
    references,
    submission,
    variables,
)
from nemotron_dagster.jobs.target import State, Target, relocation_of
from nemotron_dagster.jobs.watch import Watch
from nemotron_dagster.project import Project, bundled

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place


@dataclass(frozen=True)
class Request:
    """What to run and where it belongs.

    Attributes:
        asset: asset key of the result.
        identity: root run id: a retry of the run has the same one, a deliberate new run another.
        inputs: port name -> upstream artifact.
        artifact_root: where managed artifacts live.
        detached: nobody will watch it; a sensor or `nemotron runs sync` publishes what it makes.
        new: do not adopt a job of the very same spec that another run has left or is watching.
        run: id of the Dagster run.
    """

    spec: JobSpec
    asset: tuple[str, ...]
    identity: str
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)
    artifact_root: Place = Path()
    partition: str | None = None
    detached: bool = False
    new: bool = False
    run: str | None = None


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
    handle = record.handle
    assert handle is not None
    place = slot_of(record.order, record.key)
    cursor = book.root / "cursors" / f"{record.key}-{run}.json" if run and target.cluster else None
    if cursor is not None:
        cursor.parent.mkdir(parents=True, exist_ok=True)
    watch = Watch(target, board(project.state, book), place, reporter, unwanted, cursor)
    with book.watched(record.key):
        status = watch.until_ended(handle)
        while status.state.interrupted and record.order.resumable and len(record.handles) < record.max_chain:
            target.release(handle)
            reporter.note(
                f"the job ended by {status.state.lower().replace('_', ' ')}; continuing in job "
                f"{len(record.handles) + 1} of at most {record.max_chain}"
            )
            handle = target.submit(follow_up(record, len(record.handles) + 1))
            record = book.change(record.key, handle=handle)
            status = watch.until_ended(handle)
        ref = finish(target, book, record, status, step, watch.tail, reporter)
    if cursor is not None:
        cursor.unlink(missing_ok=True)
    return ref


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
    results = check_locks(spec, check_inputs(spec, request.inputs))
    locked(results)
    refuse(step, results)
    book = ledger(project.state)
    key, known = _attempt(book, request)
    place = _slot(request, key)
    check_hardware(target, spec)
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
        if (not request.new and _occupied(book, place)) or request.new:
            place = replace(place, staging=place.staging.with_name(f"{place.staging.name}-{key}"))
        if place.staging.exists() and not step.resumable:
            shutil.rmtree(place.staging)
        if place.output.is_dir() and any(place.output.iterdir()):
            reporter.note("continuing from what an earlier, unfinished job of this spec left behind")
        place.output.mkdir(parents=True, exist_ok=True)
        record = _record(project, target, request, key, place, code, results)
        inputs = [ref.uri for ref in request.inputs.values()]  # `artifacts gc` leaves them alone
        owner = {"key": key, "record": str(book.root / "open" / f"{key}.json"), "code": code, "inputs": inputs}
        write_json(place.owner, owner)
        job = _submission(project, target, request, key, place, python, relocation)
        record = book.put(replace(record, job=_written(job), references=references(spec)))
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


def follow_up(record: Record, number: int) -> Any:
    """The next job of a walltime chain: the same one under another key.

    Raises:
        ProfileError: a variable that a secret refers to is not set.
    """
    from nemotron_dagster.config.references import reveal
    from nemotron_dagster.jobs.target import Submission

    data = dict(record.job)
    lacking = [name for name in data.pop("lacking", ()) if name]
    if lacking:
        raise TargetError(
            f"{record.key}: cannot be continued from here: {lacking[0]} is a secret that env.toml holds itself. Write "
            f'"${{oc.env:{lacking[0]}}}" there.'
        )
    for name in ("argv", "mounts", "startup", "visible"):
        data[name] = tuple(data[name])
    data["code"] = Path(data["code"]) if data.get("code") else None
    secrets = {k: reveal(v) for k, v in record.references.items()}
    return replace(Submission(**data, secrets=secrets), key=f"{record.key}-{number}")


def code_digest(step: Step) -> str:
    """sha256 over the step's folder and the runtime that the payloads share."""
    state = hashlib.sha256()
    for root in (step.directory, bundled("steps") / "_runtime"):
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                state.update(file.relative_to(root).as_posix().encode() + b"\0")
                state.update(file.read_bytes())
    return state.hexdigest()


def check_hardware(target: Target, spec: JobSpec) -> None:
    """Refuse a job that needs more than the target offers.

    Raises:
        PreflightError: too many nodes or GPUs, or a working directory that only its container image has.
    """
    offered = target.hardware()
    if offered is None:
        return
    needed, nodes, workdir = gpus_per_node(spec), node_count(spec), spec.step.runspec and spec.step.runspec.workdir
    if offered.nodes is not None and nodes > offered.nodes:
        raise PreflightError(
            f"{spec.step.id} -c {spec.config} needs {nodes} nodes; {offered.where} has {offered.nodes}. "
            "Use -c tiny, a profile of a cluster (-r PROFILE), or run.env.nodes=1."
        )
    if workdir and not target.cluster and not Path(workdir).is_dir():
        raise PreflightError(
            f"{spec.step.id} runs in {workdir}, which is not on this machine: it is part of its container image. "
            "Use a profile that runs containers (-r PROFILE)."
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
    state = target.statuses([record.handle])[record.handle.key].state
    return record if not state.final or (state is State.SUCCEEDED and owner.get("code") == code) else None


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


def _record(
    project: Project,
    target: Target,
    request: Request,
    key: str,
    place: Slot,
    code: str,
    locks: list[Result],
) -> Record:
    spec, port = request.spec, request.spec.step.produces[0]
    environment = spec.environment
    given = spec.delivery
    order = Order(
        step=spec.step.id,
        config=spec.config,
        digest=spec.digest,
        code=code,
        asset=request.asset,
        type=port.type,
        path=port.path,
        root=str(request.artifact_root),
        staging=str(place.staging),
        partition=request.partition,
        output=str(spec.explicit_output) if spec.explicit_output else None,
        inputs=tuple(_lineage(request)),
        known=tuple(_known(r) for r in request.inputs.values()),
        settings=json.loads(json.dumps(redact(spec.train), default=str)),
        delivery={"key": given.key, "path": str(given.path), "force": given.force} if given else None,
        resumable=spec.step.resumable,
        locks=tuple(asdict(r) for r in locks),
    )
    private = ("env_vars", "startup_commands", "run_command", "setup_lines")
    own = {k: v for k, v in environment.items() if k not in private}
    return Record(
        key=key,
        profile=spec.profile,
        executor=str(environment.get("executor") or "local"),
        cluster=target.cluster,
        settings=json.loads(json.dumps(redact(own), default=str)),
        order=order,
        detached=request.detached,
        max_chain=int(environment.get("max_chain") or 1),
        runs=(request.run,) if request.run else (),
    )


def _submission(
    project: Project,
    target: Target,
    request: Request,
    key: str,
    place: Slot,
    python: str,
    relocation: Relocation | None,
) -> Any:
    """The job as the target gets it: its layout there, its inputs and its code brought there."""
    spec = request.spec
    if relocation is None:
        layout = here(project, spec, Path(target.job_directory(key)), place.output, place.messages)
    else:
        layout = moved(spec, relocation, key)
        if target.shares_files:
            layout = replace(layout, output=str(place.output), messages=str(place.messages))
    config = bind_output(spec, spec.step.produces[0], Path(layout.output))
    used = {local_path(ref): ref.manifest.content for ref in request.inputs.values()}
    sent = target.send(used)
    config = with_paths(config, {str(k): v for k, v in sent.items()})
    job = submission(spec, key, python, layout, config)
    if relocation is None:
        return job
    visible = (str(place.staging), *(str(p) for p in used)) if target.shares_files else ()
    return replace(job, visible=visible, code=_code(project, spec))


def _code(project: Project, spec: JobSpec) -> Path | None:
    from nemotron_dagster.jobs.packaging import package

    return package(project, spec.step, spec.environment, project.state / "code")


def with_paths(value: Any, moved: Mapping[str, str]) -> Any:
    """``value`` with every path at or below one of ``moved`` replaced by where it lies on the target."""
    if not moved:
        return value
    if isinstance(value, Mapping):
        return {k: with_paths(v, moved) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [with_paths(v, moved) for v in value]
    if isinstance(value, str):
        for old, new in moved.items():
            if value == old or value.startswith(f"{old}/"):
                return new + value[len(old) :]
    return value


def _written(job: Any) -> dict[str, Any]:
    """A submission as the ledger keeps it: names of its secrets, never their values."""
    from nemotron_dagster.config.secrets import looks_secret

    data = {k: v for k, v in vars(job).items() if k != "secrets"}
    data["code"] = str(job.code) if job.code else None
    data["env"] = {k: v for k, v in job.env.items() if not looks_secret(v)}
    return {**json.loads(json.dumps(data, default=str))}


def _slot(request: Request, key: str) -> Slot:
    spec = request.spec
    return slot(request.artifact_root, request.asset, spec.digest, key, spec.explicit_output, request.partition)


def _lineage(request: Request) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"port": n, "type": r.type, "uri": r.uri, "content": r.manifest.content, "manifest": r.digest}
        | {"asset": r.manifest.asset}
        for n, r in request.inputs.items()
    ]
    rows += [{"port": n, "external": True, "uri": uri} for n, uri in request.spec.external.items()]
    return rows


def _known(ref: ArtifactRef) -> dict[str, Any]:
    """What an artifact made from this one takes over from its manifest."""
    manifest = ref.manifest
    return {"tokenizer": manifest.tokenizer, "chat_template": manifest.chat_template}
