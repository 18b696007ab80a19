"""``blend.json``: which shards make up each split, and with what weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.errors import ArtifactError

SPLITS = ("train", "valid", "test")
FILE = "blend.json"


@dataclass(frozen=True)
class Entry:
    """One shard of a split; ``prefix`` is its path without extension, ``given`` how the blend names it."""

    weight: float
    prefix: str
    given: str


def load(path: Path, problems: Problems) -> dict[str, list[Entry]]:
    """The entries per split, from a directory, its blend.json, or one shard (its prefix, ``.idx`` or ``.bin``).

    Raises:
        ArtifactError: nothing of that kind there, or a blend that is none.
    """
    if path.is_dir():
        if not (path / FILE).is_file():
            raise ArtifactError(f"{path}: has no {FILE}. Name the output directory of the tokenizing step, or a shard.")
        path /= FILE
    prefix = str(path.with_suffix("")) if path.suffix in (".idx", ".bin") else str(path)
    if path.suffix != ".json":
        if not Path(f"{prefix}.idx").exists() and not Path(f"{prefix}.bin").exists():
            raise ArtifactError(f"{path}: no such file or directory, nor {prefix}.idx. Check the path.")
        return {"train": [Entry(1.0, prefix, prefix)]}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ArtifactError(f"{path}: is not JSON ({e}). Tokenize again, or mend the file.") from e
    if isinstance(data, list):
        data = {"train": data}
    if not isinstance(data, dict) or not any(data.get(name) for name in SPLITS):
        raise ArtifactError(f'{path}: lists no shard. Write {{"train": ["1.0", "path/of/shard", ...]}}.')
    unknown = [k for k in data if k not in SPLITS]
    if unknown:
        problems.add(f"{path}: has the key {unknown[0]!r}. Its keys are {', '.join(SPLITS)}.")
    found = {}
    for name in SPLITS:
        given = data.get(name) or []
        if not isinstance(given, list) or not all(isinstance(v, str | int | float) for v in given):
            problems.add(f"{path}: {name} is not a list of weights and prefixes. Write one.")
        elif given:
            found[name] = _entries(given, path, name, problems)
    return found


def _entries(given: list[Any], file: Path, name: str, problems: Problems) -> list[Entry]:
    """Weight and prefix in turn, or prefixes alone: how megatron-core tells them apart."""
    weights = [_number(v) for v in given[::2]]
    if len(given) % 2 or all(w is None for w in weights):
        pairs: list[tuple[float | None, Any]] = [(1.0, p) for p in given]
    else:
        pairs = list(zip(weights, given[1::2], strict=True))
    out = []
    for i, (weight, prefix) in enumerate(pairs):
        if not isinstance(prefix, str) or not prefix.strip():
            problems.add(f"{file}: {name}: entry {i} has {prefix!r} for a prefix. Write the shard's path.")
            continue
        prefix = prefix.strip()
        if weight is None or not math.isfinite(weight) or weight <= 0:
            problems.add(f"{file}: {name}: the weight of {prefix} is {given[2 * i]!r}. Write a positive number.")
            continue
        out.append(Entry(weight, str(file.parent / prefix), prefix))
    return out


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
