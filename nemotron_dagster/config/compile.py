"""From (step, config, overrides, profile, environment) to a frozen ``JobSpec``."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog.model import Port, Step
from nemotron_dagster.config.artifact_references import is_reference
from nemotron_dagster.config.checks import check_choices, check_overrides, check_secrets
from nemotron_dagster.config.compose import Layer, config_path, layers, load_yaml, merged
from nemotron_dagster.config.delivery import Delivery, wanted
from nemotron_dagster.config.job import build_job
from nemotron_dagster.config.keys import ABSENT, Key, change, flat, get, join, leaves, merge, parse_key, put
from nemotron_dagster.config.overrides import apply, parse_dotlist
from nemotron_dagster.config.places import Places, Relocation
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.config.resolve import mark, resolve_job
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.project import find_project

__all__ = ["JobSpec", "Relocation", "bind_output", "compile_job"]


@dataclass(frozen=True)
class JobSpec:
    """One compiled submission. ``train`` is what reaches the payload; secrets in it are references, not values.

    Attributes:
        run: the target's settings and where the job came from, resolved.
        job: the same job as written: the config's sections and ``run``, with their interpolations.
        bound: input ports that an upstream artifact fills.
        external: input ports whose path the user gave, with that path on this machine.
        explicit_output: the output directory the user gave, or None for a managed one.
        follows: values that are made of an output directory, with a mark in its place.
        notes: what is worth a look before it runs.
        delivery: the file to which the managed output is copied when it is published.
    """

    step: Step
    config: str
    profile: str | None
    train: dict[str, Any]
    run: dict[str, Any]
    overrides: tuple[str, ...] = ()
    passthrough: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    external: dict[str, str] = field(default_factory=dict)
    explicit_output: Path | None = None
    job: dict[str, Any] = field(default_factory=dict)
    follows: tuple[tuple[tuple[Any, ...], str], ...] = ()
    delivery: Delivery | None = None
    notes: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, Any]:
        """Target settings: the profile merged with the config's own ``run.env``."""
        return dict(self.run.get("env") or {})

    @property
    def digest(self) -> str:
        """sha256 of everything that decides what the job computes; the output directory is not part of it."""
        train = json.loads(json.dumps(self.train, default=str))
        for port in self.step.produces:
            for key, _ in port.keys:
                put(train, key, None)
        for path, text in self.follows:
            _place(train, path, text)
        body = [self.step.id, train, list(self.passthrough), self.environment]
        return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()


def compile_job(
    step: Step,
    config: str | None = None,
    overrides: Iterable[str] = (),
    *,
    profile: str | None = None,
    mode: str = "local",
    environment: Environment | None = None,
    passthrough: Iterable[str] = (),
    inputs: Mapping[str, str] | None = None,
    offered: Mapping[str, str] | None = None,
    allow_unknown: bool = False,
    argv: Iterable[str] | None = None,
    relocation: Relocation | None = None,
    artifacts: Path | None = None,
    here: Path | None = None,
) -> JobSpec:
    """Compile one job.

    ``inputs`` maps a port's name to the path of its upstream artifact; it fills the port's keys unless the user gave
    them a value (an override, or a config file of their own). ``offered`` does the same, but leaves an optional port
    alone where the config does not have its key: nobody asked for that artifact. ``argv`` is the command line after
    the step's id; ``relocation`` is where the target puts the code, if it moves it; ``artifacts`` is the root of our
    own artifacts (default: that of the project around the working directory); ``here`` is where the relative path of a
    delivered file starts.

    Raises:
        ConfigError, ProfileError, UsageError: naming the file, key or value, and the fix.
    """
    overrides, passthrough = tuple(overrides), tuple(passthrough)
    file = config_path(step, config)
    files = layers(file)
    loaded = merged(files)
    pairs = parse_dotlist(overrides)
    check_secrets(pairs)
    notes = [] if allow_unknown else check_overrides(step, pairs, merge(_default(step), loaded))
    cli = _cli(config or file.stem, overrides, passthrough, argv)
    job = build_job(step, loaded, pairs, cli, profile, mode, environment or Environment())

    places = Places(relocation, find_project().root)
    given = {path for key, value in pairs for path, _ in flat(value, parse_key(key))}
    given |= {path for layer in files if not _owned(step, layer) for path, _ in flat(layer.data)}
    written = places.relocate(merge(None, {k: v for k, v in job.items() if k != "run" and k not in step.literal}))
    bound, external = _bind(step, written, given, inputs or {}, offered or {})
    outputs = _outputs(step, written)
    root = {**written, "run": {k: v for k, v in job["run"].items() if k != "cli"}}
    _require(step, root)

    resolved, run, follows = resolve_job(step, root, files, places, outputs, artifacts)
    train = {k: resolved.get(k, v) for k, v in job.items() if k != "run"} | resolved
    kept = {k: v for k, v in run.items() if is_reference(v)}
    train |= {"run": kept} if kept else {}
    check_choices(step, train, str(file))
    for path in (p for p in given if p[0] not in step.literal):
        change(train, path, lambda value: _rooted(value, places))
    explicit = next((p.bind for p in step.produces if p.bind and not p.deliver and _is_given(p.bind, given)), None)
    values = {port: get(train, bind) for port, bind in external.items()}
    return JobSpec(
        step=step,
        config=config or file.stem,
        profile=profile,
        train=train,
        run=run | {"cli": cli},
        overrides=overrides,
        passthrough=passthrough,
        bound=tuple(bound),
        external={n: places.back(str(v)) for n, v in values.items() if v not in (None, "")},
        explicit_output=Path(places.back(str(get(train, explicit)))).expanduser().absolute() if explicit else None,
        job=job,
        follows=follows,
        delivery=wanted(step, train, here),
        notes=tuple(notes),
    )


