"""All names of Dagster's that are not public; a test fails when one of them moves."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import HIDDEN_TAG_PREFIX

__all__ = [
    "HIDDEN_TAG_PREFIX",
    "DagsterExecutionInterruptedError",
    "belong_to_location",
    "materialized_at",
    "set_data_version",
]


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


@contextmanager
def materialized_at(instance: dg.DagsterInstance, key: dg.AssetKey, timestamp: float) -> Iterator[None]:
    """Give the materializations of ``key`` that this process records meanwhile the time at which they were made.

    Never before what the asset's history ends with, or the moment its history was wiped: it would sort wrongly, or
    not be seen at all. The run keeps its own times: it is what published the result, and it ran when it ran.
    """
    after = [timestamp]
    for record in instance.get_asset_records([key]):
        entry = record.asset_entry
        details = entry.asset_details
        if details is not None and details.last_wipe_timestamp is not None:
            after.append(details.last_wipe_timestamp + 0.001)
        if entry.last_materialization is not None:
            after.append(entry.last_materialization.timestamp + 0.001)
    store = instance.handle_new_event

    def handle_new_event(event: dg.EventLogEntry, **options: Any) -> None:
        made = event.asset_materialization
        if made is not None and made.asset_key == key:
            event = event._replace(timestamp=max(after))
        store(event, **options)

    instance.handle_new_event = handle_new_event  # type: ignore[method-assign]
    try:
        yield
    finally:
        instance.handle_new_event = store  # type: ignore[method-assign]
