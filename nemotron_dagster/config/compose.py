"""Load a step's config: by name or path, with its chain of ``defaults``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.catalog.model import Step
from nemotron_dagster.config.source import read_yaml, yaml_position
from nemotron_dagster.errors import ConfigError, UsageError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig


def config_path(step: Step, name: str | None) -> Path:
    """The file of a config: a name of the step's (default: its default one), or a path where it looks like one.

    Raises:
        ConfigError: the step has no runspec, or no such file.
        UsageError: no config of that name.
    """
    if step.runspec is None:
        raise ConfigError(f"{step.id}: has no step.py, so it cannot run. Add one, see docs/steps.md.")
    name = name or step.runspec.default_config
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            what = "is a directory, not a config file" if path.is_dir() else "no such config file"
            raise ConfigError(f"{name}: {what}. Name a YAML file, or one of {step.id}'s: {', '.join(step.configs)}.")
        return path.resolve()
    for suffix in (".yaml", ".yml"):
        path = step.runspec.config_dir / f"{name}{suffix}"
        if path.is_file():
            return path.resolve()
    raise UsageError(
        f"{step.id} has no config {name!r}.{did_you_mean(name, step.configs)} Available: {', '.join(step.configs)}."
    )


def load_yaml(path: Path, chain: tuple[Path, ...] = ()) -> DictConfig:
    """The file with its ``defaults`` merged below it, in order; the file itself wins.

    Raises:
        ConfigError: unreadable, malformed (with line and column), a missing base or a cycle.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = path.resolve()
    if path in chain:
        raise ConfigError(f"configs include each other in a circle: {' -> '.join(str(p) for p in (*chain, path))}.")
    if chain and not path.exists():
        raise ConfigError(f"{path} (a base of {chain[-1]}): there is no such file. Mend `defaults` or the path.")
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: is not a mapping. Write `key: value` lines.")
    try:
        loaded = OmegaConf.create(data)
    except OmegaConfBaseException as e:
        key = str(getattr(e, "full_key", None) or "")
        where = yaml_position(path, key) or path
        raise ConfigError(f"{where}: {key}: {str(e).splitlines()[0]}. Mend that value.") from e
    bases = _bases(loaded)
    if bases is None:
        return loaded
    del loaded["defaults"]
    files = [path.parent / (b if Path(b).suffix else f"{b}.yaml") for b in bases if b != "_self_"]
    layers = [load_yaml(f, (*chain, path)) for f in files]
    try:
        merged = OmegaConf.merge(*layers, loaded)
    except (OmegaConfBaseException, TypeError) as e:
        text = str(e).splitlines()[0]
        raise ConfigError(f"{path}: does not merge over its `defaults`: {text}. Mend that key.") from e
    assert isinstance(merged, DictConfig)
    return merged


def _bases(config: DictConfig) -> list[str] | None:
    """The file names under ``defaults``; None where that key is absent or is something else's (Hydra mappings)."""
    from omegaconf import OmegaConf

    if "defaults" not in config:
        return None
    value: Any = OmegaConf.to_container(config)["defaults"]  # type: ignore[index,call-overload]
    names = [value] if isinstance(value, str) else value
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None
