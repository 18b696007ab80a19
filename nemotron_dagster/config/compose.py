"""Load a step's config: by name or path, with its chain of ``defaults``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog.model import Step
from nemotron_dagster.config.keys import merge
from nemotron_dagster.config.source import read_yaml
from nemotron_dagster.errors import ConfigError, UsageError, did_you_mean


@dataclass(frozen=True)
class Layer:
    """What one file says, without its ``defaults``."""

    file: Path
    data: dict[str, Any]


def config_path(step: Step, name: str | None) -> Path:
    """The file of a config: a name of the step's (default: its default one), or a path where it looks like one.

    Raises:
        ConfigError: the step has no runspec, or no such file.
        UsageError: no config of that name.
    """
    if step.runspec is None:
        raise ConfigError(f"{step.id}: has no step.py, so it cannot run. Add one, see docs/steps.md.")
    name = step.runspec.default_config if name is None else name
    if "/" in name or name.endswith((".yaml", ".yml")):
        return _named_file(step, name)
    for suffix in (".yaml", ".yml"):
        path = step.runspec.config_dir / f"{name}{suffix}"
        if name in step.configs and path.is_file():
            return path.absolute()
    raise UsageError(
        f"{step.id} has no config {name!r}.{did_you_mean(name, step.configs)} Available: {', '.join(step.configs)}."
    )


def _named_file(step: Step, name: str) -> Path:
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path.absolute()
        what = "is a directory, not a config file" if path.is_dir() else "no such config file"
    except (OSError, ValueError, RuntimeError) as e:  # too long, NUL, no such user
        what = f"no such config file ({getattr(e, 'strerror', None) or e})"
    raise ConfigError(f"{name}: {what}. Name a YAML file, or one of {step.id}'s: {', '.join(step.configs)}.")


def load_yaml(path: Path) -> dict[str, Any]:
    """The file with its ``defaults`` merged below it, in order; the file itself wins.

    Raises:
        ConfigError: unreadable, malformed (with its position), a missing base or a cycle.
    """
    return merged(layers(path))


def merged(found: list[Layer]) -> dict[str, Any]:
    """The layers on top of each other."""
    data: dict[str, Any] = {}
    for layer in found:
        data = merge(data, layer.data, data)
    return data


def layers(path: Path, chain: tuple[Path, ...] = ()) -> list[Layer]:
    """The files that make up a config, each after those that it extends.

    Raises:
        ConfigError: unreadable, malformed (with its position), a missing base or a cycle.
    """
    if os.path.realpath(path) in [os.path.realpath(p) for p in chain]:  # but bases lie beside the link, not its target
        raise ConfigError(
            f"configs include each other in a circle: {' -> '.join(str(p) for p in (*chain, path))}. "
            "Remove one of these `defaults`."
        )
    if chain and not path.is_file():
        what = "is a directory" if path.is_dir() else "no such file"
        raise ConfigError(f"{path} (a base of {chain[-1]}): {what}. Mend `defaults` of {chain[-1].name}.")
    if len(chain) > 50:
        raise ConfigError(f"{path}: more than 50 `defaults` in a chain. Shorten it.")
    loaded = read_yaml(path)
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: is not a mapping. Write `key: value` lines.")
    data = merge(None, loaded)  # a copy: YAML aliases share what later steps change
    bases = _bases(data)
    if bases is None:
        return [Layer(path, data)]
    del data["defaults"]
    files = [path.parent / (b if Path(b).suffix else f"{b}.yaml") for b in bases if b != "_self_"]
    return [*(layer for f in files for layer in layers(f, (*chain, path))), Layer(path, data)]


def _bases(config: dict[str, Any]) -> list[str] | None:
    """The file names under ``defaults``; None where that key is absent or is something else's (Hydra mappings)."""
    value = config.get("defaults")
    names = [value] if isinstance(value, str) else value
    return names if isinstance(names, list) and names and all(isinstance(n, str) for n in names) else None
