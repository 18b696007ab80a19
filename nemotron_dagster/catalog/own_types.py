"""Artifact types that a project defines as ``artifacts/<type>.py``: read for what they say, not run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nemotron_dagster.errors import ConfigError


@dataclass(frozen=True)
class Declared:
    """A type's place in the graph: its module's constants ``IS_A``, ``CONVERT_TO`` and ``DESCRIPTION``."""

    file: Path
    is_a: tuple[str, ...] = ()
    convert_to: dict[str, str] = field(default_factory=dict)
    description: str = ""


def declared(folder: Path) -> dict[str, Declared]:
    """Type -> what its module in ``folder`` declares; modules that begin with an underscore are helpers.

    Raises:
        ConfigError: a module that is no Python, or a constant that is no literal of its type.
    """
    files = sorted(folder.glob("[!_]*.py")) if folder.is_dir() else []
    return {file.stem: _read(file) for file in files}


def _read(file: Path) -> Declared:
    import ast

    try:
        body = ast.parse(file.read_bytes(), str(file)).body
    except (OSError, SyntaxError, ValueError) as e:
        raise ConfigError(f"{file}: is no Python module ({e}). Mend it, or move it out of artifacts/.") from e
    found: dict[str, Any] = {}
    for node in body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and target.id in _SHAPES:
                name, (fits, wanted) = target.id, _SHAPES[target.id]
                try:
                    value = ast.literal_eval(node.value) if node.value else None
                except (ValueError, TypeError):
                    value = None
                if not fits(value):
                    raise ConfigError(f"{file}:{node.lineno}: {name} is not {wanted}. Write it as a plain literal.")
                found[name] = value
    return Declared(
        file, tuple(found.get("IS_A", ())), dict(found.get("CONVERT_TO", {})), str(found.get("DESCRIPTION", ""))
    )


def _texts(value: Any) -> bool:
    return all(isinstance(v, str) for v in value)


class _Shape(NamedTuple):
    fits: Callable[[Any], bool]
    wanted: str


_SHAPES = {
    "IS_A": _Shape(lambda v: isinstance(v, tuple | list) and _texts(v), "a tuple of type names"),
    "CONVERT_TO": _Shape(lambda v: isinstance(v, dict) and _texts([*v, *v.values()]), "a mapping of types to steps"),
    "DESCRIPTION": _Shape(lambda v: isinstance(v, str), "text"),
}
