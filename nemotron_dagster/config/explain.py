"""Where the value of a config key comes from: every layer that set it, lowest first."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog.model import Step
from nemotron_dagster.config.compile import JobSpec
from nemotron_dagster.config.compose import config_path
from nemotron_dagster.config.compose import layers as files_of
from nemotron_dagster.config.interpolation import Unresolved, absolute, parts_of
from nemotron_dagster.config.keys import ABSENT, Key, flat, get, join, parse_key
from nemotron_dagster.config.overrides import parse_dotlist
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.config.secrets import HIDDEN, is_secret, redact
from nemotron_dagster.config.source import Position, toml_position, yaml_position
from nemotron_dagster.errors import ConfigError, did_you_mean
from nemotron_dagster.files import printable

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_VARIABLE = re.compile(r"oc\.env\s*:\s*([A-Za-z_]\w*)\s*(,)?")
_MANAGED = "(managed)"


@dataclass(frozen=True)
class Layer:
    """One place that says something about a key.

    Attributes:
        value: what it says, literal secrets hidden.
        wins: it decides the compiled value; a variable or key that its ``${...}`` names does so with it.
    """

    key: str
    value: Any
    source: str
    position: Position | None = None
    wins: bool = False


def explain(
    step: Step,
    config: str | None,
    overrides: Iterable[str],
    profile: str | None,
    environment: Environment,
    key: str,
    spec: JobSpec,
) -> list[Layer]:
    """Every layer that set ``key`` of the compiled ``spec``, lowest first; of a section, those of each of its values.

    Raises:
        ConfigError: the compiled config has no such key; naming the closest ones.
    """
    sources = _Sources(step, config, tuple(overrides), profile, environment, spec)
    try:
        parts = parse_key(key)
    except ValueError:
        raise _unknown(key, step, sources.final) from None
    value = get(sources.final, parts, ABSENT)
    if value is ABSENT:
        raise _unknown(key, step, sources.final)
    if isinstance(value, Mapping) and value:
        return [layer for path, _ in flat(value, parts) for layer in sources.layers(path)]
    return sources.layers(parts)


def render(layers: Iterable[Layer]) -> str:
    """The layers as text: below each key its values and their sources; ``*`` marks what decides."""
    lines: list[str] = []
    key = None
    shown = [(layer, _short(layer.value)) for layer in layers]
    for layer, value in shown:
        if layer.key != key:
            key = layer.key
            width = max(len(v) for other, v in shown if other.key == key)
            lines.append(key)
        where = f"  {layer.position}" if layer.position else ""
        lines.append(f"  {'*' if layer.wins else ' '} {value.ljust(width)}  {layer.source}{where}")
    return "\n".join(lines)


class _Sources:
    """All that a job was compiled from."""

    def __init__(
        self,
        step: Step,
        config: str | None,
        overrides: tuple[str, ...],
        profile: str | None,
        environment: Environment,
        spec: JobSpec,
    ) -> None:
        file = config_path(step, config)
        self.spec, self.environment = spec, environment
        self.files = files_of(file)
        self.profiles = environment.chain(profile)[::-1] if profile else ()
        self.overrides = [(parse_key(k), v) for k, v in parse_dotlist(overrides)]
        self.final: dict[str, Any] = {**spec.train, "run": spec.run}

    def layers(self, path: Key, followed: frozenset[Key] = frozenset()) -> list[Layer]:
        """The layers of one value, lowest first, then what the deciding one refers to."""
        final = get(self.final, path, ABSENT)
        found = [*self._system("artifacts", ("artifacts",), path), *self._from_files(path)]
        found += self._system("wandb", ("run", "wandb"), path)
        found = _ordered(found, self._from_profiles(path), final)
        found += self._from_overrides(path)
        deciding = _deciding(found, final)
        found = [replace(layer, wins=i in deciding) for i, layer in enumerate(found)]
        filled = self._filled(path, final)
        if filled is not None or not found:
            found = [replace(layer, wins=False) for layer in found]
            found.append(filled or Layer(join(path), final, "set by nemotron", None, True))
        for layer in [one for one in found if one.wins]:
            found += self._references(layer, path, followed | {path})
        return [replace(layer, value=_hidden(path, layer.value)) for layer in found]

    def _from_files(self, path: Key) -> Iterator[Layer]:
        """The files of the ``defaults`` chain, bases first."""
        for file, data in ((layer.file, layer.data) for layer in self.files):
            value = get(data, path, ABSENT)
            if value is not ABSENT:
                source = f"config {file.stem}" if file == self.files[-1].file else f"base of {self.files[-1].file.stem}"
                yield Layer(join(path), value, source, yaml_position(file, path))

    def _from_profiles(self, path: Key) -> list[Layer]:
        found = []
        for layer in self.profiles if path[:2] == ("run", "env") and path[2:] else ():
            value = get(layer.table, path[2:], ABSENT)
            if value is not ABSENT:
                at = _toml_at(layer.file, (layer.name, *path[2:]))
                found.append(Layer(join(path), value, f"profile {layer.name}", at))
        return found

    def _system(self, name: str, prefix: Key, path: Key) -> Iterator[Layer]:
        """A system section of env.toml: the config's own keys win over [artifacts], [wandb] replaces ``run.wandb``."""
        table, rest = self.environment.tables.get(name), path[len(prefix) :]
        value = get(table, rest, ABSENT) if path[: len(prefix)] == prefix and table else ABSENT
        if value is not ABSENT:
            yield Layer(join(path), value, f"[{name}]", _toml_at(self.environment.file, (name, *rest)))

    def _from_overrides(self, path: Key) -> Iterator[Layer]:
        for key, value in self.overrides:
            below = get(value, path[len(key) :], ABSENT) if path[: len(key)] == key else ABSENT
            if below is not ABSENT:
                yield Layer(join(path), below, f"override {join(key)}={_short(_hidden(key, value))}")

    def _filled(self, path: Key, final: Any) -> Layer | None:
        """What binding puts there: an upstream artifact, or the output directory that the engine manages."""
        for port in self.spec.step.consumes:
            for key, suffix in port.keys if port.name in self.spec.bound else ():
                whole = str(get(self.final, str(port.bind))).removesuffix(port.suffix) + suffix
                if parse_key(key) == path and (key == port.bind or final == whole):
                    producer = f" of {port.source}" if port.source else ""
                    return Layer(join(path), final, f"artifact{producer}, the input {port.name}", None, True)
        for port in self.spec.step.produces:
            for key in (k for k, _ in port.keys if parse_key(k) == path):
                if self.spec.delivery is not None:
                    source = f"file of the job, set when it starts; copied to {self.spec.delivery.path} when it is done"
                elif self.spec.explicit_output is None:
                    source = f"output directory of the job, set when it starts; {key}=DIR names another"
                elif key != port.bind:
                    source = f"set when the job starts, below {port.bind}"
                else:
                    continue
                return Layer(join(path), _MANAGED, source, None, True)
        return None

    def _references(self, layer: Layer, path: Key, followed: frozenset[Key]) -> Iterator[Layer]:
        for text in _REFERENCE.findall(layer.value if isinstance(layer.value, str) else ""):
            variable = _VARIABLE.match(text)
            if variable:
                yield _from_variable(layer.key, path, variable[1], bool(variable[2]))
            elif ":" not in text:
                target = _target(text.strip(), path)
                value = get(self.final, target, ABSENT) if target else ABSENT
                if target is None or value is ABSENT or target in followed:
                    continue
                yield Layer(layer.key, _hidden(target, value), f"interpolation ${{{text}}}", None, True)
                if not isinstance(value, (Mapping, list)):
                    for other in self.layers(target, followed):
                        if other.wins:
                            yield replace(other, key=layer.key, source=f"{other.source} ({join(target)})")


