"""From a compiled spec to the one ``Submission`` that every target understands."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog import Step
from nemotron_dagster.config.compile import JobSpec, Relocation, compile_job
from nemotron_dagster.config.grammar import escape
from nemotron_dagster.config.guardrails import check_job
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.config.references import holds_reference, reveal
from nemotron_dagster.config.secrets import is_secret, looks_secret
from nemotron_dagster.config.yaml_text import to_yaml
from nemotron_dagster.errors import PreflightError, ProfileError
from nemotron_dagster.jobs import launch, payload_env
from nemotron_dagster.jobs.target import ANY_KEY, Submission, Target, make_target, relocation_of
from nemotron_dagster.project import Project

#: Names of the variables that hold startup commands with secrets in them.
_STARTUP = "NEMOTRON_STARTUP_"
#: The job's directory as profiles for containers write it; without a container it is where it lies.
_JOB_DIRECTORY = re.compile(r"(?<![\w.-])/nemo_run(?=[/:]|$)")


def compile_on(
    project: Project,
    step: Step,
    config: str | None = None,
    overrides: Iterable[str] = (),
    *,
    environment: Environment,
    submitting: bool = True,
    **options: Any,
) -> JobSpec:
    """``compile_job`` for the target that the profile names, by the guardrails; ``options`` are its other keywords.

    Which target that is, and whether it moves the code, only the compiled job can tell: it is compiled again then.
    What is doubtful about the profile is added to the notes; unless ``submitting``, what cannot work is too.

    Raises:
        ConfigError, ProfileError, UsageError: naming the file, key or value, and the fix.
        TargetError: with ``submitting``, the target takes no jobs.
    """
    overrides = tuple(overrides)
    spec = compile_job(step, config, overrides, environment=environment, **options)
    image = step.runspec.image if step.runspec else None
    relocation = relocation_of(project, spec.profile, spec.environment, image)
    if relocation is not None:
        spec = compile_job(step, config, overrides, environment=environment, **options, relocation=relocation)
    if submitting:
        make_target(project, spec.profile, spec.environment).check()
    told: dict[str, list[str]] = {"error": [], "warning": []}
    for f in check_job(project, environment, spec):
        refused = f.level == "error" and not submitting
        text = f"{f.where}: profile {f.profile!r}: {f.message}{' A run would be refused.' if refused else ''}"
        told["warning" if refused else f.level].append(text)
    if told["error"]:
        raise ProfileError("\n".join(told["error"]))
    return replace(spec, notes=(*spec.notes, *told["warning"]))


@dataclass(frozen=True)
class Layout:
    """Where things lie, as the job sees them.

    Attributes:
        roots: the ``steps/`` folders, for PYTHONPATH.
        inherited: PYTHONPATH that the job would inherit.
        variables: what the target's own directories are called in the environment.
    """

    script: str
    config: str
    directory: str
    output: str
    messages: str
    roots: tuple[str, ...]
    inherited: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


def here(project: Project, spec: JobSpec, directory: Path, output: Path, messages: Path) -> Layout:
    """The layout of a job on this machine: code where it is, the job's files in ``directory``."""
    return Layout(
        script=str(spec.step.script),
        config=str(directory / "config.yaml"),
        directory=str(directory),
        output=str(output),
        messages=str(messages),
        roots=tuple(str(p) for p in project.folders("steps")),
        inherited=os.environ.get("PYTHONPATH", ""),
    )


def moved(spec: JobSpec, relocation: Relocation, key: str) -> Layout:
    """The layout of a job on a target that moves the code: the step below ``code``, everything else below ``run``."""
    code, run = relocation.code.replace(ANY_KEY, key), relocation.run.replace(ANY_KEY, key)
    shared = spec.environment.get("remote_job_dir")
    return Layout(
        script=f"{code}/steps/{spec.step.id}/step.py",
        config=f"{run}/configs/config.yaml",
        directory=run,
        output=str(spec.explicit_output or f"{run}/output"),
        messages=f"{run}/messages.jsonl",
        roots=(f"{code}/steps",),
        variables={"NEMO_RUN_DIR": str(shared), "HF_HOME": f"{shared}/hf"} if shared else {},
    )


