"""Resolve a job: everything that can be, before it is submitted; what cannot is named, all of it at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog.model import Step
from nemotron_dagster.config.artifact_references import art
from nemotron_dagster.config.compose import Layer
from nemotron_dagster.config.grammar import unescape
from nemotron_dagster.config.interpolation import Reference, Resolution, Resolver, Unresolved, settled
from nemotron_dagster.config.keys import ABSENT, get, join, leaves, merge, parse_key, put
from nemotron_dagster.config.oc_resolvers import BUILTIN
from nemotron_dagster.config.places import Places
from nemotron_dagster.config.resolvers import Variables, auto_mount, manifest, mul
from nemotron_dagster.config.source import yaml_position
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.project import find_project

Follows = tuple[tuple[tuple[Any, ...], str], ...]


def resolve_job(
    step: Step, root: dict[str, Any], files: list[Layer], places: Places, outputs: list[str], artifacts: Path | None
) -> tuple[dict[str, Any], dict[str, Any], Follows]:
    """The config's sections as the job reads them, ``run`` as this machine reads it, and what follows the output.

    The sections see the variables that the job will see; ``run`` is read here, so it sees those of this process.

    Raises:
        ConfigError: naming every key that cannot be resolved, the reason, and the fix for the first.
    """
    resolvers: dict[str, Resolver] = {
        **BUILTIN,
        "auto_mount": auto_mount,
        "manifest": manifest(places),
        "mul": mul,
        "art": art(lambda: artifacts or _artifact_root()),
    }
    here = Variables(os.environ, Places(), step.directory.resolve())
    run = _values(Resolution(root, {**resolvers, "oc.env": here.resolver()}), ["run"], files)["run"]
    env = _section(run, "env")
    folder = Path(places.relocation.code, "steps", step.id) if places.relocation else step.directory.resolve()
    there = Variables(os.environ, places, folder, _section(env, "env_vars"), _derived(env, places))
    resolvers["oc.env"] = there.resolver()
    _free_outputs(root, resolvers, outputs)
    resolution = Resolution(root, resolvers)
    train = _values(resolution, [k for k in root if k != "run"], files)
    return settled(train), _for_this_machine(run), _follows(resolution, root, resolvers, outputs)


def _free_outputs(root: dict[str, Any], resolvers: dict[str, Resolver], outputs: list[str]) -> None:
    """Empty the output keys that cannot be resolved: the run fills them, so nobody need give their variables."""
    for key in outputs:
        try:
            Resolution(root, resolvers).select(parse_key(key))
        except Unresolved:
            if get(root, key, ABSENT) is not ABSENT:
                put(root, key, None)


def mark(key: str) -> str:
    """What stands in a value of ``JobSpec.follows`` for the directory that fills ``key``."""
    return f"\x00{key}\x00"


def _values(resolution: Resolution, keys: list[str], files: list[Layer]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    problems: dict[str, dict[str, str]] = {}  # reason -> key -> fix
    for key in keys:
        try:
            found[key] = resolution.value((key,))
        except Unresolved:
            for path, _ in leaves(resolution.root[key], (key,)):
                try:
                    resolution.value(path)
                except Unresolved as e:
                    problems.setdefault(str(e), {})[join(e.path or path)] = e.fix
    if problems:
        told = "; ".join(f"{', '.join(where)}: {reason}" for reason, where in problems.items())
        key, fix = next(iter(next(iter(problems.values())).items()))
        raise ConfigError(f"{_position(files, key)}: {told}. {fix.replace('{key}', key)}")
    return found


def _position(files: list[Layer], key: str) -> str:
    """Where the key is written, in the file that wins."""
    for layer in reversed(files):
        found = yaml_position(layer.file, key)
        if found is not None:
            return str(found)
    return str(files[-1].file)


def _follows(
    resolution: Resolution, root: dict[str, Any], resolvers: dict[str, Resolver], outputs: list[str]
) -> Follows:
    """The values that refer to an output directory, which is known only when the job is submitted."""
    keys = {parse_key(k) for k in outputs}
    paths = [p for p in resolution.users(keys) if p[0] != "run" and p not in keys]
    if not paths:
        return ()
    marked = merge(None, root)
    for key in outputs:
        put(marked, key, mark(key))
    again = Resolution(marked, resolvers)
    return tuple((p, str(v)) for p in paths if isinstance(v := again.value(p), str) and "\x00" in v)


def _derived(env: dict[str, Any], places: Places) -> dict[str, str]:
    """What a target that moves the code sets for the job."""
    base = env.get("remote_job_dir")
    if not places.moved or not isinstance(base, str) or not base:
        return {}
    return {"NEMO_RUN_DIR": base, "HF_HOME": f"{base.rstrip('/')}/hf"}


def _section(data: dict[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _for_this_machine(run: Any) -> dict[str, Any]:
    """``run`` with its literal text unescaped: only the job's variables are read once more, at submission."""

    def read(value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, dict):
            return {k: read(v, (*path, k)) for k, v in value.items()}
        if isinstance(value, list):
            return [read(v, path) for v in value]
        literal = isinstance(value, str) and not isinstance(value, Reference) and path[:2] != ("env", "env_vars")
        return unescape(value) if literal else settled(value)

    return dict(read(run, ()))


def _artifact_root() -> Path | None:
    """Our own artifacts, where they lie on this machine: no store is asked while compiling."""
    from nemotron_dagster.artifacts.store import artifact_root

    root = artifact_root(find_project())
    return root if isinstance(root, Path) else None
