"""The graph of artifact types: which type is accepted where, and which step converts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nemotron_dagster.catalog.fields import Table
from nemotron_dagster.catalog.manifest import read_tables
from nemotron_dagster.catalog.own_types import declared
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


def load_types(files: list[Path], own: Path | None = None) -> TypeGraph:
    """Merge ``types.toml`` files, earlier ones winning, below what the modules in the folder ``own`` declare.

    Raises:
        ConfigError: a file is malformed, a value has the wrong type, or ``is_a`` names no type.
    """
    parents: dict[str, tuple[str, ...]] = {}
    converters: dict[str, dict[str, str]] = {}
    descriptions: dict[str, str] = {}
    tables: dict[str, Table] = {}
    modules = declared(own) if own else {}
    for name, module in modules.items():
        parents[name], converters[name], descriptions[name] = module.is_a, module.convert_to, module.description
    for file in files:
        doc = read_tables(file)
        for name in doc.values:
            if name not in parents:
                table = tables[name] = doc.table(name)
                table.known({"is_a", "convert_to", "description"}, f"[{name}]")
                parents[name] = table.texts("is_a")
                to = table.table("convert_to")
                converters[name] = {wanted: to.text_of(wanted) for wanted in to.values}
                descriptions[name] = table.text_of("description")
    for name, table in tables.items():
        for parent in parents[name]:
            if parent not in parents:
                hint = did_you_mean(parent, parents) or " Add a table for it."
                raise table.error("is_a", f"{name} is_a {parent!r}, which is no type.{hint}")
    for name, module in modules.items():
        for parent in module.is_a:
            if parent not in parents:
                hint = did_you_mean(parent, parents) or " Write a module for it too."
                raise ConfigError(f"{module.file}: {name} is_a {parent!r}, which is no type.{hint}")
    return TypeGraph(parents, converters, descriptions)
