"""What is known of a submission's job, as flat data: for tables, JSON and Dagster's metadata."""

from __future__ import annotations

import time
from typing import Any

from nemotron_dagster.jobs.ledger import OPEN, Record
from nemotron_dagster.jobs.target import Status

#: Facts that are seconds since the epoch.
TIMES = ("submitted", "started", "ended", "start_estimate")


def state_of(record: Record, status: Status | None = None) -> str:
    """The job's state in one word; of a submission that never had a job, its phase."""
    found = status or record.status
    return found.state.value if found else record.phase.upper()


def job_facts(record: Record, status: Status | None = None) -> dict[str, Any]:
    """Name -> value of everything that is known; ``status`` is newer than the record's own, where there is one.

    ``elapsed`` and ``queue_wait`` are seconds, ``cpu_efficiency`` a share; a job that has not ended is measured up to
    now.
    """
    found, handle = status or record.status, record.handle
    facts: dict[str, Any] = {
        "key": record.key,
        "state": state_of(record, status),
        "executor": record.executor,
        "profile": record.profile,
        "id": handle.id if handle else None,
        "log": f"{handle.directory}/log" if handle else None,
        "chain": len(record.handles),
        "submitted": record.created,
        "memory_estimate": record.memory,
    }
    if found is not None:
        facts |= _of_status(found, record.created, record.phase in OPEN)
    return {k: v for k, v in facts.items() if v not in (None, "")}


def _of_status(status: Status, created: float, is_open: bool) -> dict[str, Any]:
    until = status.ended or (time.time() if is_open and not status.state.final else None)
    elapsed = max(0.0, until - status.started) if until and status.started else None
    submitted = status.submitted or created
    began = status.started or (until if not status.state.final else None)
    return {
        "raw_state": status.raw or status.state.value,
        "exit_code": status.exit_code,
        "reason": status.reason,
        "nodes": status.nodes,
        "submitted": submitted,
        "started": status.started,
        "ended": status.ended,
        "start_estimate": status.estimate,
        "elapsed": elapsed,
        "queue_wait": max(0.0, began - submitted) if began else None,
        "gpus": status.gpus,
        "gpu_hours": elapsed * status.gpus / 3600 if elapsed is not None else None,
        "restarts": status.restarts,
        **status.figures,
    }
