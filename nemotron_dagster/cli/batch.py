"""``nemotron steps run -b``: submit a job, say how to follow it, and return. The job goes on by itself."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from nemotron_dagster.artifacts.store import artifact_root
from nemotron_dagster.cli.run import Wanted, compiled, refuse_planned, upstream
from nemotron_dagster.project import find_project


@dataclass
class Quiet:
    """Keeps what submitting has to say; implements ``nemotron_dagster.jobs.run.Reporter``."""

    as_json: bool
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)
        if not self.as_json:
            click.echo(text, err=True)

    def log(self, data: bytes) -> None:
        """Nobody watches the job's output here."""

    def progress(self, step: int | None, total: int | None, metrics: Mapping[str, float]) -> None:
        """Nor its progress."""


def submit_detached(wanted: Wanted, as_json: bool) -> None:
    """Validate, submit or adopt, and tell; the same command with -r later adopts the job and publishes its artifact.

    Raises:
        PayloadNotBuilt, ConfigError, ProfileError, PreflightError, ArtifactError, TargetError: nothing was submitted.
    """
    from nemotron_dagster.jobs.prepare import Request
    from nemotron_dagster.jobs.run import job_key, submit
    from nemotron_dagster.jobs.target import make_target

    refuse_planned(wanted.step)
    project, spec = find_project(), compiled(wanted)
    given = upstream(project, wanted.step)
    request = Request(
        spec=spec,
        asset=tuple(wanted.step.id.split("/")),  # where the catalog's asset looks for a job to adopt
        identity=str(uuid.uuid4()),
        inputs={port: given[port] for port in spec.bound},
        artifact_root=artifact_root(project),
        detached=True,
    )
    target = make_target(project, wanted.batch, spec.environment)
    record = submit(project, target, request, Quiet(as_json))
    handle = record.handle
    assert handle is not None
    state = target.statuses([handle])[handle.key].state
    adopted = record.key != job_key(request)
    attach = _attached(wanted)
    if as_json:
        data: dict[str, Any] = {"step": wanted.step.id, "profile": wanted.batch, "adopted": adopted, "state": state}
        click.echo(json.dumps({**data, "job": handle.as_dict(), "publish": attach}, indent=2))
        return
    what = "Adopted" if adopted else "Submitted"
    click.echo(f"{what} job {handle.key} on {handle.target}: {state.lower()}")
    click.echo(f"    directory  {handle.directory}")
    click.echo(f"    follow     tail -F {shlex.quote(f'{handle.directory}/log')}")
    click.echo(f"    publish    {shlex.join(attach)}")
    click.echo("The last command waits for the job and publishes what it makes; until then nothing else uses it.")


def _attached(wanted: Wanted) -> list[str]:
    """The command that adopts the job."""
    return [
        *("nemotron", "steps", "run", wanted.step.id),
        *(("-c", wanted.config_named) if wanted.config_named else ()),
        *("-r", str(wanted.batch)),
        *(["--allow-unknown"] if wanted.allow_unknown else []),
        *(["--force-squash"] if wanted.force_squash else []),
        *wanted.typed,
    ]
