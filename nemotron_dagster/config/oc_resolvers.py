"""OmegaConf's own resolvers, over plain data: ``oc.select``, ``oc.decode``, ``oc.dict.keys`` and the like."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from nemotron_dagster.config.grammar import GrammarError, parse_element
from nemotron_dagster.config.interpolation import (
    Path,
    Reference,
    Resolution,
    Resolver,
    Unresolved,
    Unset,
    absolute,
    parts_of,
    short,
)
from nemotron_dagster.config.keys import join


def _relative(resolution: Resolution, path: Path, key: Any) -> Path:
    """The path of a key given as an argument."""
    if not isinstance(key, str) or isinstance(key, Reference):
        raise Unresolved(f"{short(key)} stands where a key is needed", "Name a key there.")
    bare = key.lstrip(".")
    return absolute(path, len(key) - len(bare), parts_of(bare))


def _select(resolution: Resolution, path: Path, args: tuple[Any, ...]) -> Any:
    if not 1 <= len(args) <= 2:
        raise Unresolved("oc.select takes a key and a default", "Write ${oc.select:key,default}.")
    try:
        return resolution.select(_relative(resolution, path, resolution.evaluate(args[0], path, argument=True)))
    except Unset:
        return resolution.evaluate(args[1], path, argument=True) if len(args) == 2 else None


def _decode(resolution: Resolution, path: Path, args: tuple[Any, ...]) -> Any:
    (text,) = _exactly("oc.decode", args, 1)
    if text is None:
        return None
    if not isinstance(text, str):
        raise Unresolved(f"oc.decode reads text, not {short(text)}", "Leave oc.decode away.")
    try:
        return resolution.evaluate(parse_element(text), path, argument=True)
    except GrammarError as e:
        raise Unresolved(f"oc.decode cannot read {short(text)}: {e}", "Mend that value.") from e


def _create(resolution: Resolution, path: Path, args: tuple[Any, ...]) -> Any:
    (found,) = _exactly("oc.create", args, 1)
    if not isinstance(found, (dict, list)):
        raise Unresolved(f"oc.create makes sections and lists, not {short(found)}", "Leave oc.create away.")
    return found


def _section(resolution: Resolution, path: Path, name: str, args: tuple[Any, ...]) -> dict[Any, Any]:
    (key,) = _exactly(name, args, 1)
    found = resolution.select(_relative(resolution, path, key))
    if not isinstance(found, dict):
        raise Unresolved(f"{name}: {key} is not a section", "Name a section.")
    return found


def _deprecated(resolution: Resolution, path: Path, args: tuple[Any, ...]) -> Any:
    if not 1 <= len(args) <= 2:
        raise Unresolved("oc.deprecated takes a key and a message", "Write ${oc.deprecated:key}.")
    found = resolution.select(_relative(resolution, path, args[0]))
    message = str(args[1]) if len(args) == 2 else "$OLD_KEY is deprecated. Use $NEW_KEY."
    warnings.warn(message.replace("$OLD_KEY", join(path)).replace("$NEW_KEY", str(args[0])), stacklevel=2)
    return found


def _coerce(resolution: Resolution, path: Path, args: tuple[Any, ...]) -> Any:
    kind, value = _exactly("oc.coerce", args, 2)
    kinds: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "str": str, "bool": _boolean}
    if kind not in kinds:
        raise Unresolved(f"oc.coerce knows {', '.join(kinds)}, not {short(kind)}", "Use one of them.")
    try:
        return kinds[kind](value)
    except (TypeError, ValueError) as e:
        raise Unresolved(f"{short(value)} is no {kind}", "Mend that value.") from e


def _boolean(value: Any) -> bool:
    spelled = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    text = str(value).lower()
    if text not in spelled:
        raise ValueError(text)
    return spelled[text]


def _exactly(name: str, args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(args) != count:
        raise Unresolved(f"{name} takes {count} argument{'s' * (count > 1)}, not {len(args)}", "Mend it.")
    return args


BUILTIN: dict[str, Resolver] = {
    "oc.select": _select,
    "oc.decode": _decode,
    "oc.create": _create,
    "oc.dict.keys": lambda resolution, path, args: list(_section(resolution, path, "oc.dict.keys", args)),
    "oc.dict.values": lambda resolution, path, args: list(_section(resolution, path, "oc.dict.values", args).values()),
    "oc.deprecated": _deprecated,
    "oc.coerce": _coerce,
}
