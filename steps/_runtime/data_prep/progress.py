"""Rows and tokens per second and the time that is left, told at most twice a second."""

from __future__ import annotations

import time

from _runtime import payload

_EVERY = 0.5


class Progress:
    """Counts what workers report; shards that were done before this run count for the total only."""

    def __init__(self, total_bytes: int, shards: int, every: float = _EVERY) -> None:
        self.started = time.monotonic()
        self.total, self.shards, self.every = total_bytes, shards, every
        self.rows = self.tokens = self.bytes = self.shards_done = self.kept_bytes = 0
        self._told = 0.0

    def tell(self, rows: int, tokens: int, size: int) -> None:
        """Add what was done since the last call."""
        self.rows += rows
        self.tokens += tokens
        self.bytes += size
        if time.monotonic() - self._told >= self.every:
            self.show()

    def shard(self, size: int, kept: bool) -> None:
        """A shard is done; ``kept`` where an earlier run made it."""
        self.shards_done += 1
        self.kept_bytes += size if kept else 0
        self.show()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def show(self) -> None:
        """Send a progress message."""
        self._told = time.monotonic()
        seconds = max(self.seconds, 1e-3)
        metrics = {"rows": float(self.rows), "rows_per_second": self.rows / seconds}
        if self.tokens:  # steps that do not tokenize have none
            metrics["tokens_per_second"] = self.tokens / seconds
        left = self.total - self.kept_bytes - self.bytes
        if self.bytes and left > 0:
            metrics["eta_seconds"] = left / (self.bytes / seconds)
        payload.progress(self.shards_done, self.shards, **metrics)
