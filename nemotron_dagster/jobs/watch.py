"""Watching a submission until it has ended: states, log, progress, cancelling, outages, follow-up jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_dagster.artifacts.manifest import write_bytes
from nemotron_dagster.artifacts.store import Slot
from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.board import Board
from nemotron_dagster.jobs.messages import Reporter, read_messages
from nemotron_dagster.jobs.target import JobHandle, State, Status, Target

_LOOK = (0.1, 1.0)  # seconds: first and longest pause between two looks at the job's own files
_LOOK_FAR = (1.0, 5.0)  # the same where a look is a round trip to another machine
_ASK = 2.0  # seconds between two questions whether the run is still wanted: each is a query of Dagster's database
_TELL = 60.0  # seconds between two notes on a cluster that cannot be reached
PATIENCE = 3600.0  # seconds without an answer after which watching ends; the job goes on
_TAIL = 1 << 16  # bytes of the log's end that are kept for the message of a failure


@dataclass
class Watch:
    """Looks at one job of a submission until it has ended.

    Attributes:
        unwanted: once it is true the job is cancelled.
        cursor_file: where in the log this run is, for a worker that takes the same run over; None: from the start.
        tail: the end of the log.
    """

    target: Target
    board: Board
    place: Slot
    reporter: Reporter
    unwanted: Callable[[], bool] = lambda: False
    cursor_file: Path | None = None
    tail: bytes = b""
    _cursors: dict[str, Mapping[str, int]] = field(default_factory=dict)
    _sent: int = 0
    _asked: float = 0.0
    _cancelling: bool = False
    _silent: float | None = None
    _told: float = 0.0
    _said: str = ""

    def __post_init__(self) -> None:
        if self.cursor_file is not None and self.cursor_file.is_file():
            self._cursors = json.loads(self.cursor_file.read_text(encoding="utf-8"))

    def until_ended(self, handle: JobHandle) -> Status:
        """The job's final status.

        Raises:
            TargetError: the cluster did not answer for ``PATIENCE`` seconds; the job goes on.
        """
        first, longest = _LOOK if self.target.shares_files else _LOOK_FAR
        pause, ended = first, False
        while True:
            self._cancel_if_unwanted(handle)
            status = None
            try:
                status = self.board.status(self.target, handle, urgent=ended)
                self._say(status)
                if status.hopeless and not status.state.final:
                    self.reporter.note(f"the job can never start: {status.reason}; cancelling it")
                    self.target.cancel(handle)
                    return Status(State.FAILED, reason=f"it can never start: {status.reason}", raw=status.raw)
                more, ended = self._read(handle)
                while more:
                    pause = first
                    more, ended = self._read(handle)
                self._silent = None
            except TargetError as e:
                status = None
                self._outage(e)
            self._sent = _progress(self.place, self._sent, self.reporter)
            if status is not None and status.state.final:
                return status
            time.sleep(pause)
            pause = min(pause * 1.5, longest)

    def _read(self, handle: JobHandle) -> tuple[bool, bool]:
        """Hand on what is new in the log; whether there may be more, and whether the job has left its end mark."""
        chunk = self.target.read(handle, self._cursors.get(handle.key, {}))
        if chunk.log:
            self.tail = (self.tail + chunk.log)[-_TAIL:]
            self.reporter.log(chunk.log)
        if chunk.messages:
            with open(self.place.messages, "ab") as out:
                out.write(chunk.messages)
        if chunk.log or chunk.messages:
            self._cursors[handle.key] = dict(chunk.cursor)
            if self.cursor_file is not None:
                write_bytes(self.cursor_file, json.dumps(self._cursors).encode())
        return bool(chunk.log or chunk.messages), chunk.ended

    def _cancel_if_unwanted(self, handle: JobHandle) -> None:
        if self._cancelling or time.monotonic() - self._asked < _ASK:
            return
        self._asked = time.monotonic()
        if self.unwanted():
            try:
                self.target.cancel(handle)
                self._cancelling = True
            except TargetError as e:
                self._outage(e)

    def _outage(self, error: TargetError) -> None:
        now = time.monotonic()
        self._silent = self._silent or now
        if now - self._silent > PATIENCE:
            raise TargetError(
                f"{error}\nNo answer for {PATIENCE / 60:.0f} minutes. The job goes on; `nemotron runs attach` finds it."
            ) from error
        if now - self._told > _TELL:
            self._told = now
            self.reporter.note(f"no answer, asking again: {str(error).splitlines()[0]}")

    def _say(self, status: Status) -> None:
        """A note when what is worth knowing has changed: why it waits, when it may start, where it runs."""
        said = ""
        if status.state is State.PENDING and (status.reason or status.estimate):
            start = f", expected to start at {time.strftime('%F %T', time.localtime(status.estimate))}"
            said = f"waiting: {status.reason or 'queued'}{start if status.estimate else ''}"
        elif status.state is State.RUNNING and status.nodes:
            again = f", start {status.restarts + 1}" if status.restarts else ""
            said = f"running on {status.nodes}{again}"
        if said and said != self._said:
            self._said = said
            self.reporter.note(said)


def _progress(place: Slot, seen: int, reporter: Reporter) -> int:
    messages = read_messages(place.messages)
    for message in messages[seen:]:
        if message.get("type") == "progress":
            reporter.progress(message.get("step"), message.get("total"), message.get("metrics") or {})
    return len(messages)
