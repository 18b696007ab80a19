"""The dry run: the compiled config and exactly what would be submitted. Touches neither disk nor network."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from nemotron_dagster.artifacts.store import artifact_root, slot
from nemotron_dagster.config.compile import JobSpec, Relocation, bind_output
from nemotron_dagster.config.keys import get
from nemotron_dagster.config.secrets import redact
from nemotron_dagster.errors import ConfigError, NemotronError
from nemotron_dagster.jobs import payload_env
from nemotron_dagster.jobs.memory import memory_of
from nemotron_dagster.jobs.preflight import case_of, refuse_known
from nemotron_dagster.jobs.submission import Layout, here, interpreter, moved, submission
from nemotron_dagster.jobs.target import ANY_KEY, Preview, Target, make_target, relocation_of
from nemotron_dagster.project import Project

#: Of the files in a job's directory, the one that is shown; the other is the config, which stands above.
_JOB_SCRIPT = "scripts/job.sh"


def preview(project: Project, spec: JobSpec) -> dict[str, Any]:
    """What a run of ``spec`` would do, as plain data without secrets; ``{key}`` stands for the job's key.

    Raises:
        ProfileError: the profile lacks what its target needs.
    """
    step, env = spec.step, spec.environment
    if step.runspec is None:
        raise ConfigError(f"{step.directory}: has no step.py, so there is nothing to run. Write one.")
    target = make_target(project, spec.profile, env)
    relocation = relocation_of(project, spec.profile, env, step.runspec.image)
    layout = _layout(project, target, spec, relocation)
    config = bind_output(spec, step.produces[0], Path(layout.output)) if step.produces else dict(spec.train)
    before: list[str] = []
    refused = _refusal(project, target, spec)
    memory = memory_of(project, spec)
    if memory is not None:
        refused = refused or memory.refusal() or None
    python = str(env.get("python") or "python")
    if relocation is None:
        try:
            python = interpreter(project, spec, None)
        except NemotronError as e:
            refused = refused or str(e)
        if step.env != "engine" and not env.get("python") and not payload_env.find(project, step.env).built:
            before.append(f"nemotron env build {step.env}")
    job = submission(spec, ANY_KEY, python, layout, config, revealed=False)
    shown = target.preview(job)
    return {
        "step": step.id,
        "config_name": spec.config,
        "profile": spec.profile,
        "mode": spec.run.get("mode"),
        "run": redact(spec.run),
        "config": redact(config),
        "compiled": redact(spec.job),
        "inputs": _inputs(spec, config),
        "output": _output(spec, layout),
        "memory": memory and {"told": memory.told(), **memory.data()},
        "submission": redact(_submission(shown, before, refused)),
    }


def print_preview(data: dict[str, Any], as_json: bool) -> None:
    """Print a preview: as JSON, or as commented YAML and scripts."""
    import yaml

    if as_json:
        click.echo(json.dumps(data, indent=2, default=str, ensure_ascii=False))
        return

    def section(title: str, value: Any) -> None:
        text = value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
        click.echo(f"# {title}\n{text}")

    submitted = dict(data["submission"])
    scripts = {name: submitted.pop(name) for name in ("script", "job_script")}
    submitted["command"] = shlex.join(submitted["command"])
    section("run", data["run"])
    section("config", data["config"])
    section("inputs and output", {"inputs": data["inputs"], "output": data["output"]})
    if data["memory"]:
        section("memory per GPU (an estimate)", data["memory"]["told"] + "\n")
    section("submission", {k: v for k, v in submitted.items() if v not in (None, [], {}, "")})
    for name, text in scripts.items():
        if text:
            section(name.replace("_", " "), text)


def _layout(project: Project, target: Target, spec: JobSpec, relocation: Relocation | None) -> Layout:
    if relocation is not None:
        return moved(spec, relocation, ANY_KEY)
    root, asset = artifact_root(project), spec.step.id.split("/")
    place = slot(root, asset, spec.digest, ANY_KEY)
    output = spec.explicit_output or place.output
    return here(project, spec, Path(target.job_directory(ANY_KEY)), output, place.messages)


def _refusal(project: Project, target: Target, spec: JobSpec) -> str | None:
    """Why a run would be refused now, where that can be known without touching anything."""
    from nemotron_dagster.jobs.run import check_hardware

    if not spec.step.ready:
        return f"the payload of {spec.step.id} is not built yet"
    try:
        target.check()
        refuse_known(case_of(project, spec))
        if not target.cluster:  # others would have to be asked, and a dry run asks nobody
            check_hardware(target, spec)
    except NemotronError as e:
        return str(e)
    return None


def _inputs(spec: JobSpec, config: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for port in spec.step.consumes:
        value = get(config, port.bind) if port.bind else None
        source = "bound" if port.name in spec.bound else "external" if port.name in spec.external else "default"
        rows.append({"port": port.name, "type": port.type, "key": port.bind, "path": value, "source": source})
    return rows


def _output(spec: JobSpec, layout: Layout) -> dict[str, Any] | None:
    if not spec.step.produces:
        return None
    port = spec.step.produces[0]
    directory = str(spec.explicit_output or layout.output)
    return {"type": port.type, "key": port.bind, "directory": directory, "managed": spec.explicit_output is None}


def _submission(shown: Preview, before: list[str], refused: str | None) -> dict[str, Any]:
    return {
        "target": shown.target,
        "refused": refused,
        "command": list(shown.command),
        "before": [*before, *shown.before],
        "image": shown.image,
        "mounts": list(shown.mounts),
        "resources": {
            "nodes": shown.nodes,
            "gpus_per_node": shown.gpus_per_node,
            "processes_per_node": shown.processes_per_node,
        },
        "directory": shown.directory,
        "workdir": shown.workdir,
        "env": list(shown.env),
        "secrets": sorted(shown.secrets),
        "files": list(shown.files),
        "request": dict(shown.request) if shown.request else None,
        "script": shown.script,
        "job_script": shown.files.get(_JOB_SCRIPT),
    }
