"""The terminal during a run: the jobs' own output, and a live line per node."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from nemotron_dagster.errors import NemotronError

_EVERY = 10.0  # seconds between progress lines where the output is no terminal


@contextmanager
def screen(verbose: bool, quiet: bool = False) -> Iterator[Screen]:
    """A screen on the real stdout, while Dagster's own chatter and its capture of this process's output go nowhere.

    With ``quiet`` the screen goes there too: whoever asked for JSON gets nothing else.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    real, saved = os.dup(1), (os.dup(1), os.dup(2))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if not verbose:
        os.dup2(nowhere, 2)
    out = os.fdopen(os.dup(nowhere) if quiet else real, "w", encoding="utf-8", errors="replace", buffering=1)
    shown = Screen(Console(file=out, highlight=False, soft_wrap=True))
    try:
        with shown.progress:
            yield shown
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in (*saved, nowhere, *([real] if quiet else [])):
            os.close(descriptor)
        out.close()


@dataclass
class Screen:
    """Implements ``nemotron_dagster.dagster.live.Terminal``."""

    console: Console
    errors: list[tuple[str, NemotronError]] = field(default_factory=list)
    progress: Progress = field(init=False)
    _nodes: dict[str, Line] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            redirect_stdout=False,  # this process's own output is Dagster's chatter and a copy of the jobs'
            redirect_stderr=False,
        )

    def started(self, name: str) -> Line:
        task = self.progress.add_task(f"[bold]{name}", total=None, figures="")
        self._nodes[name] = Line(self, name, task)
        if not self.console.is_terminal:
            self.console.print(f"{name}: started", markup=False)
        return self._nodes[name]

    def finished(self, name: str, error: NemotronError | None) -> None:
        line = self._nodes[name]
        line.flush()
        seconds = time.monotonic() - line.began
        if error is not None:
            self.errors.append((name, error))
            self.progress.update(line.task, description=f"[bold red]✗ {name}", total=1)
        else:
            self.progress.update(line.task, total=1, completed=1)
        if not self.console.is_terminal:
            self.console.print(f"{name}: {'failed' if error else 'done'} in {seconds:.1f} s", markup=False)


@dataclass
class Line:
    """One node's line; implements ``nemotron_dagster.jobs.run.Reporter``."""

    owner: Screen
    name: str
    task: TaskID
    began: float = field(default_factory=time.monotonic)
    _rest: bytes = b""
    _told: float = 0.0

    def note(self, text: str) -> None:
        self.owner.console.print(f"{self.name}: {text}", style="dim", markup=False)

    def log(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", errors="replace").rstrip("\r")
            self.owner.console.print(text.rpartition("\r")[2], markup=False)  # of a redrawn line, its last state

    def flush(self) -> None:
        if self._rest:
            self.log(b"\n")

    def progress(self, step: int | None, total: int | None, metrics: Mapping[str, Any]) -> None:
        figures = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items())
        if step is not None:
            figures = f"{step}/{total}  {figures}"
        self.owner.progress.update(self.task, total=total, completed=step or 0, figures=figures)
        now = time.monotonic()
        if not self.owner.console.is_terminal and (now - self._told > _EVERY or (step is not None and step == total)):
            self._told = now
            self.owner.console.print(f"{self.name}: {figures}", markup=False)