def submission(
    spec: JobSpec, key: str, python: str, layout: Layout, config: Mapping[str, Any], revealed: bool = True
) -> Submission:
    """The job as its target needs it; with ``revealed`` false the secrets have names, but no values.

    Raises:
        ProfileError: a variable that a secret refers to is not set.
    """
    step, env = spec.step, spec.environment
    assert step.runspec is not None
    text = step.runspec.cmd or env.get("run_command")
    if text:
        argv = launch.template(str(text), layout.script, layout.config, spec.passthrough)
    else:
        argv = (python, layout.script, "--config", layout.config, *spec.passthrough)
    public, secrets = variables(spec, revealed)
    own = {k: _JOB_DIRECTORY.sub(lambda _: layout.directory, v) for k, v in public.items()}
    paths = [own.get("PYTHONPATH", ""), *layout.roots, layout.inherited]
    environment = {
        "PYTHONUNBUFFERED": "1",
        "NEMOTRON_STEP_DIR": os.path.dirname(layout.script),
        "NEMOTRON_MESSAGES": layout.messages,
        **layout.variables,
        **_tracking(spec.run.get("wandb")),
        **step.runspec.env,
        **own,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
    }
    return Submission(
        key=key,
        step=step.id,
        argv=argv,
        env=environment,
        secrets=secrets,
        cwd=layout.directory,
        files={os.path.relpath(layout.config, layout.directory): to_yaml(dict(config))},
        python=python,
        launch=step.runspec.launch,
        image=env.get("container_image") or env.get("container") or env.get("image") or step.runspec.image,
        nodes=node_count(spec),
        gpus_per_node=gpus_per_node(spec),
        processes_per_node=_processes(spec),
        mounts=tuple(env.get("mounts") or ()),
        startup=tuple(f'eval "${_STARTUP}{i}"' if _hidden(c) else c for i, c in enumerate(_startup(env))),
        workdir=workdir(spec),
        mode=str(spec.run.get("mode") or "local"),
    )


def variables(spec: JobSpec, revealed: bool = True) -> tuple[dict[str, str], dict[str, str]]:
    """The job's ``env_vars``: those that may be written down, and its secrets (empty unless ``revealed``).

    A startup command that holds a secret travels as one too, and the job's shell reads it from there.

    Raises:
        ProfileError: a variable that a secret refers to is not set, or a command that is written down refers to one.
    """
    for key in ("run_command", "setup_lines"):
        if holds_reference(str(spec.environment.get(key) or "")):
            raise ProfileError(
                f"{key} refers to a secret, and would be written down with it. Give it to the job as env_vars.NAME = "
                f'"${{oc.env:NAME}}", and write $NAME in {key}.'
            )
    written = {str(k): _text(v) for k, v in (spec.environment.get("env_vars") or {}).items() if v is not None}
    hidden = {k: v for k, v in written.items() if is_secret(k) or looks_secret(v) or "${" in v}
    commands = {
        f"{_STARTUP}{i}": c if holds_reference(c) else escape(c)
        for i, c in enumerate(_startup(spec.environment))
        if _hidden(c)
    }
    secrets = {k: reveal(v) if revealed else "" for k, v in {**hidden, **commands}.items()}
    return {k: v for k, v in written.items() if k not in hidden}, secrets


def references(spec: JobSpec) -> dict[str, str]:
    """The job's secrets as references to variables, for whoever submits a follow-up; those written out are left out."""
    written = {str(k): _text(v) for k, v in (spec.environment.get("env_vars") or {}).items() if v is not None}
    found = {k: v for k, v in written.items() if holds_reference(v) and (is_secret(k) or looks_secret(v) or "${" in v)}
    commands = {f"{_STARTUP}{i}": c for i, c in enumerate(_startup(spec.environment)) if holds_reference(c)}
    return {**found, **commands}


