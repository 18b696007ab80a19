"""One step run, from compiled spec to published artifact. Knows nothing of Dagster.

preflight  ->  submit (or adopt)  ->  watch  ->  validate, picture, publish
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nemotron_dagster import artifacts
from nemotron_dagster.artifacts import delivery, fingerprints
from nemotron_dagster.artifacts.localize import local_path
from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest, now, tally, write_json
from nemotron_dagster.artifacts.places import scratch
from nemotron_dagster.artifacts.port_locks import Result
from nemotron_dagster.artifacts.store import Slot, publish, published, set_aside, slot
from nemotron_dagster.catalog import Step
from nemotron_dagster.config.compile import JobSpec, bind_output
from nemotron_dagster.config.secrets import redact
from nemotron_dagster.errors import ArtifactError, Cancelled, JobFailed, PayloadNotBuilt, PreflightError
from nemotron_dagster.jobs.inputs import check_inputs, check_locks, refuse
from nemotron_dagster.jobs.submission import gpus_per_node, here, interpreter, node_count, submission, variables
from nemotron_dagster.jobs.target import JobHandle, State, Status, Target
from nemotron_dagster.project import Project, bundled

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place

_POLL = (0.1, 1.0)  # seconds: first and longest pause between two looks at the job
_ASK = 2.0  # seconds between two questions whether the run is still wanted: each is a query of Dagster's database
NOT_BUILT, BAD_INPUT = 9, 3  # exit codes of steps/_runtime/payload.py


class Reporter(Protocol):
    """Who watches the run: the CLI's live line, or Dagster's log."""

    def note(self, text: str) -> None:
        """A fact worth a line: adopted, inputs, where things lie."""

    def log(self, data: bytes) -> None:
        """A piece of the job's own output."""

    def progress(self, step: int | None, total: int | None, metrics: Mapping[str, float]) -> None:
        """The job's latest progress message."""


@dataclass(frozen=True)
class Request:
    """What to run and where it belongs.

    Attributes:
        asset: asset key of the result.
        identity: root run id: a retry of the run has the same one, a deliberate new run another.
        inputs: port name -> upstream artifact.
        artifact_root: where managed artifacts live.
    """

    spec: JobSpec
    asset: tuple[str, ...]
    identity: str
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)
    artifact_root: Place = Path()
    partition: str | None = None


def job_key(request: Request) -> str:
    """The digest that names the submission: (asset, partition, root run, compiled spec)."""
    body = [list(request.asset), request.partition, request.identity, request.spec.digest]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:20]


def run_step(
    project: Project,
    target: Target,
    request: Request,
    reporter: Reporter,
    submitted: Callable[[JobHandle], None] = lambda handle: None,
    unwanted: Callable[[], bool] = lambda: False,
    locked: Callable[[list[Result]], None] = lambda results: None,
) -> ArtifactRef:
    """Run one step and publish its artifact.

    ``locked`` is told what the step's locks say, ``submitted`` the job's handle before it is watched; once
    ``unwanted`` is true the job is cancelled.

    Raises:
        PayloadNotBuilt, PreflightError, ArtifactError: refused; nothing was submitted.
        JobFailed, Cancelled: the job ended badly; its log is kept, a resumable step continues next time.
    """
    spec = request.spec
    handle, place = submit(project, target, request, reporter, locked)
    submitted(handle)
    status = watch(target, handle, place, reporter, unwanted)
    if status.state is State.CANCELLED:
        raise Cancelled(f"{spec.step.id}: the job was cancelled. Its log: {handle.directory}/log.")
    if status.state is not State.SUCCEEDED:
        raise _failure(spec.step, handle, place, status)
    if not isinstance(place.final, Path):
        reporter.note(f"publishing to {place.final}")
    with _claimed(request.artifact_root, place):  # whoever adopted the same job may be here too
        ref = publish_output(request, handle, place)
    if spec.delivery is not None:
        path = delivery.deliver(spec.delivery, ref)
        reporter.log(f"{delivery.said(path, ref)}\n".encode())
    return ref


