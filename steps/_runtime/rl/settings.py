"""Reading the nested keys of a config by their dotted names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _runtime.payload import PayloadError


def at(cfg: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a dotted key; ``default`` where it, or a section above it, is missing or null."""
    value: Any = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            return default
    return value


def put(cfg: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the sections above it."""
    *sections, last = key.split(".")
    for part in sections:
        if not isinstance(cfg.get(part), dict):
            cfg[part] = {}
        cfg = cfg[part]
    cfg[last] = value


def drop(cfg: dict[str, Any], key: str) -> None:
    """Remove a dotted key, if it is there."""
    *sections, last = key.split(".")
    section = at(cfg, ".".join(sections)) if sections else cfg
    if isinstance(section, dict):
        section.pop(last, None)


def whole(cfg: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    """A whole number that must be there, and not below ``least``.

    Raises:
        PayloadError: it is not.
    """
    value = at(cfg, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PayloadError("config_invalid", f"{key}={value!r}: must be a whole number of at least {least}", "Set it.")
    return value


def real(cfg: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number that must be there.

    Raises:
        PayloadError: it is not.
    """
    value = at(cfg, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PayloadError("config_invalid", f"{key}={value!r}: must be a number", "Set it.")
    return float(value)


def leaves(cfg: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Every dotted key that holds no further keys."""
    found: dict[str, Any] = {}
    for name, value in cfg.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and value:
            found.update(leaves(value, f"{key}."))
        else:
            found[key] = value
    return found
