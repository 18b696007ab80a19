"""Sections of a config, as the runners that fill them take them."""

from __future__ import annotations

from typing import Any

from _runtime.payload import PayloadError


def section(cfg: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of the config, made where there is none.

    Raises:
        PayloadError: it is no mapping.
    """
    value = cfg.setdefault(name, {})
    if value is None:
        value = cfg[name] = {}
    if not isinstance(value, dict):
        raise PayloadError("config_invalid", f"{name}={value!r}: must be a mapping", f"Write keys below `{name}:`.")
    return value
