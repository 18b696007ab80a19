"""What an execution target is: the Protocol that every module in ``resources/`` satisfies."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any, Protocol

from nemotron_dagster.errors import ProfileError, did_you_mean
from nemotron_dagster.project import Project, bundled


class State(StrEnum):
    """Where a job is. "Unreachable" is not a state: a target that cannot answer raises TargetError."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"

    @property
    def final(self) -> bool:
        return self not in (State.PENDING, State.RUNNING)


@dataclass(frozen=True)
class Status:
    state: State
    exit_code: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Submission:
    """One job as a target needs it.

    Attributes:
        key: digest that names the job; submitting a known key adopts the job.
        argv: the command, each argument exact (nothing passes a shell).
        env: variables set for the job beside those it inherits; written to disk, so never a secret.
        secrets: variables that hold secrets; they reach the job's process and no file.
        cwd: working directory of the command.
        files: name -> text, written to the job's directory before it starts.
    """

    key: str
    step: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = "/"
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
    """What a target offers one job."""

    gpus_per_node: int


class Target(Protocol):
    """A place where jobs run."""

    def job_directory(self, key: str) -> Path:
        """Where the job's files lie."""

    def hardware(self) -> Hardware | None:
        """What one job can have, or None where the target does not know."""

    def submit(self, job: Submission) -> JobHandle:
        """Start the job, or adopt the one that has this key. Safe to repeat after a crash at any instant."""

    def find(self, key: str) -> JobHandle | None:
        """The job of this key, if it was ever submitted."""

    def statuses(self, handles: Iterable[JobHandle]) -> dict[str, Status]:
        """Key -> status, for all handles in one call."""

    def read_log(self, handle: JobHandle, offset: int) -> bytes:
        """The job's output from ``offset`` on; empty where there is no more yet."""

    def cancel(self, handle: JobHandle) -> None:
        """Stop the job and everything it started."""


@cache
def target_modules(project: Project) -> dict[str, ModuleType]:
    """The modules of ``resources/`` by name, loaded by path; a project's own replace the bundled ones."""
    modules: dict[str, ModuleType] = {}
    for folder in project.folders("resources"):
        for file in sorted(folder.glob("[!_]*.py")):
            if file.stem in modules:
                continue
            modules[file.stem] = _module(f"nemotron_resources_{file.stem}", file)
    return modules


def bundled_target(name: str) -> ModuleType:
    """The bundled module of this name, for a project's own target to build on.

    Raises:
        ProfileError: no such module.
    """
    file = bundled("resources") / f"{name}.py"
    if not file.is_file():
        known = [p.stem for p in sorted(file.parent.glob("[!_]*.py"))]
        raise ProfileError(f"no bundled target {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}.")
    return _module(f"nemotron_bundled_{name}", file)


def _module(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except ProfileError:
        raise
    except Exception as e:  # somebody's own code: anything can go wrong in it
        where = next(
            (f"{file}:{s.lineno}" for s in reversed(extract_tb(e.__traceback__)) if s.filename == str(file)), file
        )
        raise ProfileError(
            f"{where}: cannot be loaded as a target ({type(e).__name__}: {e}). Mend or remove it."
        ) from e
    missing = [n for n in ("Settings", "make_target") if not hasattr(module, n)]
    if missing:
        raise ProfileError(f"{file}: has no {' and no '.join(missing)}, so it is no target. See docs/projects.md.")
    return module


def make_target(project: Project, profile: str | None, settings: Mapping[str, Any]) -> Target:
    """The target that a profile's ``executor`` names (``local`` where there is no profile).

    Raises:
        ProfileError: no executor, an unknown one, or settings that its schema refuses.
    """
    from pydantic import ValidationError

    executor = settings.get("executor") or (None if profile else "local")
    where = f"profile {profile!r}" if profile else "run.env"
    modules = target_modules(project)
    if executor is None:
        raise ProfileError(f"{where}: names no executor. Set executor = one of {', '.join(modules)}.")
    if executor not in modules:
        raise ProfileError(
            f"{where}: no target named {executor!r} in resources/.{did_you_mean(str(executor), modules)} "
            f"Available: {', '.join(modules)}."
        )
    module = modules[executor]
    try:
        parsed = module.Settings.model_validate(dict(settings))
    except ValidationError as e:
        problem = e.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        known = list(module.Settings.model_fields)
        hint = did_you_mean(key, known) if problem["type"] == "extra_forbidden" else ""
        raise ProfileError(f"{where}: {key}: {problem['msg']}.{hint} Keys of {executor}: {', '.join(known)}.") from e
    return module.make_target(parsed, project.state)  # type: ignore[no-any-return]
