"""Whether an override fits the config: its key is there, its type can stand there, its value is one of the choices."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from nemotron_dagster.catalog.model import Step
from nemotron_dagster.config.artifact_references import is_reference
from nemotron_dagster.config.keys import ABSENT, child, flat, get, join, merge, parse_key
from nemotron_dagster.config.secrets import is_secret, looks_secret
from nemotron_dagster.errors import ConfigError, did_you_mean

Path = tuple[Any, ...]
#: Last words of names whose number need not be whole, though a config may write it without a point.
_FRACTIONS = {
    "ratio", "rate", "lr", "decay", "weight", "penalty", "threshold", "clip", "coef", "coeff", "factor", "scale",
    "temperature", "bonus", "advantage", "alpha", "beta", "epsilon", "score", "ranking", "percentile", "fraction",
    "timeout", "sleep", "seconds", "secs", "minutes", "interval", "min", "max", "p", "norm",
}  # fmt: skip
#: What stands for "decide yourself" where a number or a list is meant.
_WORDS = ("auto", "none", "null", "???", "all")
#: Sections that every job has, whatever its config says.
_SYSTEM: dict[str, Any] = {
    "run": {"env": {}, "wandb": {}},
    "artifacts": {"root": None, "manifest": {}, "wandb": None},
}


def check_secrets(pairs: Iterable[tuple[str, Any]]) -> None:
    """Refuse a secret that is written down.

    Raises:
        ConfigError: naming the key, never the value.
    """
    for key, value in pairs:
        for path, leaf in flat(value, parse_key(key)):
            name = join(path)
            named = is_secret(name) and isinstance(leaf, str) and leaf and "${" not in leaf
            if named or looks_secret(str(leaf)):
                raise ConfigError(
                    f"override {name}=…: a secret must not be written down. Use {name}='${{oc.env:NAME}}'."
                )


def check_overrides(step: Step, pairs: Iterable[tuple[str, Any]], known: Mapping[str, Any]) -> list[str]:
    """Refuse an override that the step's config cannot take; notes on those that are taken and look mistyped.

    ``known`` is the compiled config merged over the step's default one. A key is free below a section that the
    manifest declares ``freeform``, below ``run.env``, and where the config's own value is null or empty.

    Raises:
        ConfigError: unknown key, a value of a wrong type, or one that the manifest's choices exclude.
    """
    known = merge(_SYSTEM, known)
    notes: list[str] = []
    for key, value in pairs:
        whole = parse_key(key)
        if value == {}:
            continue
        for path, leaf in flat(value, whole):
            if not _chosen(step, join(path), leaf, ""):
                notes += _check(step, path, leaf, known)
    return notes


def check_choices(step: Step, train: Mapping[str, Any], where: str) -> None:
    """Refuse a config whose value for a parameter is none of the manifest's choices.

    Raises:
        ConfigError: naming the file, key and value.
    """
    for parameter in step.parameters:
        value = get(train, parameter.name, ABSENT)
        if parameter.choices and value is not ABSENT:
            _chosen(step, parameter.name, value, f"{where}: ")


def is_free(step: Step, path: Path) -> bool:
    """Whether the manifest leaves the keys below ``path`` open; ``*`` in it stands for any one key."""
    for pattern in step.freeform:
        parts = pattern.split(".")
        if len(parts) <= len(path) and all(p in ("*", q) for p, q in zip(parts, path, strict=False)):
            return True
    return False


def _chosen(step: Step, key: str, value: Any, where: str) -> bool:
    """Whether the manifest has choices for this key; refuses a value that is none of them."""
    choices = next(([_spelled(c) for c in p.choices] for p in step.parameters if p.name == key and p.choices), [])
    if not choices or isinstance(value, (Mapping, list)) or (isinstance(value, str) and "${" in value):
        return False
    if _spelled(value) not in choices:
        near = did_you_mean(_spelled(value), choices)
        raise ConfigError(f"{where}{key}={_spelled(value)}: not one of {', '.join(choices)}.{near} Use one of them.")
    return True


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check(step: Step, path: Path, value: Any, known: Mapping[str, Any]) -> list[str]:
    """Raises ConfigError: the override does not fit. What is returned is worth a look."""
    parameters = [p.name for p in step.parameters]
    binds = [k for p in (*step.consumes, *step.produces) for k, _ in p.keys]
    named = [parse_key(n) for n in (*parameters, *binds)]
    free = is_free(step, path) or any(n[: len(path)] == path or path[: len(n)] == n for n in named)
    node: Any = known
    shown: tuple[Any, ...] = ()
    for i, part in enumerate(path):
        if node is None or node == {} or (isinstance(node, str) and "${" in node):
            return []
        found = child(node, part)
        if found is ABSENT:
            path = (*shown, *path[i:])
            if isinstance(node, list):
                raise ConfigError(
                    f"{join(path)}={_short(value)}: {join(path[:i])} has {len(node)} items, counted from 0."
                )
            if _system_key(path, value):
                return []
            if free and isinstance(node, Mapping):
                return [] if any(n[: len(path)] == path for n in named) else _resembling(path, i, node)
            raise ConfigError(_unknown(step, path, i, node))
        shown, node = (*shown, found), node[found]
    path = shown
    expected = _mismatch(path, node, value)
    if expected:
        raise ConfigError(
            f"{join(path)}={_short(value)}: {expected}; the config holds {_short(node)}. "
            f"Give {join(path)} such a value, or null."
        )
    return []


def _resembling(path: Path, depth: int, node: Mapping[str, Any]) -> list[str]:
    """A note where a new key of a free section is nearly one that is there: the library behind may ignore it."""
    part = str(path[depth])
    siblings = [str(k) for k in node if str(k).strip("0123456789") != part.strip("0123456789")]
    near = difflib.get_close_matches(part, siblings, n=1, cutoff=0.8)
    if not near:
        return []
    new, meant = join(path[: depth + 1]), join((*path[:depth], near[0]))
    return [f"{new} is new to the config, whose section takes any key. If you mean {meant}, write that."]


def _system_key(path: Path, value: Any) -> bool:
    """Whether a key of ``run`` that the config does not have may be set all the same."""
    return path[0] == "run" and (path[1] in ("env", "wandb") or (len(path) == 2 and is_reference(value)))


def _unknown(step: Step, path: Path, depth: int, node: Any) -> str:
    key, section = join(path), join(path[:depth])
    if not isinstance(node, Mapping):
        return f"unknown config key {key!r} for {step.id}: {section} is a value, not a section. Name {section} itself."
    if path[0] == "run":
        known = [f"run.{k}" for k in node] if depth == 1 and len(path) > 2 else []
        target = join(("run", "env", *path[1:]))
        near = did_you_mean(join(path[: depth + 1]), known) or f" A setting of the target is {target}."
        return f"unknown config key {key!r} for {step.id}.{near} --allow-unknown lets it through."
    siblings = [join((*path[:depth], str(k))) for k in node]
    listed = f" Known keys{f' of {section}' if section else ''}: {', '.join(sorted(siblings))}." if siblings else ""
    near = did_you_mean(join(path[: depth + 1]), siblings) or listed
    return f"unknown config key {key!r} for {step.id}.{near} --allow-unknown lets it through."


def _mismatch(path: Path, present: Any, value: Any) -> str | None:
    """What is expected, where ``value`` cannot stand for ``present``."""
    if (
        value is None
        or present is None
        or any(isinstance(v, str) and ("${" in v or v == "???") for v in (present, value))
    ):
        return None
    if isinstance(present, Mapping):
        if isinstance(value, Mapping):
            return None
        inner = f" ({', '.join(map(str, present))})" if present else ""
        return f"{join(path)} is a section{inner}, not a value"
    if isinstance(value, Mapping):
        return f"expected {_kind(present)}, not a section"
    word = isinstance(value, str) and value.lower() in _WORDS
    if isinstance(present, list):
        return None if isinstance(value, list) or word else "expected a list, like [a, b]"
    if isinstance(value, list):
        return f"expected {_kind(present)}, not a list"
    if isinstance(present, str) or word:
        return None
    if isinstance(present, bool):
        return None if isinstance(value, bool) else "expected true or false"
    if isinstance(value, (bool, str)):
        return f"expected {_kind(present)}"
    if isinstance(present, int) and isinstance(value, float):
        fractional = present in (0, 1, -1) or path[-1].lower().split("_")[-1].rstrip("0123456789") in _FRACTIONS
        if not fractional:
            near = f", like {int(value)}" if value.is_integer() else ""
            return f"expected a whole number{near}"
    return None


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "a value")


def _short(value: Any) -> str:
    text = _spelled(value)
    return text if len(text) <= 80 else text[:77] + "..."