def _from_variable(key: str, path: Key, name: str, has_default: bool) -> Layer:
    value = os.environ.get(name)
    if value is None:
        what = "is not set: its default counts" if has_default else "is not set"
        return Layer(key, None, f"environment variable {name} {what}", None, has_default)
    secret = is_secret(name) or any(is_secret(p) for p in path)
    return Layer(key, HIDDEN if secret else value, f"environment variable {name}", None, True)


def _ordered(files: list[Layer], profiles: list[Layer], final: Any) -> list[Layer]:
    """A profile wins over the config, but for the keys of which the config knows better, such as its image."""
    if files and profiles and _same(files[-1].value, final) and not _same(profiles[-1].value, final):
        return [*profiles, *files]
    return [*files, *profiles]


def _deciding(found: list[Layer], final: Any) -> set[int]:
    """The topmost layer that gives a value; of lists that were put together, all of them."""
    given = [i for i, layer in enumerate(found) if layer.value != "???"] or list(range(len(found)))
    if not given:
        return set()
    if isinstance(final, list) and found[given[-1]].value != final:
        parts = {i for i in given if isinstance(found[i].value, list) and all(v in final for v in found[i].value)}
        if len(parts) > 1:
            return parts
    return {given[-1]}


def _same(written: Any, final: Any) -> bool:
    return bool(written == final) or (isinstance(written, str) and "${" in written)


def _target(text: str, path: Key) -> Key | None:
    """The key that an interpolation in the value at ``path`` names; leading dots count from there."""
    bare = text.lstrip(".")
    try:
        return absolute(path, len(text) - len(bare), parts_of(bare))
    except Unresolved:
        return None


def _toml_at(file: Path | None, path: Key) -> Position | None:
    return toml_position(file, ".".join(json.dumps(p) for p in path)) if file else None


def _hidden(path: Key, value: Any) -> Any:
    """The value without literal secrets, be it its own or those below it."""
    for part in reversed(path):
        value = {part: value}
    value = redact(value)
    for part in path:
        if not isinstance(value, Mapping):
            return value  # a section above is a secret as a whole
        value = value[part]
    return value


def _short(value: Any) -> str:
    return printable(value if value == _MANAGED else json.dumps(value, ensure_ascii=False, default=str), 100)


def _unknown(key: str, step: Step, final: Mapping[str, Any]) -> ConfigError:
    known: dict[str, None] = {}
    for path, _ in flat(final):
        known |= dict.fromkeys(join(path[: i + 1]) for i in range(len(path)))
    name = printable(key, 80)
    hint = did_you_mean(key[:200], known) or f" Top-level keys: {', '.join(map(str, final))}."
    return ConfigError(f"{name!r} is no key of the compiled config of {step.id}.{hint} `run -d` prints it whole.")