def submit(
    project: Project,
    target: Target,
    request: Request,
    reporter: Reporter,
    locked: Callable[[list[Result]], None] = lambda results: None,
) -> tuple[JobHandle, Slot]:
    """Check everything that can be checked before anything runs, then submit or adopt."""
    spec, step, key = request.spec, request.spec.step, job_key(request)
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
    place = _slot(request, key)
    check_hardware(target, spec)
    variables(spec)  # a secret that is not set is told before anything is built
    python = interpreter(project, spec, reporter.note)
    code = code_digest(step)
    with _claimed(request.artifact_root, place):
        if (found := _earlier(target, place, code)) is not None:
            reporter.note(f"adopting job {found.key}, which an earlier start of this very spec left behind")
            return found, _slot(request, found.key)
        if place.staging.exists() and not step.resumable:
            shutil.rmtree(place.staging)
        if place.output.is_dir() and any(place.output.iterdir()):
            reporter.note("continuing from what an earlier, unfinished job of this spec left behind")
        place.output.mkdir(parents=True, exist_ok=True)
        config = bind_output(spec, step.produces[0], place.output)
        directory = target.job_directory(key)
        inputs = [ref.uri for ref in request.inputs.values()]  # `artifacts gc` leaves them alone
        write_json(place.owner, {**JobHandle("", key, str(directory)).as_dict(), "code": code, "inputs": inputs})
        layout = here(project, spec, directory, place.output, place.messages)
        handle = target.submit(submission(spec, key, python, layout, config))
    return handle, place


def watch(target: Target, handle: JobHandle, place: Slot, reporter: Reporter, unwanted: Callable[[], bool]) -> Status:
    """Stream the job's log and progress until it ends; its final status."""
    offset = sent = 0
    pause = _POLL[0]
    asked = time.monotonic()
    while True:
        if time.monotonic() - asked > _ASK:
            asked = time.monotonic()
            if unwanted():
                target.cancel(handle)
        status = target.statuses([handle])[handle.key]
        while chunk := target.read_log(handle, offset):
            offset += len(chunk)
            reporter.log(chunk)
            pause = _POLL[0]
        sent = _progress(place, sent, reporter)
        if status.state.final:
            return status
        time.sleep(pause)
        pause = min(pause * 1.5, _POLL[1])


def publish_output(request: Request, handle: JobHandle, place: Slot) -> ArtifactRef:
    """Validate what the job wrote, draw it, and publish it.

    Raises:
        ArtifactError: the output is not a valid artifact; it is set aside for a look, and the next run starts afresh.
    """
    from nemotron_dagster.artifacts.describe import draw, headline

    spec, port = request.spec, request.spec.step.produces[0]
    if not place.output.is_dir() and (found := published(place)) is not None:
        return found  # another process that adopted the same job has published it
    inner = _real(place.output, port.path)
    try:
        facts = artifacts.validate(port.type, place.output / inner)
    except ArtifactError as e:
        aside = set_aside(place)
        raise ArtifactError(
            f"{spec.step.id} ended, but its output is no valid {port.type}; it was not published.\n"
            f"{str(e).replace(str(place.output), str(aside))}\nIt lies in {aside} for a look."
        ) from e
    messages = read_messages(place.messages)
    reported: dict[str, Any] = {}
    for message in messages:
        if message.get("type") == "result":
            reported |= message.get("facts", {})
    facts["pictures"] = draw(port.type, place.output, facts, reported, messages)
    files, content, size = tally(place.output, place.digests)
    manifest = Manifest(
        type=port.type,
        producer=spec.step.id,
        step=spec.step.id,
        partition=request.partition,
        asset=list(request.asset),
        key=handle.key,
        path=inner,
        config=spec.config,
        config_digest=spec.digest,
        code_digest=json.loads(place.owner.read_text(encoding="utf-8"))[
            "code"
        ],  # of what ran, not of what lies there now
        inputs=_lineage(request),
        facts=facts,
        reported=reported,
        files=files,
        content=content,
        bytes=size,
        created=now(),
        job=handle.as_dict(),
        settings=json.loads(json.dumps(redact(spec.train), default=str)),
        counts=fingerprints.counts(len(files), headline(port.type, facts, reported)),
    )
    known = fingerprints.of(facts, reported, [vars(r.manifest) for r in request.inputs.values()])
    return publish(place, replace(manifest, **known))


