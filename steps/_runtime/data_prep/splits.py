"""Which shard belongs to which split, and whether a text of one split occurs in another.

A row lies in exactly one shard and a shard belongs to exactly one split, so splits never share a row.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _runtime.data_prep.blend import SPLITS
from _runtime.payload import PayloadError


@dataclass(frozen=True)
class Wanted:
    """How many shards of each dataset are held out."""

    valid: int
    test: int


def from_counts(num_shards: int, valid: int, test: int) -> Wanted:
    """Held-out shards by count.

    Raises:
        PayloadError: nothing would be left for training.
    """
    if valid + test >= num_shards:
        raise PayloadError(
            "split_leakage_or_empty_validation",
            f"valid_shards {valid} and test_shards {test} leave no shard of num_shards {num_shards} for training",
            "Keep their sum below num_shards.",
        )
    return Wanted(valid, test)


def from_ratios(num_shards: int, train: float, valid: float, test: float) -> Wanted:
    """Held-out shards by share: at least one where the share is above 0, none where there are two shards or fewer.

    Raises:
        PayloadError: the ratios do not add up to 1.
    """
    if abs(train + valid + test - 1) > 1e-6:
        raise PayloadError(
            "config_invalid",
            f"train_ratio {train:g}, valid_ratio {valid:g} and test_ratio {test:g} add up to {train + valid + test:g}",
            "Make them add up to 1.",
        )
    if num_shards <= 2:
        return Wanted(0, 0)
    held = [max(1, round(num_shards * share)) if share > 0 else 0 for share in (valid, test)]
    while sum(held) >= num_shards:
        held[held.index(max(held))] -= 1
    return Wanted(*held)


def assign(
    shards: Mapping[str, Sequence[int]], wanted: Wanted, seed: int, fixed: Mapping[tuple[str, int], str] | None = None
) -> dict[str, list[tuple[str, int]]]:
    """Split -> (dataset, shard index) in order, from the shards of each dataset that hold something.

    Every dataset gives its own held-out shards, so that each split mixes all of them; one with too few shards keeps
    one for training, then gives to validation, then to test. ``fixed`` are assignments of an earlier plan that stay.

    Raises:
        PayloadError: a split that was asked for would be empty.
    """
    found: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for name, indices in shards.items():
        kept = {i: fixed[name, i] for i in indices if fixed and (name, i) in fixed}
        for i, split in kept.items():
            found[split].append((name, i))
        free = sorted(set(indices) - set(kept))
        random.Random(f"{seed}:{name}").shuffle(free)
        for split, count in (("valid", wanted.valid), ("test", wanted.test)):
            count -= sum(s == split for s in kept.values())
            trained = any(s == "train" for s in kept.values())
            count = max(0, min(count, len(free) - (not trained)))
            found[split] += [(name, i) for i in free[:count]]
            free = free[count:]
        found["train"] += [(name, i) for i in free]
    for split, count in (("valid", wanted.valid), ("test", wanted.test)):
        if count and not found[split]:
            raise PayloadError(
                "split_leakage_or_empty_validation",
                f"no shard with rows is left for {split}: {sum(map(len, shards.values()))} in all",
                f"Give more rows, or set {split}_shards to 0.",
            )
    return {split: sorted(entries) for split, entries in found.items()}


def shared_texts(hashes: Mapping[str, Sequence[Path]]) -> dict[str, int]:
    """How many rows of validation and test have a text that occurs in an earlier split, exactly.

    Args:
        hashes: split -> files of little-endian uint64 hashes, one per row. Those of training are read one at a time.

    Returns:
        ``valid_in_train``, ``test_in_train`` and ``test_in_valid``.
    """
    import numpy as np

    def load(files: Sequence[Path]) -> list[np.ndarray]:
        return [np.fromfile(file, "<u8") for file in files]

    held = {split: np.concatenate([np.zeros(0, "<u8"), *load(hashes.get(split, ()))]) for split in ("valid", "test")}
    either = np.unique(np.concatenate(list(held.values())))  # sorted
    seen = np.zeros(len(either), bool)
    for file in hashes.get("train", ()) if len(either) else ():
        trained = np.fromfile(file, "<u8")
        places = np.minimum(np.searchsorted(either, trained), len(either) - 1)
        seen[places[either[places] == trained]] = True  # numpy's isin would sort the held-out hashes for every file
    both = either[seen]
    return {
        "valid_in_train": int(np.isin(held["valid"], both).sum()),
        "test_in_train": int(np.isin(held["test"], both).sum()),
        "test_in_valid": int(np.isin(held["test"], held["valid"]).sum()),
    }
