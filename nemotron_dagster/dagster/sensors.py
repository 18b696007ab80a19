"""The sensor that publishes what jobs have made while nobody watched them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import dagster as dg

from nemotron_dagster.dagster.live import ADOPT, JOB
from nemotron_dagster.jobs.ledger import Record, ledger
from nemotron_dagster.jobs.sync import unpublished
from nemotron_dagster.project import Project

NAME = "nemotron_detached_jobs"
_INTERVAL = 30
_ORPHANED = 300.0  # seconds that a job without its watcher is left to whoever retries the run
_AGAIN = (30.0, 3600.0)  # seconds before the second request for one submission, and at most before any other
_MOST = 50  # requests of one tick


def detached_jobs(project: Project, keys: frozenset[tuple[str, ...]]) -> dg.SensorDefinition:
    """A sensor over the project's ledger, for submissions of the assets ``keys``."""
    assets = dg.AssetSelection.assets(*(dg.AssetKey(list(k)) for k in sorted(keys)))

    @dg.sensor(
        name=NAME,
        target=assets,
        minimum_interval_seconds=_INTERVAL,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Publishes what submitted jobs have made that nobody watches: those of `steps run -b`, and those "
        f"whose watcher was killed and that nobody has retried for {_ORPHANED / 60:.0f} minutes.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        book = ledger(project.state)
        if not book.open() and not book.owed():
            return dg.SkipReason("no submission is open")
        seen = _seen(context.cursor)
        due: dict[str, float] = {}
        requests: list[dg.RunRequest] = []
        for sight in unpublished(project, context.log.warning):
            record = sight.record
            if record.order.asset not in keys:
                context.log.warning(f"{record.key}: the asset {'/'.join(record.order.asset)} is not in the project")
                continue
            due[record.key] = seen.get(record.key, time.time())
            if (record.detached or time.time() - due[record.key] >= _ORPHANED) and len(requests) < _MOST:
                requests += _request(context.instance, record)
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(due))

    return sensor


def _request(instance: dg.DagsterInstance, record: Record) -> Iterator[dg.RunRequest]:
    """The run that adopts the submission; none while one does, and not soon after one that could not."""
    found = instance.get_run_records(dg.RunsFilter(tags={ADOPT: record.key}), limit=50)
    if any(not r.dagster_run.is_finished for r in found):
        return
    pause = min(_AGAIN[0] * 4 ** (len(found) - 1), _AGAIN[1]) if found else 0.0
    if found and time.time() - max(r.end_time or 0.0 for r in found) < pause:
        return
    yield dg.RunRequest(
        run_key=f"{record.key}-{len(found)}",
        asset_selection=[dg.AssetKey(list(record.order.asset))],
        partition_key=record.order.partition,
        tags={ADOPT: record.key, JOB: record.key},
    )


def _seen(cursor: str | None) -> dict[str, float]:
    """Key -> when it was first found ended and without a watcher."""
    try:
        return {str(k): float(v) for k, v in json.loads(cursor or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}
