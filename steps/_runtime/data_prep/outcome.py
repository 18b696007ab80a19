"""What came of a run: which shard went to which split, how many rows and tokens there are, and what was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _runtime.data_prep import rejects, shards, splits
from _runtime.data_prep.blend import ALL, SPLITS
from _runtime.data_prep.runs import SPLITS_FILE, DatasetRun
from _runtime.payload import PayloadError

Assigned = dict[str, list[tuple[DatasetRun, int]]]


def assign(datasets: Sequence[DatasetRun], wanted: splits.Wanted, seed: int) -> Assigned:
    """Split -> (dataset, shard index) of every shard that has files.

    A blend per split says itself where its datasets go. Of a single blend every dataset gives its own held-out shards;
    where files were added to an earlier run with the same wishes, its shards stay in the splits that they had.
    ``splits.json`` beside each plan keeps the answer for the next run.

    Raises:
        PayloadError: nothing was left to train on, or a split that was asked for would be empty.
    """
    by_name = {d.name: d for d in datasets}
    single = {d.name: d.filled for d in datasets if d.split == ALL}
    wish = {"valid_shards": wanted.valid, "test_shards": wanted.test, "seed": seed}
    fixed = {(d.name, i): split for d in datasets if d.split == ALL for i, split in _kept(d, wish).items()}
    found: Assigned = {split: [] for split in SPLITS}
    for split, entries in splits.assign(single, wanted, seed, fixed).items() if single else ():
        found[split] += [(by_name[name], i) for name, i in entries]
    for d in datasets:
        if d.split != ALL:
            found[d.split] += [(d, i) for i in d.filled]
    for d in datasets:
        of_shard = {d.plan.shards[i].digest: split for split, pairs in found.items() for x, i in pairs if x is d}
        text = json.dumps({**wish, "shards": of_shard}, indent=1, sort_keys=True) + "\n"
        shards.write_whole(d.folder / SPLITS_FILE, text)
    return found


def _kept(dataset: DatasetRun, wish: Mapping[str, Any]) -> dict[int, str]:
    """The splits of shards that an earlier plan of the dataset had, where this plan only adds to it."""
    digests = {s.digest: s.index for s in dataset.plan.shards}
    for before in dataset.before:
        known = before.get("shards") or {}
        if known and all(before.get(k) == v for k, v in wish.items()) and all(d in digests for d in known):
            return {digests[d]: split for d, split in known.items()}
    return {}


def weights(assigned: Sequence[tuple[DatasetRun, int]], measure: str = "tokens") -> list[float]:
    """The weight of every shard of a split: its dataset's, shared out by the shards' tokens.

    Repeating the dataset's weight for each shard would weigh a dataset by its number of shards as well.
    """
    total: Counter[str] = Counter()
    for d, i in assigned:
        total[d.name] += d.receipts[i]["stats"][measure]
    return [d.dataset.weight * d.receipts[i]["stats"][measure] / total[d.name] for d, i in assigned]


def leaks(assigned: Assigned, kind: str = "hashes") -> dict[str, int]:
    """Rows of validation and test whose text another split has too (see ``splits.shared_texts``)."""
    files = {
        split: [Path(d.folder, d.receipts[i]["files"][kind]["path"]) for d, i in pairs]
        for split, pairs in assigned.items()
    }
    return splits.shared_texts(files)


def totals(receipts: Sequence[shards.Receipt]) -> dict[str, int]:
    """The counts of several receipts added up."""
    total: Counter[str] = Counter()
    for receipt in receipts:
        total.update(receipt["stats"])
    return dict(total)


def rejected(datasets: Sequence[DatasetRun]) -> dict[str, dict[str, Any]]:
    """Reason -> rows and examples, of the whole run. Call it before staged copies are removed."""
    return rejects.told(rejects.merge([r["rejects"] for d in datasets for _, r in sorted(d.receipts.items())]))


def require_rows(datasets: Sequence[DatasetRun], name: str, hint: str) -> None:
    """Refuse a run of which nothing is left.

    Raises:
        PayloadError: no shard of any dataset has files; the commonest reason is told with an example.
    """
    for d in datasets:
        if d.filled:
            continue
        left_out = rejected([d])
        if not left_out:
            raise PayloadError("empty_input", f"dataset {d.dataset.name!r}: {d.dataset.path} holds no row", hint)
        reason, most = max(left_out.items(), key=lambda item: int(item[1]["rows"]))
        counts = ", ".join(f"{key} {value['rows']}" for key, value in left_out.items())
        example = "".join(f"; {e['row']}{': ' + e['note'] if 'note' in e else ''}" for e in most["examples"][:1])
        message = f"dataset {d.dataset.name!r}: no row is left ({counts}); most were {reason}{example}"
        raise PayloadError(name, message, hint)
