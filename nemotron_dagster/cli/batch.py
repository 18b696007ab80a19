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
from nemotron_dagster.jobs.target import State
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
    """Validate, submit or adopt, record, and tell how to follow the job.

    What it makes is published by the sensor of a running Dagster, by `nemotron runs sync` or `runs attach`.

    Raises:
        PayloadNotBuilt, ConfigError, ProfileError, PreflightError, ArtifactError, TargetError: nothing was submitted.
    """
    from nemotron_dagster.jobs.prepare import Request
    from nemotron_dagster.jobs.run import job_key, submit
    from nemotron_dagster.jobs.sync import look
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
        new=wanted.new,
    )
    target = make_target(project, wanted.batch, spec.environment)
    record = submit(project, target, request, Quiet(as_json))
    handle = record.handle
    assert handle is not None
    [sight] = look(project, [record])
    state = sight.status.state if sight.status else State.PENDING
    adopted = record.key != job_key(request)
    commands = {
        "follow": ["nemotron", "runs", "logs", "-f", record.key],
        "attach": ["nemotron", "runs", "attach", record.key],
        "publish": ["nemotron", "runs", "sync", record.key],
    }
    if as_json:
        data: dict[str, Any] = {"step": wanted.step.id, "profile": wanted.batch, "key": record.key, "adopted": adopted}
        click.echo(json.dumps({**data, "state": state, "job": handle.as_dict(), **commands}, indent=2))
        return
    name = f" {handle.id}" if handle.id else ""
    click.echo(f"{'Adopted' if adopted else 'Submitted'} {record.key}: job{name} on {handle.target}, {state.lower()}")
    click.echo(f"    directory  {handle.directory}")
    click.echo(f"    follow     {shlex.join(commands['follow'])}")
    click.echo(f"    attach     {shlex.join(commands['attach'])}")
    click.echo(f"    publish    {shlex.join(commands['publish'])}")
    click.echo("A running Dagster publishes what it makes; without one, attach or publish does.")
