"""From (step, config, overrides, profile, environment) to a frozen ``JobSpec``."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog.model import Port, Step
from nemotron_dagster.config.compose import config_path, load_yaml
from nemotron_dagster.config.delivery import Delivery, wanted
from nemotron_dagster.config.literal import put_back, set_apart
from nemotron_dagster.config.overrides import check_keys, parse_dotlist
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.config.secrets import is_secret
from nemotron_dagster.errors import ConfigError

_ENV_REF = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)[^{}]*\}")
#: Keys of run.env that the step's YAML wins over the profile.
_YAML_WINS = ("container_image", "nodes", "gpus_per_node", "ntasks_per_node", "nproc_per_node")


@dataclass(frozen=True)
class JobSpec:
    """One compiled submission. ``train`` is what reaches the payload; secrets in it are references, not values.

    Attributes:
        bound: input ports that an upstream artifact fills.
        external: input ports whose path the user gave, with that path.
        explicit_output: the output directory the user gave, or None for a managed one.
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
    delivery: Delivery | None = None

    @property
    def environment(self) -> dict[str, Any]:
        """Target settings: the profile merged with the config's own ``run.env``."""
        return dict(self.run.get("env") or {})

    @property
    def digest(self) -> str:
        """sha256 of everything that decides what the job computes; the output directory is not part of it."""
        train = json.loads(json.dumps(self.train, default=str))
        for port in self.step.produces:
            if port.bind:
                set_key(train, port.bind, None)
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
    here: Path | None = None,
) -> JobSpec:
    """Compile one job.

    ``inputs`` maps a port's name to the path of its upstream artifact; it fills the port's ``bind`` key unless the
    user gave that key a value (an override, or a config file of their own). ``offered`` does the same, but leaves an
    optional port alone where the config does not have its key: nobody asked for that artifact. ``here`` is where the
    relative path of a delivered file starts.

    Raises:
        ConfigError, ProfileError, UsageError: naming the file, key or value, and the fix.
    """
    from omegaconf import OmegaConf

    overrides, passthrough, environment = tuple(overrides), tuple(passthrough), environment or Environment()
    file = config_path(step, config)
    loaded = load_yaml(file)
    pairs = parse_dotlist(overrides)
    if not allow_unknown and step.runspec:
        default = step.runspec.config_dir / f"{step.runspec.default_config}.yaml"
        layers = [load_yaml(default), loaded] if default.is_file() else [loaded]
        check_keys(step, pairs, _union(*(OmegaConf.to_container(layer) for layer in layers)))
    for key, value in pairs:
        update(loaded, key, value)
    settings = environment.profile(profile) if profile else {}
    run = _run_section(step, loaded, settings, profile, mode, overrides, passthrough, config or file.stem)
    OmegaConf.update(loaded, "run", run, merge=False, force_add=True)
    for name in ("wandb", "artifacts"):
        if environment.tables.get(name):
            _merge_system(loaded, name, dict(environment.tables[name]))
    for key, value in pairs:
        if key.startswith("run."):
            update(loaded, key, value)

    owned = step.runspec is not None and file.parent == step.runspec.config_dir.resolve()
    given = {k for k, _ in pairs} | (
        set() if owned else {k for k, _ in _leaves(OmegaConf.to_container(load_yaml(file)))}
    )
    named = OmegaConf.to_container(loaded, resolve=False)
    external, bound = {}, []
    for port in step.consumes:
        path = (inputs or {}).get(port.name)
        if path is None and port.bind and (port.required or _has(named, port.bind)):
            path = (offered or {}).get(port.name)
        if port.bind and port.bind in given:
            external[port.name] = port.bind
        elif port.bind and path is not None:
            update(loaded, port.bind, path + port.suffix)
            bound.append(port.name)
    explicit = next((p.bind for p in step.produces if p.bind in given and not p.deliver), None)

    literal = set_apart(loaded, step.literal)
    told = set_apart(loaded["run"], ["cli"])  # what was typed, as it was typed
    resolved = resolve(loaded, step, file)
    run_plain = resolved.pop("run")
    put_back(run_plain, told)
    for key in given:
        set_existing(resolved, key, _rooted)
    put_back(resolved, literal)
    values = {name: get_key(resolved, bind) for name, bind in external.items()}
    return JobSpec(
        step=step,
        config=config or file.stem,
        profile=profile,
        train=resolved,
        run=run_plain,
        overrides=overrides,
        passthrough=passthrough,
        bound=tuple(bound),
        external={n: str(v) for n, v in values.items() if v not in (None, "")},
        explicit_output=Path(str(get_key(resolved, explicit))).expanduser().absolute() if explicit else None,
        delivery=wanted(step, resolved, here),
    )


def bind_output(spec: JobSpec, port: Port, directory: Path) -> dict[str, Any]:
    """The config that reaches the payload, with ``port``'s output directory filled in."""
    train = json.loads(json.dumps(spec.train))
    if port.bind:
        set_key(train, port.bind, f"{directory}{port.suffix}")
    return dict(train)


