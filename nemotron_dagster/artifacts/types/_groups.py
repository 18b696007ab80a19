"""The tensors of a model in few lines: numbered layers and experts as one group, parameters by block."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nemotron_dagster.artifacts.types._safetensors import Tensor

#: Facts hold no more groups than this; the smallest are left out.
MOST = 100
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_EXPERTS = (["experts"], ["shared_expert"], ["shared_experts"])
_LEAVES = ("weight", "bias", "A_log", "D", "dt_bias", "weight_scale", "weight_scale_2", "input_scale", "default")


def pattern(name: str) -> str:
    """``model.layers.*.mlp.up_proj.weight`` of the tensor in each layer."""
    return _NUMBER.sub("*", name)


def groups(tensors: Iterable[Tensor]) -> list[dict[str, Any]]:
    """One mapping per group, in the order of the files: name, dtype, shape (of the first; ``…`` where another has
    other ones), count and parameters."""
    found: dict[str, dict[str, Any]] = {}
    for t in tensors:
        shape = " × ".join(map(str, t.shape)) or "scalar"
        name = pattern(t.name)
        empty = {"name": name, "dtype": t.dtype, "shape": shape, "count": 0, "parameters": 0}
        group = found.setdefault(name, empty)
        group["count"] += 1
        group["parameters"] += t.elements
        for key, value in (("dtype", t.dtype), ("shape", shape)):
            if value != group[key].removesuffix(" …"):
                group[key] = group[key].removesuffix(" …") + " …"
    rows = list(found.values())
    if len(rows) > MOST:
        least = sorted((r["parameters"] for r in rows), reverse=True)[MOST - 1]
        rows = [r for r in rows if r["parameters"] >= least][:MOST]
    return rows


def blocks(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Parameters per block of the network, the largest first, at most 20: ``layers.*.mlp``, ``embed_tokens``."""
    found: dict[str, int] = {}
    for t in tensors:
        name = _block(pattern(t.name))
        found[name] = found.get(name, 0) + t.elements
    return dict(sorted(found.items(), key=lambda item: -item[1])[:20])


def _block(name: str) -> str:
    parts = name.split(".")
    while len(parts) > 1 and parts[-1] in _LEAVES:
        parts.pop()
    if "*" in parts:
        at = parts.index("*")
        experts = parts[at + 2 : at + 3] if parts[at + 2 : at + 3] in _EXPERTS else []
        return ".".join([*parts[max(at - 1, 0) : at + 2], *experts])
    return parts[-1]


def columns(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The groups as a schema: name, dtype, and shape with count."""
    return [
        (
            g["name"],
            g["dtype"],
            f"{g['shape']}" + (f", {g['count']:,} of them" if g["count"] > 1 else "") + f": {g['parameters']:,}",
        )
        for g in facts.get("tensors", [])
    ]
