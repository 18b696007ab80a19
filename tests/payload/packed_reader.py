"""Reads packed shards as Megatron-Bridge's packed dataset does, and cuts packs into their sequences."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq

Sequence = tuple[list[int], list[int]]  # ids, mask


@dataclass(frozen=True)
class Example:
    """What the trainer sees of a pack: every sequence loses its last token, which is only a label."""

    tokens: list[int]
    labels: list[int]
    mask: list[int]


def packs(folder: Path) -> list[list[Sequence]]:
    """The sequences of every pack of every shard of a split, in order."""
    found = []
    for file in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            bounds = [*row["seq_start_id"], len(row["input_ids"])]
            found.append([(row["input_ids"][a:b], row["loss_mask"][a:b]) for a, b in pairwise(bounds)])
    return found


def sequences(folder: Path) -> list[Sequence]:
    return [s for pack in packs(folder) for s in pack]


def examples(folder: Path) -> list[Example]:
    return [
        Example(
            [t for ids, _ in pack for t in ids[:-1]],
            [t for ids, _ in pack for t in ids[1:]],
            [m for _, mask in pack for m in mask[:-1]],
        )
        for pack in packs(folder)
    ]