def _startup(env: Mapping[str, Any]) -> list[str]:
    return [str(c) for c in env.get("startup_commands") or ()]


def _hidden(command: str) -> bool:
    return looks_secret(command) or holds_reference(command)


def node_count(spec: JobSpec) -> int:
    """Nodes: the config's or the profile's, else the runspec's."""
    return _number(spec, "nodes") or (spec.step.runspec.nodes if spec.step.runspec else 1)


def workdir(spec: JobSpec) -> str | None:
    """Where the payload starts: the config's ``run.workdir``, null for the target's own place; else the runspec's."""
    if "workdir" in spec.run:
        return str(spec.run["workdir"]) if spec.run["workdir"] else None
    return spec.step.runspec.workdir if spec.step.runspec else None


def gpus_per_node(spec: JobSpec) -> int:
    """GPUs per node: the config's or the profile's, else the runspec's."""
    for key in ("gpus_per_node", "gpus"):
        named = _number(spec, key)
        if named is not None:
            return named
    value = spec.step.runspec.gpus_per_node if spec.step.runspec else 0
    return value if isinstance(value, int) else 1  # "gpu": some accelerator


def interpreter(project: Project, spec: JobSpec, say: Callable[[str], None] | None) -> str:
    """The payload's interpreter on this machine; built first if need be, unless ``say`` is None (a preview).

    Raises:
        PreflightError: the one that the profile names does not exist, or building failed.
    """
    named = spec.environment.get("python")
    if named:
        found = shutil.which(str(Path(str(named)).expanduser()))
        if not found:
            raise PreflightError(f"{named}: no such interpreter. Mend `python` in the profile or drop it.")
        return found
    if spec.step.env == "engine":
        return sys.executable
    env = payload_env.find(project, spec.step.env)
    return str(env.python if say is None else payload_env.build(env, say))


def payload_python(
    project: Project, spec: JobSpec, target: Target, relocated: bool, say: Callable[[str], None] | None
) -> str:
    """The payload's interpreter as the job calls it: the profile's, the image's, or this machine's if files are shared.

    Raises:
        PreflightError: there is none that the job could see; or as ``interpreter``.
    """
    if not relocated:
        return interpreter(project, spec, say)
    image = spec.step.runspec.image if spec.step.runspec else None
    named = spec.environment.get("python")
    if named or image or any(spec.environment.get(k) for k in ("container_image", "container", "image")):
        return str(named or "python")
    if target.shares_files:
        return interpreter(project, spec, say)
    raise PreflightError(
        f"profile {spec.profile!r}: names no container_image and no python, so nothing says what runs the step there. "
        'Add one, e.g. python = "/path/on/the/cluster/bin/python".'
    )


def _processes(spec: JobSpec) -> int:
    """Processes per node: torchrun's own key says it best. Slurm's comes before the cloud's on Slurm, else after it."""
    keys = ["nproc_per_node", "nprocs_per_node", "ntasks_per_node"]
    if spec.environment.get("executor") == "slurm":
        keys = ["nproc_per_node", "ntasks_per_node", "nprocs_per_node"]
    named = next((n for n in (_number(spec, key) for key in keys) if n), None)
    return named or gpus_per_node(spec) or 1


def _number(spec: JobSpec, key: str) -> int | None:
    """A whole number of the settings; ``${oc.env:..}`` gives it as text, and the target's schema has checked it."""
    value = spec.environment.get(key)
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.strip().isdigit()) else None


def _tracking(table: Any) -> dict[str, str]:
    """[wandb] of env.toml as the variables that W&B's client reads."""
    if not isinstance(table, Mapping):
        return {}
    names = {"project": "PROJECT", "entity": "ENTITY", "run_name": "NAME", "name": "NAME", "group": "GROUP"}
    names |= {"job_type": "JOB_TYPE", "tags": "TAGS"}
    found = {f"WANDB_{names[k]}": v for k, v in table.items() if k in names and v}
    return {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in found.items()}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
