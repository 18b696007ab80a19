"""What an execution target is: the Protocol that every module in ``resources/`` satisfies."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from nemotron_dagster.config.secrets import HIDDEN, is_secret, redact
from nemotron_dagster.errors import ProfileError, did_you_mean
from nemotron_dagster.project import Project

if TYPE_CHECKING:
    from pydantic import ValidationError

    from nemotron_dagster.config.compile import Relocation
    from nemotron_dagster.jobs.settings import CommonSettings


class State(StrEnum):
    """Where a job is. "Unreachable" is not a state: a target that cannot answer raises TargetError."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PREEMPTED = "PREEMPTED"
    NODE_FAIL = "NODE_FAIL"
    LOST = "LOST"

    @property
    def final(self) -> bool:
        return self not in (State.PENDING, State.RUNNING)

    @property
    def interrupted(self) -> bool:
        """Ended by the scheduler, not by itself: a step that can resume goes on in a follow-up job."""
        return self in (State.TIMEOUT, State.PREEMPTED, State.NODE_FAIL)


@dataclass(frozen=True)
class Status:
    """What a target says of a job; times are seconds since the epoch.

    Attributes:
        reason: in words, for people: the signal, the scheduler's reason.
        raw: the scheduler's own state.
        hopeless: it waits for something that will never be; whoever watches it cancels it.
        never_began: it is lost, and has run nothing: another job may do its work, once ``abandon`` has excluded it.
        nodes: the nodes it runs on, as the scheduler writes lists of them.
        estimate: when the scheduler expects it to start.
        gpus: GPUs in all.
        restarts: how often the scheduler has started it again.
        figures: what accounting says of the ended job, e.g. ``cpu_efficiency`` (0 to 1), ``max_rss_bytes``.
    """

    state: State
    exit_code: int | None = None
    reason: str = ""
    raw: str = ""
    hopeless: bool = False
    never_began: bool = False
    nodes: str = ""
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    estimate: float | None = None
    gpus: int = 0
    restarts: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None and v is not False and v not in ("", {})}


def status_from(data: Mapping[str, Any]) -> Status:
    """The inverse of ``Status.as_dict``."""
    return Status(**{**data, "state": State(data["state"])})


@dataclass(frozen=True)
class Chunk:
    """What a job wrote since the last look.

    Attributes:
        cursor: what to ask with next time; file -> offset. JSON-able.
        messages: the payload's messages, where the job does not write them on this machine.
        ended: the job has left its mark that it is over; only the scheduler tells how.
    """

    log: bytes
    cursor: Mapping[str, int]
    messages: bytes = b""
    ended: bool = False


#: Stands for the key of a job that is only previewed, in its directory and in paths below it.
ANY_KEY = "{key}"


@dataclass(frozen=True)
class Submission:
    """One job as a target needs it.

    Attributes:
        key: digest that names the job; submitting a known key adopts the job.
        argv: the payload's command, each argument exact, without launcher and startup commands.
        env: variables set for the job beside those it inherits; written to disk, so never a secret.
        secrets: variables that hold secrets; they reach the job's process and no file but a private one.
        cwd: the job's own directory, as the job sees it.
        files: name -> text, written to the job's directory before it starts.
        python: the interpreter of the payload; the first word of ``argv`` unless a template gave the command.
        launch: python | torchrun | ray.
        image: container image, where the target runs containers.
        gpus_per_node, processes_per_node: what the job gets on each node, and what torchrun starts there.
        mounts: storage the job sees, in the target's own form.
        startup: shell commands run before the payload, once per node.
        workdir: directory the payload starts in; default: the target's.
        mode: local | run | batch.
        visible: directories of this machine that the job reads or writes, where it shares its file system.
        code: archive of the code (.tar.gz) that is unpacked at ``<cwd>/code``, where the target moves it.
    """

    key: str
    step: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = "/"
    files: Mapping[str, str] = field(default_factory=dict)
    python: str = "python"
    launch: str = "python"
    image: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    processes_per_node: int = 1
    mounts: tuple[Any, ...] = ()
    startup: tuple[str, ...] = ()
    workdir: str | None = None
    mode: str = "local"
    visible: tuple[str, ...] = ()
    code: Path | None = None


