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
from nemotron_dagster.config.overrides import parse_dotlist
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.config.secrets import HIDDEN, is_secret, redact
from nemotron_dagster.config.source import Position, read_yaml, toml_position, yaml_position
from nemotron_dagster.errors import ConfigError, did_you_mean
from nemotron_dagster.files import printable

Parts = tuple[str, ...]

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_VARIABLE = re.compile(r"oc\.env\s*:\s*([A-Za-z_]\w*)\s*(,)?")
_ABSENT = object()
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
    parts = _parts(key)
    value = _get(sources.final, parts)
    if value is _ABSENT or not parts:
        raise _unknown(key, step, sources.final)
    if isinstance(value, Mapping) and value:
        return [layer for path, _ in _leaves(value, parts) for layer in sources.layers(path)]
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
        self.step, self.spec, self.environment = step, spec, environment
        self.files = list(_files(file, f"config {file.stem}"))
        self.profiles = list(_profiles(environment, profile)) if profile else []
        self.overrides = [(_parts(k), v) for k, v in parse_dotlist(overrides)]
        self.final: dict[str, Any] = {**spec.train, "run": spec.run}

    def layers(self, path: Parts, followed: frozenset[Parts] = frozenset()) -> list[Layer]:
        """The layers of one value, lowest first, then what the deciding one refers to."""
        key, final = ".".join(path), _get(self.final, path)
        found = [*self._system(path), *self._from_files(path)]
        found = _ordered(found, self._from_profiles(path), final)
        found += self._from_overrides(path)
        deciding = _deciding(found, final)
        found = [replace(layer, wins=i in deciding) for i, layer in enumerate(found)]
        filled = self._filled(key, final)
        if filled is not None or not found:
            found = [replace(layer, wins=False) for layer in found]
            found.append(filled or Layer(key, final, "set by nemotron", None, True))
        for layer in [one for one in found if one.wins]:
            found += self._references(layer, path, followed | {path})
        return [replace(layer, value=_hidden(path, layer.value)) for layer in found]

    def _from_files(self, path: Parts) -> Iterator[Layer]:
        for file, source, data in self.files:
            value = _get(data, path)
            if value is not _ABSENT:
                yield Layer(".".join(path), value, source, _yaml_at(file, path))

    def _from_profiles(self, path: Parts) -> list[Layer]:
        found = []
        for file, name, table in self.profiles if path[:2] == ("run", "env") else []:
            value = _get(table, path[2:])
            if value is not _ABSENT and path[2:]:
                at = _toml_at(file, (name, *path[2:]))
                found.append(Layer(".".join(path), value, f"profile {name}", at))
        return found

    def _system(self, path: Parts) -> Iterator[Layer]:
        """[wandb] reaches run.wandb, [artifacts] the root; the config's own keys win over both."""
        for name, prefix in (("wandb", ("run", "wandb")), ("artifacts", ("artifacts",))):
            table = self.environment.tables.get(name)
            if path[: len(prefix)] == prefix and isinstance(table, Mapping):
                rest = path[len(prefix) :]
                value = _get(table, rest)
                if value is not _ABSENT:
                    at = _toml_at(self.environment.file, (name, *rest))
                    yield Layer(".".join(path), value, f"[{name}]", at)

    def _from_overrides(self, path: Parts) -> Iterator[Layer]:
        for key, value in self.overrides:
            below = _get(value, path[len(key) :]) if path[: len(key)] == key else _ABSENT
            if below is not _ABSENT:
                text = _short(_hidden(key, value))
                yield Layer(".".join(path), below, f"override {'.'.join(key)}={text}")

    def _filled(self, key: str, final: Any) -> Layer | None:
        """What binding puts there: an upstream artifact, or the output directory that the engine manages."""
        for port in self.step.consumes:
            if port.bind == key and port.name in self.spec.bound:
                producer = f" of {port.source}" if port.source else ""
                return Layer(key, final, f"artifact{producer}, the input {port.name}", None, True)
        for port in self.step.produces:
            if port.bind == key and self.spec.explicit_output is None:
                source = f"output directory of the job, set when it starts; {key}=DIR names another"
                return Layer(key, _MANAGED, source, None, True)
        return None

    def _references(self, layer: Layer, path: Parts, followed: frozenset[Parts]) -> Iterator[Layer]:
        for text in _REFERENCE.findall(layer.value if isinstance(layer.value, str) else ""):
            variable = _VARIABLE.match(text)
            if variable:
                yield _from_variable(layer.key, path, variable[1], bool(variable[2]))
            elif ":" not in text:
                target = _target(text.strip(), path)
                value = _get(self.final, target)
                if value is _ABSENT or target in followed:
                    continue
                yield Layer(layer.key, _hidden(target, value), f"interpolation ${{{text}}}", None, True)
                if not isinstance(value, (Mapping, list)):
                    for other in self.layers(target, followed):
                        if other.wins:
                            yield replace(other, key=layer.key, source=f"{other.source} ({'.'.join(target)})")