def resolve(config: Any, step: Step, file: Path) -> dict[str, Any]:
    """Plain data with every interpolation resolved, but references to secret variables, which stay references.

    Raises:
        ConfigError: an interpolation cannot be resolved, or a mandatory ``???`` has no value, naming the key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

    kept: list[str] = []

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: hide(v) for k, v in value.items()}
        if isinstance(value, list):
            return [hide(v) for v in value]
        if isinstance(value, str) and "${oc.env" in value:
            value = value.replace("${oc.env:NEMOTRON_STEP_DIR}", str(step.directory.resolve()))
            return _ENV_REF.sub(lambda m: mark(m[0]) if is_secret(m[1]) else m[0], value)
        return value

    def mark(reference: str) -> str:
        kept.append(reference)
        return f"\x00{len(kept) - 1}\x00"

    def show(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: show(v) for k, v in value.items()}
        if isinstance(value, list):
            return [show(v) for v in value]
        if isinstance(value, str) and "\x00" in value:
            return re.sub(r"\x00(\d+)\x00", lambda m: kept[int(m[1])], value)
        return value

    plain = OmegaConf.to_container(config, resolve=False)
    missing = sorted(key for key, value in _leaves(plain) if value == "???")
    if missing:
        raise ConfigError(f"{step.id}: {', '.join(missing)} must be given. Add {missing[0]}=VALUE.")
    hidden = OmegaConf.create(hide(plain))
    try:
        return show(OmegaConf.to_container(hidden, resolve=True, throw_on_missing=True))  # type: ignore[no-any-return]
    except InterpolationKeyError as e:
        raise ConfigError(f"{file}: {e.full_key}: {str(e.msg).splitlines()[0]}. Set that key.") from e
    except OmegaConfBaseException as e:
        key = getattr(e, "full_key", None) or "?"
        text = str(getattr(e, "msg", None) or e).splitlines()[0]
        raise ConfigError(f"{file}: {key}: {text}. Set {key}=VALUE or the variable it names.") from e


def update(config: Any, key: str, value: Any) -> None:
    """Set one dotted key, replacing what is there.

    Raises:
        ConfigError: the key runs through a scalar, or an index is out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    except (OmegaConfBaseException, IndexError, ValueError) as e:
        raise ConfigError(f"{key}={value}: cannot be set: {str(e).splitlines()[0]}. Check the key.") from e


def _has(data: Any, key: str) -> bool:
    """Whether plain data has this dotted key, be its value null."""
    for part in key.split("."):
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True


def get_key(data: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key of plain data, or None."""
    node: Any = data
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of plain data, making the sections on the way."""
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(data.get(part), dict):
            data[part] = {}
        data = data[part]
    data[last] = value


def set_existing(data: dict[str, Any], key: str, change: Callable[[Any], Any]) -> None:
    """Replace the value at a dotted key by ``change`` of it, where there is one."""
    *parents, last = key.split(".")
    node: Any = get_key(data, ".".join(parents)) if parents else data
    if isinstance(node, dict) and last in node:
        node[last] = change(node[last])


def _rooted(value: Any) -> Any:
    """A relative path of something that is here, as an absolute one: the job runs in a directory of its own."""
    if isinstance(value, list):
        return [_rooted(v) for v in value]
    if not isinstance(value, str) or not value or value.startswith(("/", "~", "$")) or "://" in value:
        return value
    here = Path.cwd() / value
    try:
        found = here.exists() or (glob.has_magic(value) and any(glob.iglob(str(here), recursive=True)))
    except (ValueError, OSError):  # no path at all: NUL bytes, too long
        return value
    return str(here) if found and ("/" in value or here.suffix or here.is_dir()) else value


def _run_section(
    step: Step,
    loaded: Any,
    settings: dict[str, Any],
    profile: str | None,
    mode: str,
    overrides: tuple[str, ...],
    passthrough: tuple[str, ...],
    config: str,
) -> dict[str, Any]:
    from omegaconf import OmegaConf

    own = OmegaConf.to_container(loaded["run"]) if "run" in loaded else {}
    run = {str(k): v for k, v in own.items()} if isinstance(own, dict) else {}
    env = dict(run.get("env") or {})
    merged = {**env, **settings}
    if "env_vars" in env or "env_vars" in settings:
        merged["env_vars"] = {**(env.get("env_vars") or {}), **(settings.get("env_vars") or {})}
    if "mounts" in env or "mounts" in settings:
        merged["mounts"] = [*(env.get("mounts") or []), *(settings.get("mounts") or [])]
    merged |= {k: env[k] for k in _YAML_WINS if k in env}
    run["env"] = merged
    run["mode"], run["profile"] = mode, profile
    run["cli"] = {
        "argv": [],
        "dotlist": list(overrides),
        "passthrough": list(passthrough),
        "config": config,
    }
    run["recipe"] = {"name": step.runspec.name if step.runspec else "", "script": str(step.script)}
    return run


def _merge_system(loaded: Any, name: str, table: dict[str, Any]) -> None:
    """[wandb] goes to run.wandb; [artifacts] to the root, where the YAML's own keys win."""
    from omegaconf import OmegaConf

    if name == "wandb":
        own = OmegaConf.select(loaded, "run.wandb") or {}
        OmegaConf.update(loaded, "run.wandb", {**table, **{k: v for k, v in dict(own).items() if v is not None}})
    else:
        own = OmegaConf.to_container(loaded["artifacts"]) if "artifacts" in loaded else {}
        OmegaConf.update(loaded, "artifacts", {**table, **(own if isinstance(own, dict) else {})}, force_add=True)


def _union(*layers: Any) -> Any:
    """The keys of all layers; of two values that are not both mappings, the later."""
    merged = layers[0]
    for layer in layers[1:]:
        if isinstance(merged, dict) and isinstance(layer, dict):
            merged = {k: _union(*(d[k] for d in (merged, layer) if k in d)) for k in {**merged, **layer}}
        else:
            merged = layer
    return merged


def _leaves(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values of plain data, down to what is no mapping."""
    if isinstance(value, dict):
        for k, v in value.items():
            yield from _leaves(v, f"{prefix}.{k}" if prefix else str(k))
    else:
        yield prefix, value
