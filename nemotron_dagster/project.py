"""Where things are: the project, its state, and the three catalogs ``steps/``, ``resources/`` and ``env/``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nemotron_dagster.errors import ConfigError, UsageError
from nemotron_dagster.files import read_toml

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Project:
    """A directory tree that holds a user's steps, targets, profiles and pipelines, or none (``root`` is None).

    ``state`` holds what runs leave behind: artifacts, jobs, the Dagster instance.
    """

    root: Path | None
    state: Path

    def folders(self, name: str) -> tuple[Path, ...]:
        """The folders searched for ``steps``, ``resources`` or ``env``: the project's first, then the bundled one."""
        own = [self.root / name] if self.root else []
        found = [p for p in (*own, bundled(name)) if p.is_dir()]
        return tuple(dict.fromkeys(p.resolve() for p in found))


def bundled(name: str) -> Path:
    """The folder shipped with the package: inside the wheel, or the checkout's top level in an editable install."""
    inside = _PACKAGE / "_bundled" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def _is_root(directory: Path) -> bool:
    if (directory / "workspace.yaml").is_file():
        return True
    pyproject = directory / "pyproject.toml"
    if not pyproject.is_file():
        return False
    try:
        tool = read_toml(pyproject).get("tool")
    except ConfigError:  # another tool's file, and its business
        return False
    return isinstance(tool, dict) and "nemotron" in tool


@cache
def find_project(start: Path | None = None) -> Project:
    """The project around ``start`` (default: ``NEMOTRON_PROJECT``, else the working directory).

    Outside any project the state is kept in ``NEMOTRON_HOME`` (default ``~/.nemotron``), so that a step runs from any
    directory without leaving files there.

    Raises:
        UsageError: the working directory is gone.
    """
    named = os.environ.get("NEMOTRON_PROJECT")
    here = (start or (Path(named) if named else working_directory())).resolve()
    root = next((d for d in (here, *here.parents) if _is_root(d)), None)
    home = os.environ.get("NEMOTRON_HOME")
    if home:
        return Project(root, Path(home).expanduser().resolve())
    return Project(root, root / ".nemotron" if root else Path.home() / ".nemotron")


def working_directory() -> Path:
    """Where the command was given.

    Raises:
        UsageError: that directory is gone.
    """
    try:
        return Path.cwd()
    except FileNotFoundError as e:
        raise UsageError("the working directory is gone. Change to one that is there.") from e
