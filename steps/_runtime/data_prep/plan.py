"""How a dataset becomes shards: which shard reads which part of which file, and the digests that name the result.

Files that are no larger than an even share go whole to one shard, balanced by size. Larger ones, and all where there
are fewer files than shards, are cut into blocks that are dealt to all shards, so that each shard samples the whole
file and none reads what another one reads.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from _runtime.data_prep.sources import SourceFile

_EXPANSION = {"jsonl.gz": 4.0, "jsonl.zst": 4.0, "parquet": 2.5}  # bytes of rows per stored byte, roughly
_BLOCKS = 64  # of a cut file per shard, at least where it is large enough
_SMALLEST, _LARGEST = 64, 1 << 20  # bytes of a block
_ROWS = 4096  # of a block of a Parquet file, at most


@dataclass(frozen=True)
class Slice:
    """What a shard reads of one file.

    Attributes:
        index, of: this shard's number among those that share the file.
        block: size of a block, in bytes (in rows, of Parquet); 0 where the whole file is read.
        seed: of the deal of blocks.
        end: where the part of the file ends that is used at all: a byte offset of plain JSONL, else a number of rows.
        staged: a plain local copy to read instead, where the file itself cannot be read in parts.
    """

    file: SourceFile
    index: int = 0
    of: int = 1
    block: int = 0
    seed: int = 0
    end: int | None = None
    staged: str | None = None

    @property
    def identity(self) -> list[Any]:
        """What decides which rows these are."""
        return [*self.file.identity, self.index, self.of, self.block, self.seed, self.end]


@dataclass(frozen=True)
class Shard:
    """``digest`` covers everything that decides the shard's bytes: rows and settings, no path and no library."""

    index: int
    slices: tuple[Slice, ...]
    bytes: int
    digest: str


@dataclass(frozen=True)
class Plan:
    """All shards of one dataset."""

    dataset: str
    settings: Mapping[str, Any]
    shards: tuple[Shard, ...]
    digest: str
    asked: int = 0  # num_shards of the config; further files may have added some

    @property
    def files(self) -> list[SourceFile]:
        """The dataset's files, each once."""
        return list({s.file.path: s.file for shard in self.shards for s in shard.slices}.values())

    def to_json(self) -> dict[str, Any]:
        """``plan.json``, in the reference's field names where it has them."""
        return {
            "version": "2.0",
            "plan_hash": self.digest,
            "dataset_name": self.dataset,
            "num_shards": len(self.shards),
            "num_shards_asked": self.asked,
            "settings": dict(self.settings),
            "files": [f.to_json() for f in self.files],
            "file_assignments": [
                {
                    "shard_index": s.index,
                    "digest": s.digest,
                    "total_bytes": s.bytes,
                    "files": [
                        {"path": x.file.path, "row_modulus": x.of, "row_remainder": x.index, "block": x.block}
                        | {"seed": x.seed, "end": x.end}
                        for x in s.slices
                    ],
                }
                for s in self.shards
            ],
        }


def plan_from_json(data: Mapping[str, Any]) -> Plan:
    """The plan that ``Plan.to_json`` wrote."""
    files = {f["path"]: SourceFile.from_json(f) for f in data["files"]}
    shards = tuple(
        Shard(
            a["shard_index"],
            tuple(
                Slice(files[x["path"]], x["row_remainder"], x["row_modulus"], x["block"], x["seed"], x["end"])
                for x in a["files"]
            ),
            a["total_bytes"],
            a["digest"],
        )
        for a in data["file_assignments"]
    )
    return Plan(data["dataset_name"], data["settings"], shards, data["plan_hash"], data["num_shards_asked"])