def bind_output(spec: JobSpec, port: Port, directory: Path) -> dict[str, Any]:
    """The config that reaches the payload, with ``port``'s output directory filled in, and in all that follows it."""
    train = json.loads(json.dumps(spec.train))
    places = {p.bind: str(get(train, p.bind)) for p in spec.step.produces if p.bind}
    for key, suffix in port.keys:
        places[key] = f"{directory}{suffix}"
        put(train, key, places[key])
    for path, text in spec.follows:
        for key, place in places.items():
            text = text.replace(mark(key), place)
        _place(train, path, text)
    return dict(train)


def _cli(config: str, overrides: tuple[str, ...], passthrough: tuple[str, ...], argv: Any) -> dict[str, Any]:
    """What ``run.cli`` records of the command line."""
    return {
        "argv": [*overrides, *passthrough] if argv is None else list(argv),
        "dotlist": list(overrides),
        "passthrough": list(passthrough),
        "config": config,
    }


def _default(step: Step) -> dict[str, Any]:
    """The step's default config, whose keys every other config of the step may be given."""
    assert step.runspec is not None
    file = step.runspec.config_dir / f"{step.runspec.default_config}.yaml"
    return load_yaml(file) if file.is_file() else {}


def _owned(step: Step, layer: Layer) -> bool:
    """Whether the file is one of the step's configs: what it says is no wish of the user's."""
    assert step.runspec is not None
    return layer.file.parent.resolve() == step.runspec.config_dir.resolve()


def _is_given(key: str, given: set[Key]) -> bool:
    path = parse_key(key)
    return any(g[: len(path)] == path for g in given)


def _bind(
    step: Step, data: dict[str, Any], given: set[Key], inputs: Mapping[str, str], offered: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Fill the keys of the inputs; the ports that were filled, and those that the user fills, with their key."""
    bound, external = [], {}
    for port in step.consumes:
        path = inputs.get(port.name)
        if path is None and port.bind and (port.required or get(data, port.bind, ABSENT) is not ABSENT):
            path = offered.get(port.name)
        if port.bind and _is_given(port.bind, given):
            external[port.name] = port.bind
        elif port.bind and path is not None:
            more = [(k, path + suffix) for k, suffix in port.also if not _is_given(k, given)]
            apply(data, [(port.bind, path + port.suffix), *((k, place) for k, place in more if _is_there(place))])
            bound.append(port.name)
    return bound, external


def _is_there(path: str) -> bool:
    """Whether an artifact has the part that a further key is for; a split may be missing."""
    return os.path.exists(path) or (glob.has_magic(path) and any(glob.iglob(path, recursive=True)))


def _outputs(step: Step, data: dict[str, Any]) -> list[str]:
    """The keys of the output directories. Nobody need give them: the run fills them."""
    keys = list(dict.fromkeys(k for p in step.produces for k, _ in p.keys))
    for key in keys:
        if get(data, key) == "???":
            put(data, key, None)
    return keys


def _require(step: Step, data: dict[str, Any]) -> None:
    missing = sorted(join(path) for path, value in leaves(data) if value == "???")
    if missing:
        words = " ".join(f"{key}=VALUE" for key in missing)
        raise ConfigError(f"{step.id}: {', '.join(missing)} must be given. Add {words}.")


def _place(data: Any, path: tuple[Any, ...], value: Any) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value


def _rooted(value: Any, places: Places) -> Any:
    """A relative path of something that is here, as an absolute one: the job runs in a directory of its own."""
    if isinstance(value, list):
        return [_rooted(v, places) for v in value]
    if not isinstance(value, str) or not value or value.startswith(("/", "~", "$")) or "://" in value:
        return value
    here = Path.cwd() / value
    try:
        found = here.exists() or (glob.has_magic(value) and any(glob.iglob(str(here), recursive=True)))
    except (ValueError, OSError):  # no path at all: NUL bytes, too long
        return value
    return places.there(str(here)) if found and ("/" in value or here.suffix or here.is_dir()) else value
