"""A run that adopts a submission of another process: the run tag ``nemotron/adopt`` names its key.

It compiles and submits nothing. It streams the whole log, and publishes what the job made or fails as the job did.
"""

from __future__ import annotations

from dataclasses import replace

import dagster as dg

from nemotron_dagster.artifacts.manifest import ArtifactRef, read
from nemotron_dagster.artifacts.places import place
from nemotron_dagster.artifacts.port_locks import Result
from nemotron_dagster.catalog import Step
from nemotron_dagster.dagster.handover import Bond
from nemotron_dagster.dagster.live import ADOPT
from nemotron_dagster.errors import ArtifactError, Cancelled, JobFailed, PreflightError
from nemotron_dagster.jobs.ledger import Record, ledger
from nemotron_dagster.jobs.messages import Reporter
from nemotron_dagster.jobs.run import follow
from nemotron_dagster.jobs.sync import located, target_of
from nemotron_dagster.project import Project


def adopted(project: Project, context: dg.AssetExecutionContext, key: dg.AssetKey) -> Record | None:
    """The submission that this run adopts for the asset, or None where it is an ordinary run.

    Raises:
        PreflightError: there is no such submission, or it is another asset's and this run would make a job anew.
    """
    wanted = context.run.tags.get(ADOPT)
    if not wanted:
        return None
    record = ledger(project.state).get(wanted)
    if record is None:
        raise PreflightError(f"{ADOPT}={wanted}: no submission has that key. `nemotron runs list` prints them.")
    if record.order.asset != tuple(key.path):
        raise PreflightError(
            f"{ADOPT}={wanted}: is a submission of {'/'.join(record.order.asset)}, not of {key.to_user_string()}. "
            "Materialize that asset alone, or drop the tag."
        )
    return record


def publish_adopted(bond: Bond, record: Record, step: Step, reporter: Reporter) -> ArtifactRef:
    """Follow the submission to its end and publish what it made; what was published already is only read.

    Raises:
        JobFailed, Cancelled, ArtifactError, TargetError, ProfileError: as ``jobs.run.follow``; of a closed
            submission, what it was closed with.
    """
    project = bond.project
    record = located(project, record)
    bond.record = record
    if record.phase == "published":
        bond.book.change(record.key, run=bond.context.run.run_id)
        return read(place(record.uri))
    if record.phase == "cancelled":
        raise Cancelled(record.error or f"{step.id}: job {record.key} was cancelled.")
    if record.phase == "failed":
        raise JobFailed(record.error or f"{step.id}: job {record.key} failed.")
    if record.handle is None:
        raise PreflightError(f"{step.id}: submission {record.key} has no job yet. Ask again in a few minutes.")
    bond.submitted(record)
    run, terminated = bond.context.run.run_id, bond.terminated
    return follow(project, target_of(project, record), record, reporter, terminated, step, run)


def noted(record: Record) -> list[Result]:
    """What the step's locks said when it was submitted."""
    return [Result(**row) for row in record.order.locks]


def inputs_of(record: Record) -> tuple[dict[str, ArtifactRef], list[str]]:
    """The artifacts that the job read, by port, and what is wrong with those that cannot be read any more."""
    found: dict[str, ArtifactRef] = {}
    gone: list[str] = []
    for row in record.order.inputs:
        if row.get("external"):
            continue
        try:
            ref = read(place(str(row["uri"])))
            found[str(row["port"])] = replace(ref, digest=str(row["manifest"]))
        except ArtifactError as e:
            gone.append(f"input {row['port']}: {e}")
    return found, gone