def code_digest(step: Step) -> str:
    """sha256 over the step's folder and the runtime that the payloads share."""
    state = hashlib.sha256()
    for root in (step.directory, bundled("steps") / "_runtime"):
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                state.update(file.relative_to(root).as_posix().encode() + b"\0")
                state.update(file.read_bytes())
    return state.hexdigest()


def read_messages(file: Path) -> list[dict[str, Any]]:
    """The payload's messages so far; a line that is still being written is left out."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    messages = []
    for line in lines:
        try:
            messages.append(json.loads(line))
        except ValueError:
            continue
    return messages


def check_hardware(target: Target, spec: JobSpec) -> None:
    """Refuse a job that needs more than the target offers.

    Raises:
        PreflightError: too many nodes or GPUs, or a working directory that only its container image has.
    """
    offered = target.hardware()
    if offered is None:
        return
    needed, nodes, workdir = gpus_per_node(spec), node_count(spec), spec.step.runspec and spec.step.runspec.workdir
    if nodes > offered.nodes:
        raise PreflightError(
            f"{spec.step.id} -c {spec.config} needs {nodes} nodes; this target has {offered.nodes}. "
            "Use -c tiny, a profile of a cluster (-r PROFILE), or run.env.nodes=1."
        )
    if workdir and not Path(workdir).is_dir():
        raise PreflightError(
            f"{spec.step.id} runs in {workdir}, which is not on this machine: it is part of its container image. "
            "Use a profile that runs containers (-r PROFILE)."
        )
    if needed > offered.gpus_per_node:
        raise PreflightError(
            f"{spec.step.id} -c {spec.config} needs {needed} GPUs per node; this target has {offered.gpus_per_node}. "
            "Use -c tiny, a profile with GPUs (-r PROFILE), or run.env.gpus_per_node=N."
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


def _earlier(target: Target, place: Slot, code: str) -> JobHandle | None:
    """The job that writes to this staging directory now, or has finished there and was never published."""
    try:
        owner = json.loads(place.owner.read_text(encoding="utf-8"))
        same = owner.pop("code", None) == code
        owner.pop("inputs", None)
        found = target.find(JobHandle(**owner).key)
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None
    if found is None:
        return None
    state = target.statuses([found])[found.key].state
    return found if not state.final or (state is State.SUCCEEDED and same) else None


def _progress(place: Slot, seen: int, reporter: Reporter) -> int:
    messages = read_messages(place.messages)
    for message in messages[seen:]:
        if message.get("type") == "progress":
            reporter.progress(message.get("step"), message.get("total"), message.get("metrics") or {})
    return len(messages)


def _failure(step: Step, handle: JobHandle, place: Slot, status: Status) -> Exception:
    """The error of a failed job: the payload's own words where it left some, else the end of its log."""
    began = place.owner.stat().st_mtime - 1 if place.owner.exists() else 0.0
    told = [m for m in read_messages(place.messages) if m.get("type") == "error" and m.get("time", 0) >= began]
    log = Path(handle.directory, "log")
    if told and status.exit_code in (BAD_INPUT, NOT_BUILT):
        last = told[-1]
        recovery = last.get("recovery") or next(
            (e["recovery"] for e in step.errors if e.get("name") == last.get("name")), ""
        )
        kind = PayloadNotBuilt if status.exit_code == NOT_BUILT else JobFailed
        return kind(f"{step.id}: {last.get('message')}\n{recovery}".strip() + f"\nLog: {log}")
    tail = ""
    if log.is_file():
        tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-12:])
    how = status.reason or f"exit code {status.exit_code}"
    again = (
        "Run it again to continue from its last checkpoint." if step.resumable else "Mend the cause and run it again."
    )
    return JobFailed(f"{step.id}: the job failed ({how}).\n{tail}\nLog: {log}. {again}")


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


def _real(output: Path, path: str) -> str:
    """``path`` below ``output`` with symlinks (LATEST) resolved, as a relative path."""
    try:
        return (output / path).resolve(strict=True).relative_to(output.resolve()).as_posix()
    except (FileNotFoundError, ValueError):
        return path
