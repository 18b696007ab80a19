"""The catalog's nouns as frozen data. Standard library only: ``steps list`` imports nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.errors import ConfigError


@dataclass(frozen=True)
class Port:
    """One artifact a step consumes or produces.

    Attributes:
        bind: config key (dotted) that carries the path.
        also: further keys that the same artifact fills, each with its own suffix.
        source: id of the default producer in the catalog pipeline (``from`` in step.toml).
        path: produced only: where below the output directory the artifact proper lies.
        suffix: appended to the artifact's path before it fills the key; a produced file's name.
        deliver: produced only: the config's own value of the key is a file to which the artifact is copied when done.
        latest_iteration: consumed only: of a Megatron checkpoint's parent directory, the key gets the latest iter_*.
        locks: consumed only: what must fit beside the type, by the names of ``catalog/locks.py``.
    """

    name: str
    type: str
    required: bool = True
    description: str = ""
    bind: str | None = None
    source: str | None = None
    path: str = "."
    suffix: str = ""
    deliver: bool = False
    also: tuple[tuple[str, str], ...] = ()
    locks: tuple[str, ...] = ()
    latest_iteration: bool = False

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """Every config key of the port, the first one first, with its suffix."""
        return ((self.bind, self.suffix), *self.also) if self.bind else ()


@dataclass(frozen=True)
class Parameter:
    name: str
    default: Any = None
    description: str = ""
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Runspec:
    """The ``[tool.runspec]`` block of a step.py."""

    name: str = ""
    image: str | None = None
    launch: str = "torchrun"
    cmd: str | None = None
    workdir: str | None = None
    config_dir: Path = Path("config")
    default_config: str = "default"
    nodes: int = 1
    gpus_per_node: int = 8
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A unit of work: manifest, payload and named configs, all in ``directory``.

    Attributes:
        plans: its payload takes ``--plan`` and then only says what a run would take.
        freeform: config keys below which any key goes.
        literal: config keys whose ``${...}`` are not ours to resolve: they reach the payload as they are written.
    """

    id: str
    name: str
    category: str
    description: str
    directory: Path
    tags: tuple[str, ...] = ()
    consumes: tuple[Port, ...] = ()
    produces: tuple[Port, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    models: tuple[dict[str, Any], ...] = ()
    strategies: tuple[dict[str, Any], ...] = ()
    errors: tuple[dict[str, Any], ...] = ()
    reference: dict[str, str] = field(default_factory=dict)
    ready: bool = True
    env: str = "engine"
    resumable: bool = False
    plans: bool = False
    freeform: tuple[str, ...] = ()
    literal: tuple[str, ...] = ()
    runspec: Runspec | None = None

    @property
    def script(self) -> Path:
        return self.directory / "step.py"

    @property
    def configs(self) -> tuple[str, ...]:
        """Names of the configs, the default one first.

        Raises:
            ConfigError: the config folder cannot be read.
        """
        if self.runspec is None or not self.runspec.config_dir.is_dir():
            return ()
        try:
            files = list(self.runspec.config_dir.iterdir())
        except OSError as e:
            raise ConfigError(
                f"{self.runspec.config_dir}: cannot be read ({e.strerror}). Check its permissions."
            ) from e
        names = sorted({p.stem for p in files if p.suffix in (".yaml", ".yml")})
        return tuple(sorted(names, key=lambda n: n != self.runspec.default_config))  # type: ignore[union-attr]

    @property
    def summary(self) -> str:
        """First line of the description."""
        return self.description.strip().splitlines()[0] if self.description.strip() else ""
