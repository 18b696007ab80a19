"""Where a step's file goes when it is done: ``deliver = true`` of a produced port."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog.model import Step
from nemotron_dagster.errors import ConfigError


@dataclass(frozen=True)
class Delivery:
    """The file that the user wants, beside the managed artifact. ``force`` lets it replace one that is there."""

    key: str
    path: Path
    force: bool = False


def wanted(step: Step, train: Mapping[str, Any], here: Path | None) -> Delivery | None:
    """What the compiled config asks for; None where it names no file.

    ``here`` is where relative paths start; without one they name nothing, and only the managed artifact is made.

    Raises:
        ConfigError: the key holds no path of a file, or ``force`` is neither true nor false.
    """
    port = next((p for p in step.produces if p.deliver and p.bind), None)
    if port is None or port.bind is None:
        return None
    value, force = train.get(port.bind), train.get("force", False)
    if force is None:
        force = False
    if not isinstance(force, bool):
        raise ConfigError(f"force={force}: is neither true nor false. Write force=true to replace {port.bind}.")
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or "\0" in value or "://" in value or value.endswith("/"):
        raise ConfigError(f"{port.bind}={value}: is no path of a local file. Name the file to write, as in out.toml.")
    try:
        path = Path(value).expanduser()
    except RuntimeError as e:
        raise ConfigError(f"{port.bind}={value}: {e}. Write the directory out.") from e
    if path.is_absolute():
        return Delivery(port.bind, path, force)
    return Delivery(port.bind, here / path, force) if here is not None else None
