"""The bond between a Dagster run and the job that it watches: who cancels it, who leaves it, who records its result.

A run that the user starts always records what its job made. A run that merely adopts a job which another process has
left (``nemotron/adopt``: the sensor, ``runs sync``, ``runs attach``) records it only if nobody else has: in an asset's
history a submission stands once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from nemotron_dagster.artifacts.locks import held
from nemotron_dagster.dagster.internals import (
    HIDDEN_TAG_PREFIX,
    DagsterExecutionInterruptedError,
    materialized_at,
)
from nemotron_dagster.dagster.job_metadata import KEY, job_metadata
from nemotron_dagster.dagster.live import JOB, leaves_job, terminal
from nemotron_dagster.errors import Cancelled, NemotronError
from nemotron_dagster.jobs.ledger import Ledger, Record, ledger
from nemotron_dagster.jobs.sync import cancel
from nemotron_dagster.project import Project

_HANDLE = f"{HIDDEN_TAG_PREFIX}nemotron/job/"  # the UI leaves it out: nobody reads a handle there
_LEFT = 130  # exit code where Ctrl-C leaves the job


@dataclass
class Bond:
    """What one run of a node has to do with its submission."""

    project: Project
    context: dg.AssetExecutionContext
    name: str
    key: dg.AssetKey
    note: Callable[[str], None]
    watching: ExitStack
    adopts: bool = False
    record: Record | None = field(default=None)

    @property
    def book(self) -> Ledger:
        return ledger(self.project.state)

    def submitted(self, record: Record) -> None:
        """Take note of the submission before it is watched: in the run's tags, and that it has a watcher."""
        self.record = record
        handle = record.handle
        assert handle is not None
        if not self.adopts:  # who adopts lets go as soon as the artifact is there, so that one of several records it
            self.watching.enter_context(self.book.watched(record.key))
        self.context.log.info(f"job {record.key} on {handle.target}: {handle.directory}")
        tags = {_HANDLE + self.name: json.dumps(handle.as_dict()), JOB: record.key}
        self.context.instance.add_run_tags(self.context.run.run_id, tags)

    def terminated(self) -> bool:
        """Whether somebody asked Dagster to end the run."""
        run = self.context.instance.get_run_by_id(self.context.run.run_id)
        return run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)

    def interrupted(self) -> NemotronError:
        """Decide what becomes of the job of a run that is interrupted, and do it; what to tell.

        Terminate in the UI and Ctrl-C cancel it. Where only the worker dies, or Ctrl-C was told to leave it, the job
        goes on for whoever adopts it.
        """
        record, asked, command = self._present(), self.terminated(), terminal() is not None
        if not command and not asked:
            return Cancelled(f"{self.name}: the worker was stopped; its job goes on.")
        if record is None:
            error: NemotronError = Cancelled(f"{self.name}: interrupted before there was a job.")
            error.exit_code = _LEFT
        elif command and leaves_job() and not asked:
            record = self.book.change(record.key, detached=True)
            error = Cancelled(
                f"{self.name}: left job {record.key} running. `nemotron runs attach {record.key}` follows it again; "
                "`nemotron runs sync` publishes it once it has ended."
            )
            error.exit_code = _LEFT
        else:
            error = self._cancel(record)
        self.end_as_canceled(str(error))
        return error

    def end_as_canceled(self, reason: str) -> None:
        """See to it that the run ends CANCELED once ``DagsterExecutionInterruptedError`` is raised, not FAILURE."""
        if not self.terminated():
            self.context.instance.report_run_canceling(self.context.run, reason)

    def metadata(self) -> dict[str, dg.MetadataValue[Any]]:
        """The job's facts as the ledger has them now."""
        found = self.book.get(self.record.key) if self.record else None
        return job_metadata(found) if found is not None else {}

    @contextmanager
    def recording(self) -> Iterator[bool]:
        """Yields whether this run is the one to record the materialization; it is done when the context is left."""
        assert self.record is not None
        record = self.book.get(self.record.key) or self.record
        with held(self.book.locks / f"{record.key}.recording"):
            if self.adopts and (not self.book.orphaned(record.key) or self._recorded(record)):
                yield False
                return
            ended = record.status.ended if record.status else None
            with ExitStack() as stack:
                if self.adopts and ended:
                    made = min(max(ended, record.created), time.time())
                    stack.enter_context(materialized_at(self.context.instance, self.key, made))
                yield True
            self.book.recorded(record.key)

    def _recorded(self, record: Record) -> bool:
        """Whether the asset's history has what this submission made."""
        wanted = dg.AssetRecordsFilter(
            asset_key=self.key,
            asset_partitions=[record.order.partition] if record.order.partition else None,
            after_timestamp=record.created - 1.0,
        )
        cursor: str | None = None
        while True:
            page = self.context.instance.fetch_materializations(wanted, limit=20, cursor=cursor)
            for row in page.records:
                made = row.asset_materialization
                value = made.metadata.get(KEY) if made is not None else None
                if value is not None and value.value == record.key:
                    self.book.recorded(record.key)
                    return True
            if not page.has_more:
                return False
            cursor = page.cursor

    def _present(self) -> Record | None:
        """The submission; also the one whose submitting was interrupted."""
        run = self.context.run.run_id
        mine = [r for r in self.book.open() if r.runs[-1:] == (run,) and r.order.asset == tuple(self.key.path)]
        return self.record or (mine[-1] if mine else None)

    def _cancel(self, record: Record) -> NemotronError:
        told: list[bool] = []

        def asked() -> None:
            told.append(True)
            again = "; Ctrl-C again does not wait for it" if terminal() is not None else ""
            self.note(f"job {record.key} was told to stop, waiting for its end{again}")

        try:
            try:
                closed = cancel(self.project, record, asked=asked)
            except DagsterExecutionInterruptedError:
                if not told:
                    cancel(self.project, record, patience=0)  # so much has to be done
                return Cancelled(
                    f"{self.name}: interrupted; job {record.key} was told to stop, and its end was not waited for. "
                    f"`nemotron runs status {record.key}` tells how it ended."
                )
        except NemotronError as e:
            return Cancelled(f"{self.name}: interrupted, but job {record.key} could not be cancelled: {e}")
        if closed.phase == "cancelled":
            return Cancelled(f"{self.name}: interrupted; job {record.key} was cancelled.")
        return Cancelled(
            f"{self.name}: interrupted; job {record.key} had ended by itself, or ends slowly. "
            f"`nemotron runs status {record.key}` tells; `nemotron runs sync` publishes what it made."
        )
