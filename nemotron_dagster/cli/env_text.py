"""Profiles as text and as JSON for ``nemotron env``. Secrets are hidden before anything is rendered."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nemotron_dagster.config.profiles import Environment, KeyPath
from nemotron_dagster.config.references import unset_secrets
from nemotron_dagster.config.secrets import redact
from nemotron_dagster.errors import ProfileError

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def row(environment: Environment, name: str) -> dict[str, Any]:
    """One line of ``env list``. A profile whose inheritance is wrong has its error instead of its settings."""
    layers = environment.chain_so_far(name)
    where = environment.where(name)
    facts: dict[str, Any] = {"profile": name, "extends": layers[0].table.get("extends"), "where": where}
    try:
        values, _ = environment.resolved(name)
    except ProfileError as e:
        return {**facts, "error": str(e)}
    return {
        **facts,
        "executor": values.get("executor"),
        "nodes": values.get("nodes"),
        "gpus_per_node": values.get("gpus_per_node", values.get("gpus")),
        "image": next((values[k] for k in ("container_image", "container", "image") if values.get(k)), None),
    }


def shown(environment: Environment, name: str, resolve: bool) -> dict[str, Any]:
    """``env show --json``: the chain as written, the merged values, where each comes from, what is not known here.

    Raises:
        ProfileError: the inheritance is wrong; with ``resolve`` also a value that cannot be resolved.
    """
    chain = environment.chain(name)
    values = environment.profile(name) if resolve else environment.written(name)
    return {
        "profile": name,
        "chain": [
            {"profile": layer.name, "where": environment.where(layer.name), "table": redact(_plain(layer.table))}
            for layer in chain
        ],
        "values": redact(_plain(values)),
        "origins": {".".join(map(str, p)): environment.origin(name, p).name for p in _keys(values)},
        "unresolved": unresolved(environment, name),
    }


def unresolved(environment: Environment, name: str) -> dict[str, str]:
    """Key -> why it has no value here."""
    values, failed = environment.resolved(name)
    found = {".".join(map(str, path)): what.reason for path, what in failed.items()}
    for path, variable in unset_secrets(values, os.environ):
        found[".".join(map(str, path))] = f"variable {variable} is not set"
    return found


def as_written(environment: Environment, name: str) -> str:
    """The profile's own table and those it extends, as TOML, each with its place; unset variables are named."""
    missing = unresolved(environment, name)
    parts = []
    for layer in environment.chain(name):
        notes = {k: why for k, why in missing.items() if environment.origin(name, _path(k)).name == layer.name}
        parts.append(f"# {environment.where(layer.name)}\n{_toml(layer.name, redact(_plain(layer.table)), notes)}")
    return "\n\n".join(parts)


def as_resolved(environment: Environment, name: str) -> str:
    """The merged and resolved profile as TOML; each key names the profile that it comes from.

    Raises:
        ProfileError: a value cannot be resolved.
    """
    values = redact(_plain(environment.profile(name)))
    origins = {".".join(map(str, p)): f"from {environment.origin(name, p).name}" for p in _keys(values)}
    return _toml(name, values, origins)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns wide enough for everything in them; None is ``-``."""
    lines = [list(heads), *([("-" if cell is None else str(cell)) for cell in r] for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _keys(values: Mapping[str, Any]) -> list[KeyPath]:
    found: list[KeyPath] = []
    for key, value in values.items():
        found += [(key, inner) for inner in value] if isinstance(value, Mapping) and value else [(key,)]
    return found


def _path(key: str) -> KeyPath:
    return tuple(int(p) if p.isdigit() else p for p in key.split("."))


def _plain(value: Any) -> Any:
    """Plain data; TOML's dates and times as text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _toml(name: str, values: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    lines, tables = [f"[{_key(name)}]"], []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            inner = {k.removeprefix(f"{key}."): v for k, v in notes.items() if k.startswith(f"{key}.")}
            tables.append(_toml_body(f"[{_key(name)}.{_key(key)}]", value, inner))
        else:
            lines.append(_line(key, value, notes))
    return "\n".join(["\n".join(lines), *tables])


def _toml_body(head: str, values: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    return "\n".join([head, *(_line(k, v, notes) for k, v in values.items())])


def _line(key: str, value: Any, notes: Mapping[str, str]) -> str:
    why = next((v for k, v in notes.items() if k == key or k.startswith(f"{key}.")), "")
    return f"{_key(key)} = {_value(value)}" + (f"  # {why}" if why else "")


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
