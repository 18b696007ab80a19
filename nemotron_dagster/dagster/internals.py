"""All names of Dagster's that are not public; a test fails when one of them moves."""

from __future__ import annotations

import functools

import dagster as dg
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import HIDDEN_TAG_PREFIX

__all__ = ["HIDDEN_TAG_PREFIX", "DagsterExecutionInterruptedError", "belong_to_location", "set_data_version"]


def belong_to_location(instance: dg.DagsterInstance, location: str, job: str) -> None:
    """Record the runs of ``job`` that this process makes on ``instance`` as runs of that code location.

    Without this a run of ``execute_in_process`` has no origin, and the UI cannot execute it again.
    """
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), SINGLETON_REPOSITORY_NAME)
    create = functools.partial(instance.create_run_for_job, remote_job_origin=repository.get_job_origin(job))
    instance.create_run_for_job = create  # type: ignore[method-assign]


def set_data_version(context: dg.OutputContext, version: str) -> None:
    """Record ``version`` as the data version of the materialization that the step is about to record."""
    context.step_context.set_data_version(context.asset_key, dg.DataVersion(version))
