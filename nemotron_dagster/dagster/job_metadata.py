"""A job's facts as Dagster's metadata: of a materialization, and of a failure."""

from __future__ import annotations

from typing import Any

import dagster as dg

from nemotron_dagster.jobs.facts import TIMES, job_facts
from nemotron_dagster.jobs.ledger import Record

PREFIX = "nemotron/job/"
KEY = f"{PREFIX}key"


def job_metadata(record: Record) -> dict[str, dg.MetadataValue[Any]]:
    """``nemotron/job/<fact>`` -> value: state, exit code, reason, nodes, times, GPU-hours, efficiency, log, key."""
    return {PREFIX + name: _value(name, value) for name, value in job_facts(record).items()}


def _value(name: str, value: Any) -> dg.MetadataValue[Any]:
    if name in TIMES:
        return dg.MetadataValue.timestamp(float(value))
    if name == "log":
        return dg.MetadataValue.path(str(value))
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    return dg.MetadataValue.float(value) if isinstance(value, float) else dg.MetadataValue.text(str(value))
