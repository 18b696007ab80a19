"""Exact and near duplicates over all batches, on the CPU. The first occurrence is kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from nemo_curator.tasks import DocumentBatch

from _runtime.curate.options import Fuzzy

Row = tuple[int, int]  # unit, line


def drop_exact(batches: list[DocumentBatch]) -> list[Row]:
    """Remove rows whose normalised text occurred before; returns them."""
    seen: set[bytes] = set()

    def first(value: bytes) -> bool:
        if value in seen:
            return False
        seen.add(value)
        return True

    return _drop(batches, "digest", first)


def drop_near(batches: list[DocumentBatch], fuzzy: Fuzzy) -> list[Row]:
    """Remove rows whose signature agrees with a kept one's in at least ``threshold`` of its places; returns them.

    Candidates come from banding: two signatures are compared only if one of their bands is equal.
    """
    per_band = rows_per_band(fuzzy)
    buckets: list[dict[bytes, list[int]]] = [{} for _ in range(fuzzy.num_perm // per_band)]
    kept: list[np.ndarray] = []

    def first(value: bytes) -> bool:
        signature = np.frombuffer(value, dtype=np.uint32)
        keys = [value[4 * per_band * i : 4 * per_band * (i + 1)] for i in range(len(buckets))]
        candidates = sorted({k for bucket, key in zip(buckets, keys, strict=True) for k in bucket.get(key, ())})
        if any(np.mean(kept[k] == signature) >= fuzzy.threshold for k in candidates):
            return False
        for bucket, key in zip(buckets, keys, strict=True):
            bucket.setdefault(key, []).append(len(kept))
        kept.append(signature)
        return True

    return _drop(batches, "minhash", first)


def rows_per_band(fuzzy: Fuzzy) -> int:
    """The widest band with which a pair at the threshold is still found at least 99 times in 100."""
    for rows in range(fuzzy.num_perm, 1, -1):
        bands = fuzzy.num_perm // rows
        if 1 - (1 - fuzzy.threshold**rows) ** bands >= 0.99:
            return rows
    return 1


def _drop(batches: list[DocumentBatch], column: str, first: Callable[[bytes], bool]) -> list[Row]:
    dropped: list[Row] = []
    for batch in batches:
        data: pd.DataFrame = batch.to_pandas()
        keep = np.array([first(value) for value in data[column]], dtype=np.bool_)
        dropped += [(batch._metadata["unit"], int(line)) for line in data["line"][~keep]]
        batch.data = data[keep].drop(columns=column)
    return dropped
