"""What a run would take, from the first rows of its shards tokenized for a moment."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from _runtime.data_prep import launch, shards
from _runtime.data_prep.plan import Shard, Slice
from _runtime.data_prep.runs import DatasetRun

_SECONDS = 3.0


def only_plans(argv: Sequence[str] | None = None) -> bool:
    """Whether the command line asks what a run would take, and no more."""
    return "--plan" in (sys.argv if argv is None else argv)


class _Enough(Exception):  # noqa: N818 - it ends a trial
    pass


def estimate(datasets: Sequence[DatasetRun], work: shards.Work, seconds: float = _SECONDS) -> dict[str, Any]:
    """Rows, tokens, shards and hours of a run, without making it.

    Each dataset's first files are worked on for ``seconds`` in all, into a folder that is removed; sizes of compressed
    files are guesses.

    Returns:
        ``datasets`` (name -> files, shards, bytes of input, rows, tokens, core_hours, and rows_per_second and
        tokens_per_second of one core), sums of the first six, ``shards_done`` by earlier runs, ``cores``, and ``hours``
        on these cores for all shards.
    """
    found: dict[str, Any] = {}
    done = sum(shards.completed(t) is not None for d in datasets for t in d.tasks)
    for d in datasets:
        trial = _trial(d, work, seconds / len(datasets))
        total = sum(t.shard.bytes for t in d.tasks)
        scale = total / trial.bytes if trial.bytes else 0.0
        found[d.name] = {
            "files": len(d.plan.files),
            "shards": len(d.tasks),
            "bytes": total,
            "rows": round(trial.rows * scale),
            "tokens": round(trial.tokens * scale),
            "core_hours": _short(trial.seconds * scale / 3600),
            "rows_per_second": round(trial.rows / trial.seconds),
            "tokens_per_second": round(trial.tokens / trial.seconds),
        }
    cores = launch.cores()
    sums = {
        key: sum(f[key] for f in found.values()) for key in ("files", "shards", "bytes", "rows", "tokens", "core_hours")
    }
    hours = _short(sums["core_hours"] / cores)
    return {**sums, "shards_done": done, "cores": cores, "hours": hours, "datasets": found}


def _short(hours: float) -> float:
    """Four significant digits: a few rows take millionths of an hour."""
    return float(f"{hours:.4g}")


@dataclass
class _Trial:
    rows: int = 0
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0


def _trial(d: DatasetRun, work: shards.Work, seconds: float) -> _Trial:
    """What was done in which time. The first batch, which loads the tokenizer, says nothing of the others' time."""
    found = _Trial()
    began = started = time.monotonic()
    first = 0

    def tell(rows: int, tokens: int, size: int) -> None:
        nonlocal started, first
        if not found.bytes:
            started, first = time.monotonic(), size
        found.rows, found.tokens, found.bytes = found.rows + rows, found.tokens + tokens, found.bytes + size
        if time.monotonic() - began > seconds:
            raise _Enough

    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(d.plan.files):  # whole: a part of a compressed one would need a plain copy
            shard = Shard(number, (Slice(file),), 0, "")
            try:
                shards.make(replace(d.tasks[0], folder=folder, shard=shard), work, tell)
            except _Enough:
                break
    now = time.monotonic()
    later = (found.bytes - first) / found.bytes if found.bytes else 0.0
    found.seconds = max((now - started) / later if later > 0.5 else now - began, 1e-6)
    return found
