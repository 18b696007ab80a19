"""What is written down and shipped before a job runs: its record, its layout, its code, its inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts.digests import file_digest, tally
from nemotron_dagster.artifacts.localize import local_path
from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.artifacts.port_locks import Result
from nemotron_dagster.artifacts.store import Slot
from nemotron_dagster.catalog import Step
from nemotron_dagster.config.compile import JobSpec, bind_output
from nemotron_dagster.config.keys import get
from nemotron_dagster.config.places import Relocation
from nemotron_dagster.config.references import reveal
from nemotron_dagster.config.secrets import redact
from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.ledger import Order, Record
from nemotron_dagster.jobs.packaging import git_state, package
from nemotron_dagster.jobs.submission import here, moved, submission
from nemotron_dagster.jobs.target import Submission, Target
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


def record_of(
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
        git=git_state(project),
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


def submission_of(
    project: Project,
    target: Target,
    request: Request,
    key: str,
    place: Slot,
    python: str,
    relocation: Relocation | None,
    say: Callable[[str], None],
) -> Submission:
    """The job as the target gets it: its layout there, its inputs and its code brought there."""
    spec = request.spec
    if relocation is None:
        layout = here(project, spec, Path(target.job_directory(key)), place.output, place.messages)
    else:
        layout = moved(spec, relocation, key)
        if target.shares_files:
            layout = replace(layout, output=str(place.output), messages=str(place.messages))
        else:  # a directory that the user named is on this machine: what the job makes is brought there
            layout = replace(layout, output=f"{layout.directory}/output")
    config = bind_output(spec, spec.step.produces[0], Path(layout.output))
    used = {local_path(ref): ref.manifest.content for ref in request.inputs.values()}
    named = _named(spec) if relocation is not None else {}
    used |= {path: "" if target.shares_files else _content(path) for path in named.values()}
    sent = target.send(used)
    places = {value: sent.get(str(path), str(path)) for value, path in named.items()}
    if relocation is not None:
        places[relocation.run] = layout.directory  # which names no key yet
    config = with_paths(config, places | {str(k): v for k, v in sent.items()})
    job = submission(spec, key, python, layout, config)
    if relocation is None:
        return job
    visible = (str(place.staging), *(str(p) for p in used)) if target.shares_files else ()
    return replace(
        job, visible=visible, code=package(project, spec.step, spec.environment, project.state / "code", say)
    )


class NoSecret(TargetError):
    """A secret of a submission cannot be had again."""


def follow_up(record: Record, number: int) -> Submission:
    """The next job of a walltime chain: the same one under another key.

    Raises:
        NoSecret: env.toml holds a secret itself.
        ProfileError: a variable that a secret refers to is not set.
    """
    data = dict(record.job)
    lacking = [name for name in data.pop("secret_names") if name not in record.references]
    if lacking:
        raise NoSecret(
            f"{record.key}: cannot be continued from here: {lacking[0]} is a secret that env.toml holds itself. Write "
            f'"${{oc.env:{lacking[0]}}}" there.'
        )
    for name in ("argv", "mounts", "startup", "visible"):
        data[name] = tuple(data[name])
    data["code"] = Path(data["code"]) if data.get("code") else None
    secrets = {k: reveal(v) for k, v in record.references.items()}
    return replace(Submission(**data, secrets=secrets), key=f"{record.key}-{number}")


def _named(spec: JobSpec) -> dict[str, Path]:
    """Inputs that the user named and that lie on this machine: the path in the config -> the path here."""
    binds = {port.name: port.bind for port in spec.step.consumes if port.bind}
    found = {n: Path(path).expanduser() for n, path in spec.external.items() if n in binds}
    return {str(get(spec.train, binds[n])): p for n, p in found.items() if p.is_absolute() and p.exists()}


def _content(path: Path) -> str:
    """The digest of a directory or a file."""
    return tally(path)[1] if path.is_dir() else file_digest(path)


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


def code_digest(step: Step) -> str:
    """sha256 over the step's folder and the runtime that the payloads share."""
    state = hashlib.sha256()
    for root in (step.directory, bundled("steps") / "_runtime"):
        for file in sorted(root.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                state.update(file.relative_to(root).as_posix().encode() + b"\0")
                state.update(file.read_bytes())
    return state.hexdigest()


def written(job: Submission) -> dict[str, Any]:
    """A submission as the ledger keeps it: names of its secrets, never their values."""
    data = {k: v for k, v in vars(job).items() if k != "secrets"}
    data["code"] = str(job.code) if job.code else None
    data["secret_names"] = sorted(job.secrets)
    return {**json.loads(json.dumps(data, default=str))}


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
