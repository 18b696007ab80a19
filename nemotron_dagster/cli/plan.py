"""``nemotron steps run --plan``: what a run would take, measured for a moment on this machine. Nothing is recorded."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from nemotron_dagster.artifacts.localize import localized
from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.cli.run import Wanted, compiled, refuse_planned, upstream
from nemotron_dagster.config.compile import JobSpec, bind_output
from nemotron_dagster.errors import JobFailed, UsageError
from nemotron_dagster.jobs.causes import tail_of
from nemotron_dagster.jobs.messages import read_messages
from nemotron_dagster.jobs.submission import here, interpreter, submission
from nemotron_dagster.project import Project, find_project

_COLUMNS = ("dataset", "files", "bytes", "rows", "tokens", "shards", "rows/s", "tokens/s", "on one core")
_KEYS = ("files", "bytes", "rows", "tokens", "shards", "rows_per_second", "tokens_per_second")


def show_plan(wanted: Wanted, as_json: bool) -> None:
    """Ask the step's payload for its plan and print it; no job is recorded and no artifact is made.

    Raises:
        UsageError: the step makes no plans, or -r or -b asks for another machine.
        JobFailed: the payload found something wrong, in its own words.
        PayloadNotBuilt, ConfigError, PreflightError, ArtifactError: as for a run.
    """
    refuse_planned(wanted.step)
    project = find_project()
    if not wanted.step.plans:
        able = ", ".join(s.id for s in load_catalog(project).steps.values() if s.plans) or "none"
        raise UsageError(
            f"{wanted.step.id} makes no plans; these do: {able}. For what would be submitted use -d; "
            "an argument that is meant for step.py goes after --."
        )
    if wanted.profile or wanted.batch:
        raise UsageError("--plan measures on this machine: drop -r and -b.")
    plan = _ask(project, compiled(replace(wanted, tokens=(*wanted.typed, *_flag(wanted))), submitting=False))
    if as_json:
        click.echo(json.dumps(plan, indent=2))
    else:
        _print(plan)


def _flag(wanted: Wanted) -> tuple[str, ...]:
    """What hands ``--plan`` to step.py: behind the ``--`` that is there already, or behind one of its own."""
    return ("--plan",) if "--" in wanted.typed else ("--", "--plan")


def _ask(project: Project, spec: JobSpec) -> dict[str, Any]:
    given = upstream(project, spec.step)
    for name in spec.bound:
        localized(given[name])
    python = interpreter(project, spec, lambda text: click.echo(text, err=True))
    with tempfile.TemporaryDirectory(prefix="nemotron-plan-") as folder:
        place = Path(folder)
        output = spec.explicit_output or place / "output"
        layout = here(project, spec, place, output, place / "messages.jsonl")
        config = bind_output(spec, spec.step.produces[0], output)
        job = submission(spec, "plan", python, layout, config)
        for name, text in job.files.items():
            (place / name).write_text(text, encoding="utf-8")
        env = {**os.environ, **job.env, **job.secrets}
        done = subprocess.run(
            job.argv, cwd=place, env=env, check=False, capture_output=True, text=True, errors="replace"
        )
        messages = read_messages(place / "messages.jsonl")
    for message in messages:
        if message["type"] == "error":
            raise JobFailed(f"{spec.step.id}: {message['message']}\n{message['recovery']}".strip())
        if message["type"] == "result" and isinstance(message["facts"].get("plan"), dict):
            return dict(message["facts"]["plan"])
    tail = tail_of((done.stdout + done.stderr).encode())  # without secrets
    raise JobFailed(f"{spec.step.id}: no plan (exit code {done.returncode}).\n{tail}")


def _print(plan: Mapping[str, Any]) -> None:
    found = plan["datasets"].items()
    rows = [_COLUMNS, *((name, *(f"{d[k]:,}" for k in _KEYS), _duration(d["core_hours"])) for name, d in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        click.echo("  ".join(cells).rstrip())
    done = f", {plan['shards_done']:,} of them done already" if plan["shards_done"] else ""
    tokens = f"{plan['tokens']:,} tokens, " if plan["tokens"] else ""
    shards = f"{plan['shards']:,} shard{'s' if plan['shards'] != 1 else ''}"
    click.echo(
        f"\n{plan['rows']:,} rows, {tokens}{plan['bytes']:,} bytes in {shards}{done}: "
        f"{_duration(plan['hours'])} on this machine's {plan['cores']} cores, at the rate measured now."
    )


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.1f} seconds"
