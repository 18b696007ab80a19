"""``splits/{train,valid,test}/``: relative links to the shards of each split, exactly those that exist.

A directory of packs has no weights, so a blend whose datasets weigh differently is mixed by leaving shards out: of
each dataset so many that its share of the split's packs comes as near to its weight as whole shards allow.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _runtime.data_prep.blend import SPLITS


@dataclass(frozen=True)
class Shard:
    """A shard's file, its dataset and how many packs it holds."""

    dataset: str
    weight: float
    path: Path
    packs: int


def weighted(shards: Sequence[Shard]) -> list[Shard]:
    """The shards that mix the datasets by weight; all of them where the weights are equal.

    The total is the largest one that no dataset has too few packs for; every dataset keeps at least one shard.
    """
    weights = {s.dataset: s.weight for s in shards}
    if len(set(weights.values())) < 2:
        return list(shards)
    packs = dict.fromkeys(weights, 0)
    for shard in shards:
        packs[shard.dataset] += shard.packs
    total = min(packs[name] / weight for name, weight in weights.items())
    kept: list[Shard] = []
    for name, weight in weights.items():
        wanted, have = weight * total, 0
        for shard in (s for s in shards if s.dataset == name):
            if have and abs(have + shard.packs - wanted) >= abs(have - wanted):
                break
            kept.append(shard)
            have += shard.packs
    chosen = set(kept)
    return [s for s in shards if s in chosen]


def shuffled(shards: Sequence[Shard], seed: int, split: str) -> list[Shard]:
    """The order in which a reader that goes by name meets them: datasets mixed."""
    order = sorted(shards, key=lambda s: (s.dataset, s.path.name))
    random.Random(f"{seed}:{split}").shuffle(order)
    return order


def write(output_dir: Path, splits: Mapping[str, Sequence[Shard]]) -> None:
    """Replace ``splits/``; links of an earlier run go.

    Raises:
        OSError: it cannot be written.
    """
    made = output_dir / f".splits.tmp-{os.getpid()}"
    shutil.rmtree(made, ignore_errors=True)
    for split in SPLITS:
        folder = made / split
        folder.mkdir(parents=True)
        for position, shard in enumerate(splits.get(split, ())):
            target = os.path.relpath(shard.path, output_dir / "splits" / split)
            (folder / f"{position:06d}__{shard.dataset}__{shard.path.name}").symlink_to(target)
    shutil.rmtree(output_dir / "splits", ignore_errors=True)
    made.rename(output_dir / "splits")
