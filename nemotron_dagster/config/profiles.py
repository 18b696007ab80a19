"""Profiles of ``env.toml``: named targets and their settings, with inheritance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.config.source import read_toml
from nemotron_dagster.errors import ProfileError, did_you_mean

RESERVED = ("wandb", "cli", "cache", "artifacts")


@dataclass(frozen=True)
class Environment:
    """The profiles of one env.toml and its system sections."""

    file: Path | None = None
    tables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def profiles(self) -> tuple[str, ...]:
        return tuple(k for k, v in self.tables.items() if k not in RESERVED and isinstance(v, Mapping))

    def profile(self, name: str) -> dict[str, Any]:
        """The profile with everything it extends merged in and its interpolations resolved.

        Raises:
            ProfileError: no such profile, a parent that does not exist, a cycle, or a value that cannot be resolved.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        chain: list[str] = []
        current: str | None = name
        while current is not None:
            if current in chain:
                raise ProfileError(
                    f"{self.file}: profiles extend each other in a circle: {' -> '.join([*chain, current])}. "
                    "Remove one `extends`."
                )
            if current not in self.profiles:
                where = self.file or "env.toml (none found)"
                known = ", ".join(self.profiles) or "none"
                what = f"unknown profile {current!r}" + (f" (extended by {chain[-1]!r})" if chain else "")
                raise ProfileError(f"{where}: {what}.{did_you_mean(current, self.profiles)} Available: {known}.")
            chain.append(current)
            current = self.tables[current].get("extends")
        try:
            layers = [OmegaConf.create(dict(self.tables[c])) for c in reversed(chain)]
            merged = OmegaConf.to_container(OmegaConf.merge(*layers), resolve=True)
        except OmegaConfBaseException as e:
            raise ProfileError(f"{self.file}: profile {name!r}: {str(e).splitlines()[0]}. Set it or remove it.") from e
        assert isinstance(merged, dict)
        merged.pop("extends", None)
        return {str(k): v for k, v in merged.items()}


def load_environment(start: Path | None = None) -> Environment:
    """Read ``NEMOTRON_ENV_FILE``, else the nearest ``env.toml`` upward, no further than the first pyproject.toml.

    Raises:
        ProfileError: the named file is missing, or a file is not valid TOML.
    """
    named = os.environ.get("NEMOTRON_ENV_FILE")
    if named:
        return _read(Path(named).expanduser())
    here = (start or Path.cwd()).resolve()
    for directory in (here, *here.parents):
        if (directory / "env.toml").is_file():
            return _read(directory / "env.toml")
        if (directory / "pyproject.toml").is_file():
            break
    return Environment()


def _read(file: Path) -> Environment:
    return Environment(file, read_toml(file, ProfileError))