@dataclass(frozen=True)
class Preview:
    """What submitting a job would do, exactly; names of variables, never values of secrets.

    Attributes:
        command: what the target runs (locally) or what submits it.
        script: the batch script, where there is one.
        request: the body of the request, where there is one.
        before: commands that run first where what they make is missing: importing an image, cloning a repository.
        files: name -> text of what is written to the job's directory.
    """

    target: str
    command: tuple[str, ...]
    directory: str
    workdir: str
    nodes: int
    gpus_per_node: int
    processes_per_node: int
    image: str | None = None
    mounts: tuple[Any, ...] = ()
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    script: str | None = None
    request: Mapping[str, Any] | None = None
    before: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobHandle:
    """The JSON-able reference by which any process finds the job again."""

    target: str
    key: str
    directory: str
    id: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Hardware:
    """What a target offers one job; None where it does not know."""

    gpus_per_node: int | None
    nodes: int | None = 1
    where: str = "this target"
    minutes: int | None = None


class Target(Protocol):
    """A place where jobs run."""

    @property
    def cluster(self) -> str:
        """Names the scheduler: jobs of targets with the same one are asked for in one call. "" asks nobody."""

    @property
    def shares_files(self) -> bool:
        """Whether jobs see this machine's file system: inputs and outputs then stay where they are."""

    def check(self) -> None:
        """Raise TargetError where this target takes no jobs; asked before anything is built or written."""

    def preview(self, job: Submission) -> Preview:
        """What ``submit`` would do. Touches neither disk nor network."""

    def job_directory(self, key: str) -> str:
        """Where the job's files lie on the target."""

    def hardware(self) -> Hardware | None:
        """What one job can have, or None where the target does not know."""

    def send(self, inputs: Mapping[Path, str]) -> dict[str, str]:
        """Bring inputs (path here -> digest of its content) to the target; path here -> path there.

        What lies there already is not sent again. Empty where the target shares files.
        """

    def submit(self, job: Submission) -> JobHandle:
        """Start the job, or adopt the one that has this key. Safe to repeat after a crash at any instant."""

    def find(self, key: str) -> JobHandle | None:
        """The job of this key, if it was ever submitted; also where its submitter died before it could tell."""

    def statuses(self, handles: Iterable[JobHandle]) -> dict[str, Status]:
        """Key -> status, for all handles in one call."""

    def read(self, handle: JobHandle, cursor: Mapping[str, int]) -> Chunk:
        """What the job wrote after ``cursor`` ({}: from the start), at most 1 MiB; of every node and every restart."""

    def collect(self, handle: JobHandle, output: Path) -> None:
        """Bring the output of an ended job to ``output``; nothing where the target shares files."""

    def cancel(self, handle: JobHandle) -> None:
        """Stop the job and everything it started."""

    def abandon(self, handle: JobHandle, successor: str) -> bool:
        """See to it that a job which the scheduler lost never runs anything, as ``successor`` takes its place.

        False where it has begun, or where this cannot be had. Safe to repeat. Asked of jobs that have ``never_began``,
        and of those whose submitter was killed before anybody could know whether there is one.
        """

    def release(self, handle: JobHandle) -> None:
        """Remove what must not stay when the job has ended: its secrets."""


@cache
def target_files(project: Project) -> dict[str, Path]:
    """The modules of ``resources/`` by executor; a project's own replace the bundled ones. None is loaded."""
    files: dict[str, Path] = {}
    for folder in project.folders("resources"):
        for file in sorted(folder.glob("[!_]*.py")):
            files.setdefault(file.stem, file)
    return files


@cache
def target_module(project: Project, executor: str) -> ModuleType:
    """The module of one executor, loaded by path; a module that cannot be loaded hinders no other.

    Raises:
        ProfileError: no such module, or it cannot be loaded: the file, the line and what is wrong there.
    """
    files = target_files(project)
    if executor not in files:
        raise ProfileError(
            f"executor: no target named {executor!r} in resources/.{did_you_mean(executor, files)} "
            f"Available: {', '.join(files)}."
        )
    file, name = files[executor], f"nemotron_resources_{executor}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        lacking = [n for n in ("Settings", "make_target") if not hasattr(module, n)]
        if lacking:
            raise AttributeError(f"it has no {' and no '.join(lacking)}")
    except (Exception, SystemExit) as e:  # a plugin may raise anything
        del sys.modules[name]
        line = getattr(e, "lineno", None) or _line(e, file)
        raise ProfileError(
            f"{file}{f':{line}' if line else ''}: the target {executor!r} cannot be loaded: {type(e).__name__}: {e}. "
            "Mend that module, or remove it to get the bundled one."
        ) from e
    return module


