"""Whether a profile can do its job: its inheritance, keys and values, and the guardrails of a step.

An error is what cannot work; a warning is what is doubtful. A value that hangs on an environment variable that is not
set here counts as unknown, never as wrong: the file may well be for another machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemotron_dagster.catalog.model import Runspec, Step
from nemotron_dagster.config.guardrail_case import Case, Finding, Level
from nemotron_dagster.config.guardrail_facts import Facts, facts, memory_gb, minutes
from nemotron_dagster.config.guardrail_rules import Rules, load_rules
from nemotron_dagster.config.guardrail_step import CHECKS
from nemotron_dagster.config.interpolation import Unresolved
from nemotron_dagster.config.job import YAML_WINS
from nemotron_dagster.config.profiles import Environment, KeyPath, secret_message
from nemotron_dagster.config.references import unset_secrets
from nemotron_dagster.config.secrets import is_secret, redact
from nemotron_dagster.errors import NemotronError, ProfileError
from nemotron_dagster.project import Project

if TYPE_CHECKING:
    from nemotron_dagster.config.compile import JobSpec

__all__ = ["Finding", "check_job", "check_profile", "check_profiles"]

_COMMANDS = ("run_command", "setup_lines")  # a "<" in them redirects


def check_profile(
    project: Project, environment: Environment, profile: str, step: Step | None = None, config: str | None = None
) -> list[Finding]:
    """Everything wrong or doubtful with a profile; with ``step``, also whether it suits that step and config.

    ``config`` is a name or path as for ``-c``; default: the step's default config. Nothing is raised for what is
    wrong with the profile: it is a finding.

    Raises:
        ConfigError, UsageError: the config cannot be read, or a guardrails.toml is malformed.
    """
    return check_profiles(project, environment, [profile], step, config)


def check_profiles(
    project: Project,
    environment: Environment,
    profiles: Iterable[str],
    step: Step | None = None,
    config: str | None = None,
) -> list[Finding]:
    """The findings of several profiles, as ``check_profile`` has them; rules and config are read once."""
    rules = load_rules(project)
    document = _config(step, config) if step else {}
    return [f for name in profiles for f in _check(project, environment, name, step, rules, document)]


def check_job(project: Project, environment: Environment, spec: JobSpec) -> list[Finding]:
    """Whether the profile of a compiled job suits its step, its config and its overrides.

    What compiling refuses or tells by itself (inheritance, keys, values, secrets in clear text) is left out.

    Raises:
        ConfigError: a guardrails.toml is malformed.
    """
    from nemotron_dagster.config.compose import config_path, load_yaml
    from nemotron_dagster.config.keys import get
    from nemotron_dagster.config.overrides import apply, parse_dotlist

    if spec.profile is None or (spec.profile, spec.environment.get("executor")) == ("local", "local"):
        return []  # there the hardware itself is looked at
    written = load_yaml(config_path(spec.step, spec.config))
    apply(written, parse_dotlist(spec.overrides))
    own = {k: spec.environment.get(k) for k in get(written, "run.env") or {}}
    case = Case(
        environment,
        spec.profile,
        spec.environment,
        frozenset(),
        load_rules(project),
        spec.step,
        {**spec.train, "run": {"env": own}},
    )
    found = _unresolved(environment, spec.profile, spec.environment, {})
    return list(dict.fromkeys([*found, *_suits(case)]))


def _check(
    project: Project,
    environment: Environment,
    profile: str,
    step: Step | None,
    rules: Rules,
    document: Mapping[str, Any],
) -> list[Finding]:
    try:
        settings, failed = environment.resolved(profile)
    except ProfileError as e:
        where, _, text = str(e).partition(": ")
        return [Finding("error", profile, "", redact(text or where), where if text else "")]
    found = _unresolved(environment, profile, settings, failed)
    for path in environment.literal_secrets(profile):
        where = environment.where(profile, *path)
        text = secret_message(where, profile, path).removeprefix(f"{where}: profile {profile!r}: ")
        found.append(Finding("warning", profile, ".".join(map(str, path)), text, where))

    unknown = frozenset(str(path[0]) for path in failed)
    known = _without(settings, failed)
    env = (document.get("run") or {}).get("env") or {}
    own = {k: v for k, v in env.items() if not (isinstance(v, str) and "${" in v)} if isinstance(env, dict) else {}
    effective = {**own, **known, **{k: own[k] for k in YAML_WINS if k in own}}
    case = Case(environment, profile, effective, unknown - set(own), rules, step, document)
    found += _schema(project, case)
    return list(dict.fromkeys([*found, *_suits(case)]))


def _suits(case: Case) -> Iterator[Finding]:
    """What the rules say of a profile whose keys and values are in order."""
    case = replace(case, facts=_facts(case, case.step.runspec if case.step else None))
    for check in (_executor, _required, _storage, _placeholders, _time, _shape, *(CHECKS if case.step else ())):
        yield from check(case)


def _unresolved(
    environment: Environment, profile: str, settings: dict[str, Any], failed: Mapping[KeyPath, Unresolved]
) -> list[Finding]:
    """A wrong reference is an error; a variable that is not set here is one warning, with the keys that want it."""
    found: list[Finding] = []
    unset: dict[str, list[KeyPath]] = {}
    for path, what in failed.items():
        if what.variable:
            unset.setdefault(what.variable, []).append(path)
        else:
            key = ".".join(map(str, path))
            text = redact(f"{key}: {what.reason}. Mend it or remove the key.")
            found.append(Finding("error", profile, key, text, environment.where(profile, *path)))
    for path, variable in unset_secrets(settings, os.environ):
        if path not in failed:
            unset.setdefault(variable, []).append(path)
    for variable, paths in unset.items():
        keys = [".".join(map(str, path)) for path in paths]
        text = f"{variable} is not set here; {', '.join(keys)} refer to it. Export it before use, or give a default."
        found.append(Finding("warning", profile, keys[0], text, environment.where(profile, *paths[0])))
    return found


def _executor(case: Case) -> Iterator[Finding]:
    if "executor" in case.settings or "executor" in case.unknown:
        return
    children = [
        n for n in case.environment.profiles if n != case.profile and _extends(case.environment, n, case.profile)
    ]
    if children and case.step is None:
        return  # a base that is not run itself
    yield case.find("error", "", 'names no executor. Set executor = "local" (slurm, lepton, dgxcloud, kubernetes).')


def _schema(project: Project, case: Case) -> Iterator[Finding]:
    from pydantic import ValidationError

    from nemotron_dagster.jobs.target import settings_of, target_module

    if not case.executor:
        return
    try:
        model = target_module(project, case.executor).Settings
        model.model_validate(case.settings)
    except ProfileError as e:
        yield case.find("error", "executor", str(e))
    except ValidationError as e:
        wrong = list(dict.fromkeys(str(p["loc"][0]) if p["loc"] else "" for p in e.errors()))
        for key in wrong:  # one at a time, so that each is told, not only the first
            if key in case.unknown or (not key and case.unknown):
                continue  # hangs on a value that is not known here
            alone = {k: v for k, v in case.settings.items() if k == key or k not in wrong}
            try:
                settings_of(project, case.executor, alone, "")
            except ProfileError as told:
                yield case.find("error", key, str(told).removeprefix(": "))


def _required(case: Case) -> Iterator[Finding]:
    rule = case.rules.of_executor(case.executor)
    level: Level = "error" if case.step or not _is_parent(case) else "warning"
    ray = case.step is not None and case.step.runspec is not None and case.step.runspec.launch == "ray"
    for name, how in (("required", level), ("recommended", "warning"), ("ray_recommended", "warning")):
        if name == "ray_recommended" and not ray:
            continue
        for alternatives in rule.get(name, ()):
            keys = alternatives.split("|")
            if any(case.settings.get(k) or k in case.unknown for k in keys):
                continue
            verb = "needs" if name == "required" else "usually needs"
            text = f"{case.executor} {verb} {' or '.join(keys)}. Set {keys[0]} in this profile or its parent."
            yield case.find("error" if how == "error" else "warning", "", text)
    if ray and rule.get("one_node"):
        text = f"{case.executor} runs a Ray step as one process group of this machine. Use a cluster's profile"
        yield case.find("warning", "executor", f"{text}, unless its GPUs are enough.")
    image = rule.get("container", "none")
    if case.step is None or image == "none" or case.facts.image or {"container_image", "container"} & case.unknown:
        return
    if image == "required":
        text = f"{case.executor} runs containers; neither profile, config nor {case.step.id} names one."
        yield case.find("error", "container_image", f"{text} Set container_image.")
    else:
        if case.settings.get("python"):
            return
        shared = case.settings.get("files") == "shared" or not (case.settings.get("files") or case.settings.get("host"))
        text = "no container_image and no python: "
        if shared:
            text += "the job runs in the environment built here, which its nodes must see at the same path. Set one"
        else:
            text += "nothing says what runs the job there, and a run would be refused. Set one"
        yield case.find("warning", "container_image", f"{text} of them.")


def _storage(case: Case) -> Iterator[Finding]:
    rule = case.rules.of_executor(case.executor).get("storage") or {}
    volumes = case.settings.get(rule.get("key", ""), [])
    paths = [str(v.get(rule["path"], "")) for v in volumes if isinstance(v, Mapping)] if rule else []
    if not paths or rule["key"] in case.unknown or any("${" in p for p in paths):
        return
    for key in rule["below"]:
        value = str(case.settings.get(key) or "")
        if value and not any((value.rstrip("/") + "/").startswith(p.rstrip("/") + "/") for p in paths):
            text = f"{key} = {value} lies on no volume of {rule['key']} ({', '.join(paths)}): the job would not see it."
            yield case.find("error", key, f"{text} Move it below one of them.")


def _placeholders(case: Case) -> Iterator[Finding]:
    words = case.rules.table("placeholders").get("contains", [])
    for key, value in case.settings.items():
        if isinstance(value, str) and "${" not in value and not is_secret(key) and key not in _COMMANDS:
            for word in words:
                if word in value:
                    yield case.find(
                        "warning", key, f"{key} = {value} looks like a template's. Write your site's value."
                    )
                    break


def _time(case: Case) -> Iterator[Finding]:
    least = case.rules.of_executor(case.executor).get("doubtful_minutes")
    given = minutes(case.settings["time"]) if case.settings.get("time") else None
    if least and given is not None and given < least:
        text = f"time = {case.settings['time']} is {given:g} minutes. Write HH:MM:SS"
        yield case.find("warning", "time", f"{text} if hours were meant.")
    memory = case.settings.get("mem")
    size = memory_gb(memory, "m") if memory is not None and case.executor == "slurm" else None
    if size is not None and 0 < size < 0.5:
        yield case.find(
            "warning", "mem", f"mem = {memory} is {size * 1024:g} MiB. Write e.g. 64G; 0 is all of the node."
        )


def _shape(case: Case) -> Iterator[Finding]:
    in_shape, gpus = case.facts.shape_gpus, case.facts.gpus
    if in_shape is None or gpus is None or "gpus_per_node" not in case.settings:
        return
    shape = case.settings["resource_shape"]
    if gpus > in_shape:
        text = f"gpus_per_node = {gpus}, but a {shape} has {in_shape}. Use a larger shape or fewer GPUs."
        yield case.find("error", "resource_shape", text)
    elif gpus < in_shape:
        text = f"gpus_per_node = {gpus}, but a {shape} has {in_shape}: the others stay idle. Use a smaller shape."
        yield case.find("warning", "resource_shape", text)


def _facts(case: Case, runspec: Runspec | None) -> Facts:
    shapes, image = case.rules.table("shapes"), runspec.image if runspec else None
    nodes = None if "nodes" in case.unknown else runspec.nodes if runspec else None
    gpus = None if {"gpus_per_node", "gpus"} & case.unknown else runspec.gpus_per_node if runspec else None
    return facts(case.settings, image, shapes, nodes, gpus)


def _config(step: Step, name: str | None) -> dict[str, Any]:
    """The step's config with what can be resolved here resolved; what cannot stays as written."""
    from nemotron_dagster.config.compose import config_path, load_yaml
    from nemotron_dagster.config.references import resolve

    if step.runspec is None:
        return {}
    return resolve(load_yaml(config_path(step, name)))[0]


def _without(settings: Mapping[str, Any], failed: Mapping[tuple[str | int, ...], Any]) -> dict[str, Any]:
    """The settings without what is not known: single variables of a table, else the whole key."""
    known = {k: dict(v) if isinstance(v, Mapping) else v for k, v in settings.items()}
    for path in failed:
        top = known.get(str(path[0]))
        if isinstance(top, dict) and len(path) > 1:
            top.pop(path[1], None)
        else:
            known.pop(str(path[0]), None)
    return known


def _extends(environment: Environment, child: str, parent: str) -> bool:
    try:
        return parent in [layer.name for layer in environment.chain(child)]
    except NemotronError:
        return False


def _is_parent(case: Case) -> bool:
    names = case.environment.profiles
    return any(n != case.profile and _extends(case.environment, n, case.profile) for n in names)