def make_plan(
    dataset: str,
    files: Sequence[SourceFile],
    num_shards: int,
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
    ends: Mapping[str, int] | None = None,
    previous: Sequence[Plan] = (),
) -> Plan:
    """Deal ``files`` to ``num_shards`` shards.

    Args:
        settings: everything beside the rows that changes the output, as JSON: fingerprints, never paths.
        ends: path -> how much of the file is used (see ``Slice.end``); files that are not in it are used whole, and
            an end of 0 leaves a file out.
        previous: earlier plans. The one with most files, among those with the same settings whose files are all still
            here, keeps its shards as they are, and only files that it lacks are dealt, to further shards.

    Returns:
        The plan; shards that got nothing have no slices.
    """
    ends = ends or {}
    used = [f for f in files if f.size and ends.get(f.path, 1)]
    kept: tuple[Shard, ...] = ()
    asked = num_shards
    fitting = [p for p in previous if p.asked == asked and _extends(p, used, settings, ends)]
    if fitting:
        best = max(fitting, key=lambda p: (len(p.files), p.digest))
        known = {tuple(f.identity) for f in best.files}
        kept = _moved(best.shards, used)
        new = [f for f in used if tuple(f.identity) not in known]
        share = sum(map(_weight, new)) / sum(map(_weight, best.files))
        used, num_shards = new, max(1, round(share * len(kept))) if new else 0
    dealt = [
        Shard(len(kept) + i, slices, size, _digest([settings, [s.identity for s in slices]]))
        for i, (slices, size) in enumerate(_deal(used, num_shards, seed, ends))
    ]
    shards = (*kept, *dealt)
    return Plan(dataset, settings, shards, _digest([settings, [s.digest for s in shards]]), asked)


def _extends(plan: Plan, files: Sequence[SourceFile], settings: Mapping[str, Any], ends: Mapping[str, int]) -> bool:
    """Whether all files of an earlier plan are here, and it used them whole, as it would be done now."""
    here = {tuple(f.identity) for f in files}
    whole = not ends and all(x.end is None for s in plan.shards for x in s.slices)
    return whole and dict(plan.settings) == dict(settings) and all(tuple(f.identity) in here for f in plan.files)


def _moved(shards: Sequence[Shard], files: Sequence[SourceFile]) -> tuple[Shard, ...]:
    """The shards, reading their files from where those lie now."""
    here = {tuple(f.identity): f for f in files}
    return tuple(
        replace(s, slices=tuple(replace(x, file=here[tuple(x.file.identity)]) for x in s.slices)) for s in shards
    )


def _deal(
    files: Sequence[SourceFile], count: int, seed: int, ends: Mapping[str, int]
) -> list[tuple[tuple[Slice, ...], int]]:
    if not count:
        return []
    dealt: list[list[Slice]] = [[] for _ in range(count)]
    load = [0.0] * count
    share = sum(map(_weight, files)) / count
    whole = [f for f in files if len(files) >= count and _weight(f) <= share]
    for file in (f for f in files if f not in set(whole)):
        block = _block(file, count)
        for i in range(count):
            dealt[i].append(Slice(file, i, count, block, seed, ends.get(file.path)))
            load[i] += _weight(file) / count
    lightest = [(size, i) for i, size in enumerate(load)]
    heapq.heapify(lightest)
    for file in sorted(whole, key=lambda f: (-f.size, f.name)):
        size, i = heapq.heappop(lightest)
        dealt[i].append(Slice(file, end=ends.get(file.path)))
        load[i] = size + _weight(file)
        heapq.heappush(lightest, (load[i], i))
    return [(tuple(sorted(s, key=lambda x: x.file.name)), int(size)) for s, size in zip(dealt, load, strict=True)]


def _weight(file: SourceFile) -> float:
    return file.size * _EXPANSION.get(file.format, 1.0)


def _block(file: SourceFile, count: int) -> int:
    if file.format == "parquet":
        return max(1, min(_ROWS, int(_weight(file)) // 2000 // (count * _BLOCKS)))  # rows of some 2 kB
    return max(_SMALLEST, min(_LARGEST, int(_weight(file)) // (count * _BLOCKS)))


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def digest(data: Any) -> str:
    """16 hex digits that name JSON data, whatever the order of its keys."""
    return _digest(data)
