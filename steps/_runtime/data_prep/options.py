"""Checks of configuration values that all data preparation steps use; each error names key, value and fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from _runtime.payload import PayloadError


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown word: the closest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}."


def bad(message: str, recovery: str = "Mend that key.", name: str = "config_invalid") -> PayloadError:
    """The error for a configuration value that cannot be meant."""
    return PayloadError(name, message, recovery)


def check_keys(given: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
    """Refuse a key that is not ``known``; ``where`` is put before its name.

    Raises:
        PayloadError: naming the key and the closest known one.
    """
    known = list(known)
    for key in given:
        if key not in known:
            raise bad(f"{where}{key}: unknown key; {nearest(str(key), known)}")


def section(cfg: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A mapping of the config; {} where it is null or absent."""
    value = cfg.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad(f"{key}: {value!r} is not a mapping", f"Write `{key}: {{...}}`.")
    return value


def text(cfg: Mapping[str, Any], key: str, default: str | None = None, where: str = "") -> str:
    """A non-empty string; ``default`` where it is null or absent, None for a key that must be set."""
    value = cfg.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise bad(f"{where}{key} is not set", f"Set {where}{key}.", "config_missing")
    if not isinstance(value, str) or not value.strip():
        raise bad(f"{where}{key}: {value!r} is not a string", f"Write text for {where}{key}.")
    return value


def whole(cfg: Mapping[str, Any], key: str, default: int, low: int = 0, where: str = "") -> int:
    """A whole number from ``low`` up."""
    value = cfg.get(key, default)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise bad(f"{where}{key}: {value!r} is not a whole number from {low} up", f"Set {where}{key} to {low} or more.")
    return value


def whole_or_none(cfg: Mapping[str, Any], key: str, low: int = 1, where: str = "") -> int | None:
    """A whole number from ``low`` up, or None where it is null or absent."""
    return None if cfg.get(key) is None else whole(cfg, key, low, low, where)


def number(cfg: Mapping[str, Any], key: str, default: float, low: float, high: float = math.inf) -> float:
    """A finite number within bounds."""
    value = cfg.get(key, default)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
        raise bad(f"{key}: {value!r} is not a number from {low} to {high}")
    return float(value)


def flag(cfg: Mapping[str, Any], key: str, default: bool, where: str = "") -> bool:
    """True or false."""
    value = cfg.get(key, default)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise bad(f"{where}{key}: {value!r} is neither true nor false")
    return value


def choice(cfg: Mapping[str, Any], key: str, default: str, known: Iterable[str]) -> str:
    """One of ``known``."""
    value = cfg.get(key)
    value = default if value is None else value
    known = list(known)
    if value not in known:
        raise bad(f"{key}: {value!r} is not one of {', '.join(known)}; {nearest(str(value), known)}")
    return str(value)