def bundled_target(executor: str) -> ModuleType:
    """The bundled module of an executor, for a project's own target to build on.

    Raises:
        ProfileError: no such module.
    """
    return target_module(Project(None, Path()), executor)


def settings_of(project: Project, executor: str, values: Mapping[str, Any], where: str) -> CommonSettings:
    """A profile's values as the settings of its executor; ``where`` names them in messages (``profile 'x'``).

    Raises:
        ProfileError: an executor, key or value that is not known or not valid, with what is wanted instead.
    """
    from pydantic import ValidationError

    try:
        module = target_module(project, executor)
    except ProfileError as e:
        raise ProfileError(f"{where}: {e}") from e
    try:
        return module.Settings.model_validate(dict(values))  # type: ignore[no-any-return]
    except ValidationError as e:
        raise ProfileError(f"{where}: {_complaint(project, module, executor, values, e)}") from None


def make_target(project: Project, profile: str | None, settings: Mapping[str, Any]) -> Target:
    """The target that a profile's ``executor`` names (``local`` where there is no profile).

    Raises:
        ProfileError: no executor, an unknown one, or settings that its schema refuses.
    """
    executor, parsed = parse_settings(project, profile, settings)
    return target_module(project, executor).make_target(parsed, project.state)  # type: ignore[no-any-return]


def relocation_of(
    project: Project, profile: str | None, settings: Mapping[str, Any], image: str | None = None
) -> Relocation | None:
    """Where the project's folder and the job's own directory lie for a job there; None where nothing is moved.

    ``image`` is the runspec's: it counts where the settings name none.

    Raises:
        ProfileError: as ``make_target``.
    """
    named = any(settings.get(k) for k in ("container_image", "container", "image"))
    values = settings if named or not image else {**settings, "container_image": image}
    executor, parsed = parse_settings(project, profile, values)
    find = getattr(target_module(project, executor), "relocation", None)
    return find(parsed) if find else None


def parse_settings(project: Project, profile: str | None, settings: Mapping[str, Any]) -> tuple[str, CommonSettings]:
    """The executor that a profile or a config's ``run.env`` names, and its settings.

    Raises:
        ProfileError: as ``settings_of``; also where there is a profile and it names no executor.
    """
    where = f"profile {profile!r}" if profile else "run.env"
    executor = settings.get("executor") or (None if profile else "local")
    if executor is None:
        known = ", ".join(target_files(project))
        raise ProfileError(f"{where}: names no executor. Set executor = one of {known}.")
    return str(executor), settings_of(project, str(executor), settings, where)


def _complaint(
    project: Project, module: ModuleType, executor: str, values: Mapping[str, Any], error: ValidationError
) -> str:
    """The first problem as ``key = value: what is wanted``; a secret's value is not shown."""
    from nemotron_dagster.jobs.settings import wrong

    problem: Any = error.errors()[0]
    path: list[str] = []
    value: Any = values
    for part in problem["loc"]:  # what follows a value names pydantic's own branch of a union
        if not (part in value if isinstance(value, Mapping) else isinstance(value, list) and isinstance(part, int)):
            break
        value = value[part]
        path.append(str(part))
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = list(module.Settings.model_fields)
        owners = [n for n in target_files(project) if n != executor and key in _keys(project, n)]
        if owners:
            return f"{key} is a key of {' and '.join(owners)}, not of {executor}. Remove it or change executor."
        hint = did_you_mean(key, known) or f" Known: {', '.join(known)}."
        return f"{executor} has no key {key!r}.{hint}"
    text = wrong(problem).rstrip(".")
    if not path:
        return f"{text}."
    shown = HIDDEN if any(is_secret(p) for p in path) else repr(redact(value))
    if problem["type"] == "string_type" and isinstance(value, bool | int | float):
        return f'{key} = {shown}: {text}. Put it in quotes: {key} = "{value}".'
    return f"{key} = {shown}: {text}."


def _keys(project: Project, executor: str) -> Sequence[str]:
    try:
        return list(target_module(project, executor).Settings.model_fields)
    except ProfileError:
        return []


def _line(error: BaseException, file: Path) -> int | None:
    """The last line of ``file`` in the error's traceback."""
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(file):
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
