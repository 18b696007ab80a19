"""``binidx``: tokens as Megatron's ``.bin``/``.idx`` shards, and the blend.json that weights them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts.markdown import table
from nemotron_dagster.artifacts.types import _blend, _indexed, _parallel
from nemotron_dagster.artifacts.types._indexed import BinIdx, BinIdxWriter
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._tally import histogram
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LAYOUT", "BinIdx", "BinIdxWriter", "draw", "figures", "read", "tables", "validate", "write"]

LAYOUT = (
    "A directory with blend.json and the shards that it lists: per split a flat list of weights and prefixes "
    '({"train": ["1.0", "runs/.../shard_000000", ...]}), each prefix a .bin and an .idx; a relative prefix counts from '
    "the folder of blend.json. Or one shard."
)
_TOKENS = 16 << 20


def validate(path: Path) -> dict[str, Any]:
    """Check the blend, every index, and every token.

    Returns:
        Facts: documents, tokens, dtype, largest_token, vocab_size (where plan.json beside a shard names it), splits
        (shards, documents, tokens and weight of each), lengths of sequences, empty_documents, absolute_prefixes.

    Raises:
        ArtifactError: naming the shard and what is wrong with it.
    """
    problems = Problems()
    blend = _blend.load(path, problems)
    prefixes: list[str] = []
    for name, entries in blend.items():
        for entry in entries:
            missing = [s for s in (".idx", ".bin") if not os.path.exists(entry.prefix + s)]
            if missing:
                why = " (a shard that got no rows has no files)" if len(missing) == 2 else ""
                problems.add(
                    f"{entry.prefix}{missing[0]}: is listed in {name} and is not there{why}. "
                    "Take its weight and prefix out of blend.json, or make the shard again."
                )
            elif entry.prefix not in prefixes:
                prefixes.append(entry.prefix)
    size = sum(os.path.getsize(p + s) for p in prefixes for s in (".idx", ".bin"))
    checked = {f.prefix: f for f in _parallel.in_threads(_indexed.check_index, prefixes)}
    for facts in checked.values():
        if facts.problem:
            problems.add(facts.problem)
        elif not facts.tokens:
            problems.add(
                f"{facts.prefix}.bin: has no tokens, and Megatron cannot open an empty file. Take its weight and "
                "prefix out of blend.json, or check what was tokenized."
            )
    _tokens([f for f in checked.values() if not f.problem], problems)
    vocabulary = _vocabulary(prefixes)
    for facts in checked.values():
        if vocabulary and facts.largest >= vocabulary:
            problems.add(
                f"{facts.prefix}.bin: has token {facts.largest}; its tokenizer has {vocabulary}. Tokenize again."
            )
    problems.check("Mend these before training.")
    total: Counter[int] = Counter()
    for facts in checked.values():
        total.update(facts.lengths)
    if not checked:
        raise ArtifactError(f"{path}: has no tokens. Check what was tokenized.")
    return {
        "documents": sum(f.documents for f in checked.values()),
        "tokens": sum(f.tokens for f in checked.values()),
        "shards": len(checked),
        "dtype": " and ".join(sorted({f.dtype for f in checked.values()})),
        "largest_token": max(f.largest for f in checked.values()),
        **({"vocab_size": vocabulary} if vocabulary else {}),
        "empty_documents": sum(f.empty for f in checked.values()),
        "absolute_prefixes": sum(os.path.isabs(e.given) for entries in blend.values() for e in entries),
        "splits": {name: _split(entries, checked) for name, entries in blend.items()},
        "bytes": size,
        "lengths": histogram(total),
    }


def _split(entries: list[_blend.Entry], checked: Mapping[str, _indexed.ShardFacts]) -> dict[str, int | float]:
    shards = [checked[e.prefix] for e in entries]
    return {
        "shards": len(shards),
        "documents": sum(s.documents for s in shards),
        "tokens": sum(s.tokens for s in shards),
        "weight": round(sum(e.weight for e in entries), 6),
    }


def _tokens(shards: list[_indexed.ShardFacts], problems: Problems) -> None:
    """Find each shard's largest token, at the speed of the disk."""
    tasks, owners = [], []
    for shard in shards:
        for first in range(0, shard.tokens, _TOKENS):
            tasks.append((shard.prefix + ".bin", shard.dtype, first, min(_TOKENS, shard.tokens - first)))
            owners.append(shard)
    for owner, (low, high) in zip(owners, _parallel.in_threads(_indexed.largest_token, tasks), strict=True):
        owner.largest = max(owner.largest, high)
        if low < 0:
            problems.add(f"{owner.prefix}.bin: has the negative token {low}. Make the shard again.")


def _vocabulary(prefixes: list[str]) -> int | None:
    """The vocabulary of the tokenizer that plan.json beside the first shard names, if it does."""
    for prefix in prefixes[:1]:
        try:
            plan = json.loads((Path(prefix).parent / "plan.json").read_text(encoding="utf-8"))
            size = plan["resolved_tokenizer"]["vocab_size"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(size, int) and size > 0:
            return size
    return None


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Documents, tokens and what they are."""
    keys = ("documents", "tokens", "shards", "dtype", "largest_token", "vocab_size")
    return {k: facts[k] for k in keys if k in facts}


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """The splits."""
    rows = [(name, *(s[k] for k in ("shards", "documents", "tokens", "weight"))) for name, s in facts["splits"].items()]
    return {"splits": table(("split", "shards", "documents", "tokens", "weight"), rows)}


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Lengths of documents; tokens per split where there are several."""
    from nemotron_dagster.artifacts import pictures

    drawn = [pictures.histogram(facts["lengths"], "tokens per sequence", "sequences", folder / "lengths.png")]
    if len(facts["splits"]) > 1:
        sizes = {name: s["tokens"] for name, s in facts["splits"].items()}
        drawn.append(pictures.bars(sizes, "tokens", folder / "splits.png"))
    return drawn


def read(path: Path) -> dict[str, list[tuple[float, BinIdx]]]:
    """Split -> (weight, shard) of each entry; a shard's tokens are numpy views of the file.

    Raises:
        ArtifactError: no blend, or a shard that is missing or none.
    """
    problems = Problems()
    blend = _blend.load(path, problems)
    problems.check()
    return {name: [(e.weight, BinIdx(e.prefix)) for e in entries] for name, entries in blend.items()}


def write(value: Iterable[np.ndarray[Any, Any]], folder: Path, vocab_size: int | None = None) -> None:
    """Write documents, an array of tokens each, as one shard, and a blend.json with it in train.

    Raises:
        ArtifactError: no documents, tokens outside the vocabulary, or a shard that is there already.
    """
    with BinIdxWriter(folder / "shard_000000", vocab_size) as shard:
        for document in value:
            shard.add(document)
        if not shard.tokens:
            raise ArtifactError(f"{folder}: there are no tokens to write. Check what makes them.")
    (folder / _blend.FILE).write_text(json.dumps({"train": ["1.0", "shard_000000"]}) + "\n", encoding="utf-8")
