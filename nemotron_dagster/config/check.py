"""Check steps with their configs: what `nemotron steps check` prints. Nothing is run and nothing is written."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog import Catalog, Step, load_catalog
from nemotron_dagster.catalog.check import (
    Finding,
    broken_step,
    check_folder,
    check_types,
    load_problem,
    of_error,
    stray_folders,
)
from nemotron_dagster.catalog.shape import toml_line
from nemotron_dagster.config.compile import compile_job
from nemotron_dagster.config.compose import config_path, load_yaml
from nemotron_dagster.config.keys import flat, join
from nemotron_dagster.config.source import yaml_position
from nemotron_dagster.errors import ConfigError, NemotronError, UsageError, did_you_mean
from nemotron_dagster.files import read_text
from nemotron_dagster.project import Project

#: A variable without a default: its user sets it, so the check stands in for them.
_UNSET = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)\s*\}")
_STAND_IN = "1"  # a number and a word
#: What is only known when a job is compiled for real: an artifact that was made before.
_LATER = re.compile(r"\$\{\s*art\s*:")


def check_project(project: Project, step_id: str | None = None) -> list[Finding]:
    """Findings about one step, or about all steps of the project and the bundle and their type graph.

    Raises:
        UsageError: no step of that id.
    """
    roots = list(project.folders("steps"))
    types = [f for r in roots if os.path.lexists(f := r / "types.toml")]
    own = project.root / "artifacts" if project.root else None
    if fatal := load_problem(types, own):
        return [fatal]
    catalog = load_catalog(project)
    families = {"engine", *_families(roots)}
    if step_id is None:
        strays = list(stray_folders(roots))
        found = [*check_types(types, own, catalog), *strays]
        for name, error in catalog.broken.items():
            found += broken_step(_folder(roots, name), name, error)
        for step in catalog.steps.values():
            found += check_step(step, catalog, families)
        return [*found, *_wiring(catalog)]
    if step_id in catalog.broken:
        return broken_step(_folder(roots, step_id), step_id, catalog.broken[step_id])
    if strays := [f for f in stray_folders(roots) if f.step == step_id]:
        return strays
    return list(check_step(catalog.find(step_id), catalog, families))


def check_step(step: Step, catalog: Catalog, families: set[str]) -> Iterator[Finding]:
    """Everything that can be told of one step without running it."""
    yield from check_folder(step, catalog, families)
    if step.runspec is None:
        return
    loaded: dict[str, Mapping[str, Any]] = {}
    for name in step.configs:
        try:
            loaded[name] = load_yaml(config_path(step, name))
        except NemotronError as e:
            yield of_error(ConfigError(str(e)), step.runspec.config_dir / f"{name}.yaml", step.id)
    for name, data in loaded.items():
        yield from _check_config(step, name, data)
    if len(loaded) == len(step.configs):
        yield from _check_keys(step, loaded.values())
        yield from _check_tiny(step, loaded)


def _check_config(step: Step, name: str, data: Mapping[str, Any]) -> Iterator[Finding]:
    """It says what it is for, and compiles once its user has given what it asks for."""
    file = config_path(step, name)
    lines = read_text(file).splitlines()
    if not lines or not lines[0].lstrip().startswith("#"):
        message = "does not begin with a comment. Say in one line what this config is for."
        yield Finding(str(file), 1, "warning", message, step.id)
    given = [
        f"{join(k)}={'[]' if isinstance(v, list) else _STAND_IN}"
        for k, v in flat(data)
        if v == "???" or (isinstance(v, str | list) and _LATER.search(str(v)))
    ]
    try:
        with _variables(_UNSET.findall(str(data))), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile_job(step, name, given, allow_unknown=True)
    except NemotronError as e:
        found = of_error(ConfigError(str(e)), file, step.id)
        key = re.match(r"[\w.\[\]-]+(?=: )", found.message)
        at = yaml_position(file, key[0]) if key and found.line == 1 else None
        yield replace(found, line=at.line) if at else found


def required_inputs(step: Step) -> dict[str, list[str]]:
    """Config name -> the keys that must be given (``???``), for the configs that have any.

    Raises:
        ConfigError: a config does not load.
    """
    found = {
        name: [join(k) for k, v in flat(load_yaml(config_path(step, name))) if v == "???"] for name in step.configs
    }
    return {name: keys for name, keys in found.items() if keys}


def _check_keys(step: Step, configs: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    """The manifest names keys that some config has."""
    file = step.directory / "step.toml"
    text = read_text(file)
    known = {join(key[: i + 1]) for data in configs for key, _ in flat(data) for i in range(len(key))}
    described = {p.name for p in step.parameters}

    def has(key: str) -> bool:
        return key in known or any(key == f or key.startswith(f + ".") for f in step.freeform)

    for kind, ports in (("consumes", step.consumes), ("produces", step.produces)):
        for i, port in enumerate(ports):
            for key in (k for k, _ in port.keys if not has(k) and k not in described):
                told = f"{kind} {port.name}: bind {key!r} is no key of any config and no parameter."
                hint = did_you_mean(key, known) or " Add it to a config, be it null."
                yield Finding(str(file), toml_line(text, kind, i, "bind"), "error", told + hint, step.id)
    for i, parameter in enumerate(step.parameters):
        if not has(parameter.name):
            line = toml_line(text, "parameters", i, "name")
            told = f"parameter {parameter.name} is in no config; it is accepted as an override all the same."
            yield Finding(str(file), line, "warning", told + did_you_mean(parameter.name, known), step.id)
    for name in step.freeform:
        close = [k for k in known if k not in step.freeform and _nearly(name, k)]
        if name not in known and close:  # one that no config has may still be given by a user
            told = f"freeform section {name!r} is in no config. Did you mean {close[0]}?"
            yield Finding(str(file), toml_line(text, "step", 0, "freeform"), "error", told, step.id)


def _check_tiny(step: Step, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """A ready step can be tried on a machine without GPUs."""
    assert step.runspec is not None
    where = str(step.runspec.config_dir)
    default = configs.get(step.runspec.default_config, {})
    if "tiny" not in configs:
        small = step.ready and _gpus(step, default) == 0
        level = "error" if step.ready and not small else "warning"
        message = "has no config `tiny`. Add one that runs offline on two CPU cores."
        yield Finding(where, 1, level, message, step.id)
    elif step.ready and (gpus := _gpus(step, configs["tiny"])) != 0:
        message = f"asks for {gpus} GPUs per node. Set run.env.gpus_per_node: 0, so that it runs on any machine."
        yield Finding(str(config_path(step, "tiny")), 1, "error", message, step.id)


def _gpus(step: Step, data: Mapping[str, Any]) -> Any:
    run = data.get("run")
    env = run.get("env") if isinstance(run, Mapping) else None
    named = env.get("gpus_per_node") if isinstance(env, Mapping) else None
    return step.runspec.gpus_per_node if named is None and step.runspec else named


def _wiring(catalog: Catalog) -> Iterator[Finding]:
    """The default producers feed no circle; each step becomes an asset with an op name of its own."""
    import graphlib

    sources = {s.id: [p.source for p in s.consumes if p.source in catalog.steps] for s in catalog.steps.values()}
    try:
        graphlib.TopologicalSorter(sources).prepare()
    except graphlib.CycleError as e:
        step = catalog.steps[e.args[1][0]]
        message = f"default producers feed each other: {' -> '.join(e.args[1])}. Drop one `from`."
        yield Finding(str(step.directory / "step.toml"), 1, "error", message, step.id)
    ops: dict[str, str] = {}
    for step in catalog.steps.values():
        op = step.id.replace("/", "__").replace("-", "_")
        if op in ops:
            message = f"has the same name in Dagster as {ops[op]} ({op}). Rename one of the two folders."
            yield Finding(str(step.directory / "step.toml"), 1, "error", message, step.id)
        ops.setdefault(op, step.id)


@contextmanager
def _variables(names: Iterable[str]) -> Iterator[None]:
    """Give every variable that is not set a stand-in for as long as a config is compiled."""
    mine = [n for n in dict.fromkeys(names) if n not in os.environ]
    os.environ.update(dict.fromkeys(mine, _STAND_IN))
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


def _nearly(word: str, known: str) -> bool:
    import difflib

    return difflib.SequenceMatcher(None, word, known).ratio() >= 0.8


def _families(roots: Iterable[Path]) -> set[str]:
    return {lock.name.split(".")[0] for root in roots for lock in (root / "_runtime" / "envs").glob("*.txt")}


def _folder(roots: Iterable[Path], step_id: str) -> Path:
    for root in roots:
        if (root / step_id / "step.toml").exists():
            return root / step_id
    raise UsageError(f"{step_id}: no such step folder. Run `nemotron steps list`.")
