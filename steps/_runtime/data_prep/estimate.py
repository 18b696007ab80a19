"""What a run would take, from the first rows of its shards tokenized for a moment."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from _runtime.data_prep import launch, shards
from _runtime.data_prep.plan import Shard, Slice
from _runtime.data_prep.runs import DatasetRun

_SECONDS = 3.0


class _Enough(Exception):  # noqa: N818 - it ends a trial
    pass


def estimate(datasets: Sequence[DatasetRun], work: shards.Work, seconds: float = _SECONDS) -> dict[str, Any]:
    """Rows, tokens, shards and hours of a run, without making it.

    Each dataset's first shards are worked on for ``seconds`` in all, into a folder that is removed; sizes of
    compressed files are guesses.

    Returns:
        ``datasets`` (name -> files, shards, bytes, rows, tokens, core_hours), their sums, ``shards_done``, ``cores``,
        ``hours`` on these cores, and ``rows_per_second`` and ``tokens_per_second`` of one core.
    """
    found: dict[str, Any] = {}
    done = sum(r is not None for r in shards.pending([t for d in datasets for t in d.tasks]).values())
    for d in datasets:
        rows, tokens, size, spent = _trial(d, work, seconds / len(datasets))
        total = sum(t.shard.bytes for t in d.tasks)
        scale = total / size if size else 0.0
        found[d.name] = {
            "files": len(d.plan.files),
            "shards": len(d.tasks),
            "bytes": total,
            "rows": round(rows * scale),
            "tokens": round(tokens * scale),
            "core_hours": round(spent * scale / 3600, 4),
            "rows_per_second": round(rows / spent),
            "tokens_per_second": round(tokens / spent),
        }
    cores = launch.cores()
    hours = sum(f["core_hours"] for f in found.values())
    sums = {key: sum(f[key] for f in found.values()) for key in ("files", "shards", "bytes", "rows", "tokens")}
    return {**sums, "shards_done": done, "cores": cores, "hours": round(hours / cores, 4), "datasets": found}


def _trial(d: DatasetRun, work: shards.Work, seconds: float) -> tuple[int, int, int, float]:
    """Rows, tokens and bytes that were done, and the seconds that they took."""
    rows = tokens = size = 0
    started = time.monotonic()

    def tell(more_rows: int, more_tokens: int, more_bytes: int) -> None:
        nonlocal rows, tokens, size
        rows, tokens, size = rows + more_rows, tokens + more_tokens, size + more_bytes
        if time.monotonic() - started > seconds:
            raise _Enough

    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(d.plan.files):  # whole: a part of a compressed one would need a plain copy
            shard = Shard(number, (Slice(file),), 0, "")
            try:
                shards.make(replace(d.tasks[0], folder=folder, shard=shard), work, tell)
            except _Enough:
                break
    return rows, tokens, size, max(time.monotonic() - started, 1e-6)
