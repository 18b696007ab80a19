"""Materialize assets in this process, as the CLI does."""

from __future__ import annotations

import fcntl
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg

from nemotron_dagster.dagster.definitions import dagster_home, open_instance, project_definitions
from nemotron_dagster.dagster.internals import belong_to_location
from nemotron_dagster.dagster.live import ADOPT, JOB
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.jobs.ledger import Record
from nemotron_dagster.project import Project

LOCATION = "nemotron_dagster.definitions"  # how workspace.yaml and `nemotron ui` name it


def materialize(
    project: Project,
    keys: Sequence[tuple[str, ...]],
    config: Mapping[str, Any],
    tags: Mapping[str, str],
    pipeline: str | None = None,
    partition: str | None = None,
) -> bool:
    """Materialize ``keys`` in one run on the project's instance, so that the UI shows it; whether it succeeded.

    ``config`` maps an asset's op name to its op config. With ``pipeline`` the run is one of that pipeline's job.
    """
    defs = project_definitions(project)
    job = defs.resolve_job_def(pipeline) if pipeline else defs.resolve_implicit_global_asset_job_def()
    run_id = str(uuid.uuid4())
    with open_instance(project) as instance, _alive(dagster_home(project) / "running", run_id, instance):
        belong_to_location(instance, LOCATION, job.name)
        result = job.execute_in_process(
            run_config={"ops": dict(config)},
            instance=instance,
            asset_selection=None if pipeline else [dg.AssetKey(list(k)) for k in keys],
            raise_on_error=False,
            run_id=run_id,
            tags=dict(tags),
            partition_key=partition,
        )
    return result.success


def adopt(project: Project, record: Record) -> bool:
    """Follow a submission in a run of its asset, and publish or fail as its job did; whether it succeeded.

    Raises:
        ConfigError: the project has no such asset any more.
    """
    asset = dg.AssetKey(list(record.order.asset))
    if asset not in project_definitions(project).resolve_asset_graph().executable_asset_keys:
        raise ConfigError(
            f"submission {record.key} is of the asset {asset.to_user_string()}, which is not in the project any more. "
            f"Put it back, or drop the submission: nemotron runs cancel {record.key}"
        )
    tags = {ADOPT: record.key, JOB: record.key}
    return materialize(project, [record.order.asset], {}, tags, partition=record.order.partition)


@contextmanager
def _alive(folder: Path, run_id: str, instance: dg.DagsterInstance) -> Iterator[None]:
    """Hold a lock while this process runs ``run_id``; end the runs whose process died without letting go of theirs.

    A killed command cannot end its run. Its job is another matter: that goes on, and the next run adopts it.
    """
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        with suppress(BlockingIOError, FileNotFoundError), open(file) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            run = instance.get_run_by_id(file.name)
            if run is not None and not run.is_finished:
                instance.report_run_failed(run, "the command that ran it was killed; its job goes on for the next run")
            file.unlink(missing_ok=True)
    with open(folder / run_id, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            (folder / run_id).unlink(missing_ok=True)


def op_name(key: Sequence[str]) -> str:
    """The name that Dagster gives the op of an asset."""
    return "__".join(key).replace("-", "_").replace("/", "__")
