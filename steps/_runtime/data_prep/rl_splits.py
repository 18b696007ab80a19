"""Which split a file or a row belongs to: what the blend says, else the file's name, else the row's prompt.

Rows that are not given to a split are dealt by a hash of their prompt. So rows of one prompt are always in one split,
no row changes its split when others are added, and nothing depends on the order of files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from _runtime.data_prep import sources
from _runtime.data_prep.blend import ALL, SPLITS, Blend, Dataset
from _runtime.data_prep.sources import SourceFile
from _runtime.payload import PayloadError

_WORDS = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z]+")
MANIFEST = {"train": "train", "valid": "val", "test": "test"}  # what the manifest calls them
HUB = {"train": "train", "valid": "validation", "test": "test"}  # what source_splits calls them


@dataclass(frozen=True)
class Inputs:
    """The blend with its files told apart by split.

    Attributes:
        blend: per split where the source has splits, else as it was.
        files: folder name (see ``Blend.datasets``) -> the dataset's files of that split.
        given: the splits that the source has itself, in order; () where it has none.
    """

    blend: Blend
    files: Mapping[str, Sequence[SourceFile]]
    given: tuple[str, ...]


def named(file: str) -> str | None:
    """The split that a file's name says, else the closest of its folders: train-00000.parquet, validation/x.jsonl.

    Raises:
        PayloadError: the name says two.
    """
    for part in reversed(file.split("/")):
        found = {_WORDS[word] for w in _WORD.findall(part) if (word := w.lower()) in _WORDS}
        if len(found) > 1:
            message = f"{file}: its name says both {' and '.join(sorted(found))}"
            raise _unclear(message, "Rename it, or set splits=ratios to deal its rows by valid_ratio and test_ratio.")
        if found:
            return found.pop()
    return None


def tell_apart(blend: Blend, by_name: bool) -> Inputs:
    """Find the files of a blend, and the split of each.

    Args:
        by_name: whether names of files tell; a blend per split tells itself, whatever the names are.

    Raises:
        PayloadError: no file, a name that says two splits, or nothing to train on.
    """
    found = {name: sources.find_files(dataset) for _, name, dataset in blend.datasets()}
    if blend.per_split:
        _require_train(tuple(blend.splits), blend.file or "the blend")
        return Inputs(blend, found, tuple(s for s in SPLITS if s in blend.splits))
    split_of = {f.path: named(f.name) for files in found.values() for f in files} if by_name else {}
    if not any(split_of.values()):
        return Inputs(blend, found, ())
    parted: dict[str, list[Dataset]] = {}
    files: dict[str, list[SourceFile]] = {}
    for dataset in blend.splits[ALL]:
        for split in SPLITS:
            mine = [f for f in found[dataset.name] if (split_of[f.path] or "train") == split]
            if mine:
                parted.setdefault(split, []).append(replace(dataset))  # an object of its own
                files[f"{dataset.name}__{split}"] = mine
    _require_train(tuple(parted), ", ".join(d.path for d in blend.splits[ALL]))
    given = tuple(s for s in SPLITS if s in parted)
    return Inputs(Blend({s: tuple(parted[s]) for s in given}, blend.file), files, given)


def dealt(given: Sequence[str], valid: float, test: float) -> dict[str, float]:
    """Split -> the share of rows that is held out for it: of splits that the source lacks, where a share is asked."""
    return {s: share for s, share in (("valid", valid), ("test", test)) if share and s not in given}


def split_for(hash_: int, shares: Mapping[str, float], at_most: Mapping[str, int]) -> str:
    """The split of a row by its prompt's hash (of 64 bits).

    Args:
        shares: as ``dealt`` has them.
        at_most: split -> a hash that is held out for it whatever its share, see ``least``.
    """
    for split, least_ in at_most.items():
        if hash_ == least_:
            return split
    low = 0.0
    for split, share in shares.items():
        if low <= hash_ / 2**64 < low + share:
            return split
        low += share
    return "train"


def least(hashes: Sequence[int], shares: Mapping[str, float]) -> dict[str, int]:
    """Splits that no row would come to, with the prompt that each gets then: a handful of rows is split too.

    One prompt is always left for training.
    """
    known = sorted(set(hashes))
    reached = {split_for(h, shares, {}) for h in known}
    lacking = [s for s in shares if s not in reached]
    free = [h for h in known if split_for(h, shares, {}) == "train"]
    return dict(zip(lacking, free[:-1], strict=False))


def _require_train(given: Sequence[str], where: str) -> None:
    if "train" not in given:
        message = f"{where}: has {' and '.join(given)}, and nothing to train on"
        raise _unclear(message, "Name a train split, or set splits=ratios to deal all rows.")


def _unclear(message: str, recovery: str) -> PayloadError:
    return PayloadError("split_names_do_not_match_rl_config", message, recovery)