def _from_variable(key: str, path: Parts, name: str, has_default: bool) -> Layer:
    value = os.environ.get(name)
    if value is None:
        what = "is not set: its default counts" if has_default else "is not set"
        return Layer(key, None, f"environment variable {name} {what}", None, has_default)
    secret = is_secret(name) or any(is_secret(p) for p in path)
    return Layer(key, HIDDEN if secret else value, f"environment variable {name}", None, True)


def _files(path: Path, source: str) -> Iterator[tuple[Path, str, Mapping[str, Any]]]:
    """The files of a ``defaults`` chain, bases first. It compiled, so it has no circle."""
    data = read_yaml(path)
    bases = data.get("defaults")
    names = [bases] if isinstance(bases, str) else bases
    if isinstance(names, list) and all(isinstance(n, str) for n in names):
        data = {k: v for k, v in data.items() if k != "defaults"}
        for name in names:
            if name != "_self_":
                yield from _files(path.parent / (name if Path(name).suffix else f"{name}.yaml"), f"base of {path.stem}")
    yield path, source, data


def _profiles(environment: Environment, name: str) -> list[tuple[Path | None, str, Mapping[str, Any]]]:
    """File, name and table of a profile and of those that it extends, the farthest first."""
    return [(layer.file, layer.name, layer.table) for layer in reversed(environment.chain(name))]


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


def _target(text: str, path: Parts) -> Parts:
    """The key that an interpolation in the value at ``path`` names; leading dots count from there."""
    dots = len(text) - len(text.lstrip("."))
    base = path[: max(len(path) - dots, 0)] if dots else ()
    return (*base, *_parts(text.lstrip(".")))


def _parts(key: str) -> Parts:
    return tuple(p for p in re.split(r"\.|\[(\d+)\]", key) if p)


def _get(data: Any, parts: Parts) -> Any:
    for part in parts:
        if isinstance(data, Mapping):
            data = data[part] if part in data else next((v for k, v in data.items() if str(k) == part), _ABSENT)
        elif isinstance(data, list) and part.isdecimal() and int(part) < len(data):
            data = data[int(part)]
        else:
            return _ABSENT
    return data


def _leaves(value: Any, path: Parts) -> Iterator[tuple[Parts, Any]]:
    if isinstance(value, Mapping) and value:
        for k, v in value.items():
            yield from _leaves(v, (*path, str(k)))
    else:
        yield path, value


def _yaml_at(file: Path, path: Parts) -> Position | None:
    return yaml_position(file, ".".join(path))


def _toml_at(file: Path | None, path: Parts) -> Position | None:
    return toml_position(file, ".".join(json.dumps(p) for p in path)) if file else None


def _hidden(path: Parts, value: Any) -> Any:
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
    for path, _ in _leaves(final, ()):
        known |= dict.fromkeys(".".join(path[: i + 1]) for i in range(len(path)))
    name = printable(key, 80)
    hint = did_you_mean(key[:200], known) or f" Top-level keys: {', '.join(map(str, final))}."
    return ConfigError(f"{name!r} is no key of the compiled config of {step.id}.{hint} `run -d` prints it whole.")
