"""Who listens to a run: Dagster's log always, and the CLI's terminal when the run is in its process."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import dagster as dg

from nemotron_dagster.errors import NemotronError
from nemotron_dagster.jobs.messages import Reporter

ADOPT = "nemotron/adopt"  # run tag: the key of the submission to follow, instead of a new one
JOB = "nemotron/job"  # run tag: the key of the submission, to search runs by
_UTF8 = codecs.getincrementaldecoder("utf-8")  # a piece of a log may end inside a character
_EVERY = 5.0  # seconds between two progress lines in Dagster's log: each is a row of its database


class Terminal(Protocol):
    """The CLI's side of a run in this process."""

    def started(self, name: str) -> Reporter:
        """A node begins; what it reports goes to the returned reporter."""

    def finished(self, name: str, error: NemotronError | None) -> None:
        """The node ended."""


_terminal: Terminal | None = None
_leaves = False


@contextmanager
def attached(terminal: Terminal, leaves: bool = False) -> Iterator[None]:
    """Show the runs of this process on ``terminal``; an interrupt then cancels the job, or ``leaves`` it running."""
    global _terminal, _leaves
    _terminal, _leaves = terminal, leaves
    try:
        yield
    finally:
        _terminal, _leaves = None, False


def terminal() -> Terminal | None:
    return _terminal


def leaves_job() -> bool:
    """Whether an interrupt leaves the job running."""
    return _leaves


@dataclass
class DagsterReporter:
    """Notes and throttled progress to the event log, the job's output to the compute logs, all of it to ``also``."""

    context: dg.AssetExecutionContext
    also: Reporter | None = None
    _told: float = field(default=0.0)
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: _UTF8("replace"))

    def note(self, text: str) -> None:
        self.context.log.info(text)
        if self.also:
            self.also.note(text)

    def log(self, data: bytes) -> None:
        sys.stdout.write(self._decoder.decode(data))
        sys.stdout.flush()
        if self.also:
            self.also.log(data)

    def progress(self, step: int | None, total: int | None, metrics: Mapping[str, float]) -> None:
        if self.also:
            self.also.progress(step, total, metrics)
        now = time.monotonic()
        if now - self._told >= _EVERY or (total is not None and step == total):
            self._told = now
            shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items())
            self.context.log.info(f"step {step}/{total}  {shown}" if step is not None else shown)
