"""How much memory one GPU of a profile has, as far as the profile says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SIZE = re.compile(r"(?<![\w.])?(\d{2,3})\s*gi?b", re.IGNORECASE)
#: Keys of profiles in which sites name the model of a GPU.
_KEYS = ("resource_shape", "gres", "constraint", "node_selector")


def gpu_memory(settings: Mapping[str, Any], models: Mapping[str, Any]) -> tuple[float, str] | None:
    """GiB per GPU, and the key that says so; None where nothing does.

    ``gpu_memory_gb`` says it itself. A Lepton shape (``gpu.8xh100-80gb``), a Slurm gres or constraint and a node
    selector may name the size, or a model of which there is one size only (``models``: name -> GB). Sizes as they are
    sold are taken for GiB, which they are within 2 %.
    """
    given = settings.get("gpu_memory_gb")
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given), "gpu_memory_gb"
    if isinstance(given, str) and given.strip().replace(".", "", 1).isdigit():
        return float(given), "gpu_memory_gb"
    for key in _KEYS:
        value = settings.get(key)
        text = " ".join(map(str, value.values())) if isinstance(value, Mapping) else str(value or "")
        if "${" in text or not text:
            continue
        if size := _SIZE.search(text):
            return float(size[1]), key
        words = set(re.split(r"[^a-z0-9]+", re.sub(r"(\d)x(?=[a-z])", r"\1 ", text.lower())))
        named = [float(gb) for model, gb in models.items() if model.lower() in words]
        if len(set(named)) == 1:
            return named[0], key
    return None
