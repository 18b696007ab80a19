"""Materialize assets in this process, as the CLI does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from nemotron_dagster.dagster.definitions import build_definitions, open_instance
from nemotron_dagster.dagster.internals import belong_to_location
from nemotron_dagster.project import Project

LOCATION = "nemotron_dagster.definitions"  # how workspace.yaml and `nemotron ui` name it


def materialize(
    project: Project,
    keys: Sequence[tuple[str, ...]],
    config: Mapping[str, Any],
    tags: Mapping[str, str],
    pipeline: str | None = None,
) -> bool:
    """Materialize ``keys`` in one run on the project's instance, so that the UI shows it; whether it succeeded.

    ``config`` maps an asset's op name to its op config. With ``pipeline`` the run is one of that pipeline's job.
    """
    defs = build_definitions(project)
    job = defs.resolve_job_def(pipeline) if pipeline else defs.resolve_implicit_global_asset_job_def()
    with open_instance(project) as instance:
        belong_to_location(instance, LOCATION, job.name)
        result = job.execute_in_process(
            run_config={"ops": dict(config)},
            instance=instance,
            asset_selection=None if pipeline else [dg.AssetKey(list(k)) for k in keys],
            raise_on_error=False,
            tags=dict(tags),
        )
    return result.success


def op_name(key: Sequence[str]) -> str:
    """The name that Dagster gives the op of an asset."""
    return "__".join(key).replace("-", "_").replace("/", "__")
