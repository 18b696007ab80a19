"""Finds the module of an artifact type: the project's own ``artifacts/<type>.py`` first, then the bundled one.

A type's module defines ``LAYOUT``, ``validate`` and ``figures``, and whichever it likes of ``tables``, ``samples``,
``columns``, ``draw``, ``read`` and ``write``; ``ArtifactType`` says what each means. Nothing outside these modules
knows a type by name.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from nemotron_dagster.errors import ArtifactError
from nemotron_dagster.project import Project, find_project

_BUNDLE = "nemotron_dagster.artifacts.types"
_REQUIRED = ("LAYOUT", "validate", "figures")

Facts = Mapping[str, Any]
#: name, type, description
Column = tuple[str, str, str]


class ArtifactType(Protocol):
    """What an artifact type can do. Of a module, only ``LAYOUT``, ``validate`` and ``figures`` are required."""

    @property
    def LAYOUT(self) -> str:
        """What lies where, in one paragraph for a person."""

    def validate(self, path: Path) -> dict[str, Any]:
        """Check the content; its facts, JSON-able and small.

        Raises:
            ArtifactError: listing up to 20 problems, each with file, row or tensor and the fix, and counting all.
        """

    def figures(self, facts: Facts) -> dict[str, int | float | str]:
        """The headline figures in reading order."""

    def tables(self, facts: Facts) -> dict[str, str]:
        """Title -> Markdown table."""

    def samples(self, facts: Facts) -> str:
        """A few entries as Markdown, escaped and cut; empty for none."""

    def columns(self, facts: Facts) -> list[Column]:
        """The columns that rows have, in order."""

    def draw(self, facts: Facts, folder: Path) -> list[str]:
        """Draw pictures into ``folder``; their file names."""

    def read(self, path: Path) -> Any:
        """The content as a typed handle or a stream.

        Raises:
            ArtifactError: the type cannot be read here.
        """

    def write(self, value: Any, folder: Path) -> None:
        """Write ``value`` as an artifact into ``folder``, streaming.

        Raises:
            ArtifactError: the type cannot be written here, or ``value`` is not what it takes.
        """


@dataclass(frozen=True)
class _Loaded:
    """A type's module, with a default for every function that it leaves out."""

    name: str
    module: ModuleType

    @property
    def LAYOUT(self) -> str:
        return str(self.module.LAYOUT)

    def validate(self, path: Path) -> dict[str, Any]:
        try:
            return dict(self.module.validate(path))
        except OSError as e:
            raise ArtifactError(
                f"{e.filename or path}: cannot be read ({e.strerror or e}). Check it and its disk."
            ) from e

    def figures(self, facts: Facts) -> dict[str, int | float | str]:
        return dict(self.module.figures(facts))

    def tables(self, facts: Facts) -> dict[str, str]:
        return dict(self._optional("tables", {}, facts))

    def samples(self, facts: Facts) -> str:
        return str(self._optional("samples", "", facts))

    def columns(self, facts: Facts) -> list[Column]:
        return list(self._optional("columns", [], facts))

    def draw(self, facts: Facts, folder: Path) -> list[str]:
        return list(self._optional("draw", [], facts, folder))

    def read(self, path: Path) -> Any:
        return self._needed("read")(path)

    def write(self, value: Any, folder: Path) -> None:
        self._needed("write")(value, folder)

    def _optional(self, function: str, default: Any, *args: Any) -> Any:
        found = getattr(self.module, function, None)
        return found(*args) if found else default

    def _needed(self, function: str) -> Any:
        found = getattr(self.module, function, None)
        if found is None:
            raise ArtifactError(
                f"A {self.name} is passed by reference and cannot be {'read' if function == 'read' else 'written'} as "
                f"a Python value. Use its path, or define `{function}` in {self.module.__file__}."
            )
        return found


def artifact_type(name: str, project: Project | None = None) -> ArtifactType:
    """The type called ``name`` (default project: the one around the working directory).

    Raises:
        ArtifactError: no module for it, or one that cannot be loaded or lacks a required name.
    """
    root = (project or find_project()).root
    return _load(name, root / "artifacts" / f"{name}.py" if root else None)


@cache
def _load(name: str, own: Path | None) -> _Loaded:
    if not name.isidentifier() or name.startswith("_"):
        raise ArtifactError(f"{name!r} is no artifact type. A type's name has letters, digits and underscores.")
    if own is not None and own.is_file():
        module = _from_file(name, own)
    else:
        qualified = f"{_BUNDLE}.{name}"
        if importlib.util.find_spec(qualified) is None:
            raise ArtifactError(
                f"Artifacts of type {name} cannot be validated, so none is accepted. "
                f"Write {own or f'artifacts/{name}.py in a project'} with {', '.join(_REQUIRED)}."
            )
        module = importlib.import_module(qualified)
    missing = [n for n in _REQUIRED if not hasattr(module, n)]
    if missing:
        raise ArtifactError(f"{module.__file__}: has no {', '.join(missing)}. Define it at the module's top level.")
    return _Loaded(name, module)


def _from_file(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"nemotron_project_artifacts.{name}", file)
    if spec is None or spec.loader is None:
        raise ArtifactError(f"{file}: cannot be loaded as a Python module. Check its name.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise ArtifactError(f"{file}: cannot be loaded ({type(e).__name__}: {e}). Mend the module.") from e
    return module
