"""The graph of artifact types: which type is accepted where, and which step converts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog.manifest import read_toml
from nemotron_dagster.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class TypeGraph:
    parents: dict[str, tuple[str, ...]]
    converters: dict[str, dict[str, str]] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)

    def accepts(self, wanted: str, offered: str) -> bool:
        """Whether an ``offered`` artifact may stand where ``wanted`` is asked for (``is_a``, transitively)."""
        seen, queue = set(), [offered]
        while queue:
            t = queue.pop()
            if t == wanted:
                return True
            if t not in seen:
                seen.add(t)
                queue += self.parents.get(t, ())
        return False

    def converter(self, wanted: str, offered: str) -> str | None:
        """The step that makes ``wanted`` from ``offered``, if one is declared."""
        return self.converters.get(offered, {}).get(wanted)

    def check(self, name: str, where: str) -> None:
        """Raises ConfigError: ``name`` is no known type."""
        if name not in self.parents:
            hint = did_you_mean(name, self.parents) or f" Known types: {', '.join(sorted(self.parents))}."
            raise ConfigError(f"{where}: unknown artifact type {name!r}.{hint}")


def load_types(files: list[Path]) -> TypeGraph:
    """Merge ``types.toml`` files; earlier files win.

    Raises:
        ConfigError: a file is not TOML, or a table is not as docs/projects.md says.
    """
    parents: dict[str, tuple[str, ...]] = {}
    converters: dict[str, dict[str, str]] = {}
    descriptions: dict[str, str] = {}
    for file in files:
        for name, table in read_toml(file).items():
            if (problem := _problem(table)) is not None:
                raise ConfigError(f"{file}: type {name!r}: {problem}")
            if name not in parents:
                parents[name] = tuple(table.get("is_a", ()))
                converters[name] = dict(table.get("convert_to", {}))
                descriptions[name] = str(table.get("description", ""))
    return TypeGraph(parents, converters, descriptions)


def _problem(table: Any) -> str | None:
    """What is wrong with the shape of a type's table, with the fix."""
    if not isinstance(table, dict):
        return "is no table. Write [name] above its keys."
    if unknown := set(table) - {"is_a", "convert_to", "description"}:
        key = min(unknown)
        return f"unknown key {key!r}. Keys: is_a, convert_to, description."
    parents, steps = table.get("is_a", []), table.get("convert_to", {})
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        return f'is_a = {parents!r} is no list of types. Write is_a = ["type"].'
    if not isinstance(steps, dict) or not all(isinstance(s, str) for s in steps.values()):
        return f"convert_to = {steps!r} is no table of types and steps. Write convert_to = {{ type = 'step' }}."
    return None
