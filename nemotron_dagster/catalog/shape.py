"""What a step.toml and a ``[tool.runspec]`` block may hold: the keys of each table and the kind of each value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_dagster.catalog.locks import LOCKS
from nemotron_dagster.catalog.preflight import CHECKS
from nemotron_dagster.catalog.preflight import known as is_check
from nemotron_dagster.errors import did_you_mean
from nemotron_dagster.toml_positions import positions

Keys = Mapping[str, "Kind"]


@dataclass(frozen=True)
class Kind:
    """What a value must be: ``fits`` decides, ``text`` says it to a person."""

    text: str
    fits: Callable[[Any], bool]
    needed: bool = False


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v for v in value)


def _needed(kind: Kind) -> Kind:
    return Kind(kind.text, kind.fits, needed=True)


_TEXT = Kind("text", lambda v: isinstance(v, str))
_WORD = Kind("text that is not empty", lambda v: isinstance(v, str) and bool(v.strip()))
_FLAG = Kind("true or false", lambda v: isinstance(v, bool))
_TEXTS = Kind('a list of texts, like ["a", "b"]', _texts)
_LOCKS = Kind(f"a list of {', '.join(LOCKS)}", lambda v: _texts(v) and set(v) <= LOCKS.keys())
_CHECKS = Kind(f"a list of locks and {', '.join(CHECKS)}", lambda v: _texts(v) and all(is_check(name) for name in v))
_LIST = Kind("a list", lambda v: isinstance(v, list))
_ANY = Kind("any value", lambda v: True)
_TABLE = Kind("a table", lambda v: isinstance(v, dict))
_KEYS = Kind("a config key, or a list of them", lambda v: bool(v) and isinstance(v, str | list))
_COUNT = Kind("a whole number, 0 or more", _whole(0))
_NODES = Kind("a whole number, 1 or more", _whole(1))
_STATE = Kind("'ready' or 'planned'", lambda v: v in ("ready", "planned"))
_FORMAT = Kind("omegaconf or yaml", lambda v: v in ("omegaconf", "yaml"))

STEP: Keys = {
    "id": _WORD, "name": _WORD, "category": _WORD, "description": _TEXT, "summary": _TEXT, "tags": _TEXTS,
    "stack": _ANY, "difficulty": _ANY, "payload": _STATE, "env": _WORD, "resumable": _FLAG, "freeform": _TEXTS,
    "literal": _TEXTS, "plans": _FLAG,
}  # fmt: skip
PORT: Keys = {
    "type": _needed(_WORD), "description": _TEXT, "required": _FLAG, "bind": _KEYS, "from": _WORD, "name": _WORD,
    "path": _WORD, "suffix": _TEXT, "deliver": _FLAG,
}  # fmt: skip
LISTS: Mapping[str, Keys] = {
    "consumes": {**PORT, "locks": _LOCKS, "latest_iteration": _FLAG},
    "produces": PORT,
    "parameters": {"name": _needed(_WORD), "description": _TEXT, "default": _ANY, "choices": _LIST},
    "models": {"name": _needed(_WORD), "description": _TEXT, "min_gpus": _COUNT},
    "strategies": {"when": _needed(_WORD), "then": _needed(_WORD)},
    "errors": {"name": _needed(_WORD), "recovery": _needed(_WORD), "check": _CHECKS},
}
RUNSPEC: Keys = {
    "schema": _WORD, "docs": _TEXT, "name": _TEXT, "image": _WORD, "setup": _TEXT, "env": _TABLE, "run": _TABLE,
    "config": _TABLE, "resources": _TABLE,
}  # fmt: skip
RUNSPEC_TABLES: Mapping[str, Keys] = {
    "run": {"launch": _WORD, "cmd": _WORD, "workdir": _WORD},
    "config": {"dir": _WORD, "default": _WORD, "format": _FORMAT},
    "resources": {"nodes": _NODES, "gpus_per_node": _COUNT},
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a TOML document.

    Attributes:
        table: header of its table, such as ``step`` or ``consumes``; "" for the top level.
        index: which one of an array of tables.
        key: the key in that table, or "" for the table itself.
    """

    table: str
    index: int
    key: str
    message: str


def manifest_problems(doc: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the shape of a step.toml: unknown keys, missing ones, values of another kind."""
    known = {"step", "reference", *LISTS}
    yield from (_unknown("", 0, key, "top level", known) for key in doc if key not in known)
    if not isinstance(doc.get("step"), dict):
        yield Problem("step", 0, "", "has no [step] table. Add one with id, name and description.")
    else:
        yield from _table("step", 0, "[step]", doc["step"], STEP)
    for name, keys in LISTS.items():
        rows = doc.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            yield Problem("", 0, name, f"{name} is not a list of tables. Write [[{name}]] above each entry.")
            continue
        for i, row in enumerate(rows):
            yield from _table(name, i, f"[[{name}]]", row, keys)
    reference = doc.get("reference", {})
    if not isinstance(reference, dict) or not all(isinstance(v, str) for v in reference.values()):
        yield Problem("reference", 0, "", "[reference] is not a table of texts. Write name = 'https://...'.")


def runspec_problems(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """The same for the ``[tool.runspec]`` table of a step.py."""
    yield from _table("tool.runspec", 0, "[tool.runspec]", spec, RUNSPEC)
    for name, keys in RUNSPEC_TABLES.items():
        if isinstance(table := spec.get(name, {}), dict):
            header = f"tool.runspec.{name}"
            yield from _table(header, 0, f"[{header}]", table, keys)
    run = spec.get("run", {})
    launch = run.get("launch", "torchrun") if isinstance(run, dict) else "torchrun"
    if isinstance(launch, str) and launch not in ("python", "torchrun", "ray"):
        message = f"runspec launch {launch!r} is none of python, torchrun, ray. Use one of them."
        yield Problem("tool.runspec.run", 0, "launch", message)


def _table(header: str, index: int, where: str, table: Mapping[str, Any], keys: Keys) -> Iterator[Problem]:
    for key, value in table.items():
        if key not in keys:
            yield _unknown(header, index, key, where, keys)
        elif not keys[key].fits(value):
            yield Problem(header, index, key, f"{where} {key} = {value!r} is not {keys[key].text}. Mend it.")
    for key, kind in keys.items():
        if kind.needed and key not in table:
            yield Problem(header, index, "", f"a {where} entry has no {key}. Add one.")


def _unknown(header: str, index: int, key: str, where: str, known: Mapping[str, Kind] | set[str]) -> Problem:
    hint = did_you_mean(key, known) or f" Known keys: {', '.join(sorted(known))}."
    return Problem(header, index, key, f"unknown key {key!r} in {where}.{hint}")


def line_of(text: str, problem: Problem, first_line: int = 1) -> int:
    """The line of a problem in the TOML text that it was found in, which begins at ``first_line`` of its file."""
    return toml_line(text, problem.table, problem.index, problem.key, first_line)


def toml_line(text: str, table: str, index: int = 0, key: str = "", first_line: int = 1) -> int:
    """The line of a key of the ``index``-th ``table``, else that of the table, else the first."""
    at = positions(text)
    path = tuple(table.split(".")) if table else ()
    entry = (*path, str(index))
    for wanted in ((*entry, key), (*path, key), entry, path):
        if wanted in at:
            return at[wanted][0] + first_line - 1
    return first_line
