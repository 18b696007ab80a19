"""``checkpoint_hf``: a Hugging Face model directory. Read without torch: safetensors headers are JSON."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_dagster.errors import ArtifactError

LAYOUT = "A directory with config.json, *.safetensors (an index where there are several) and the tokenizer's files."

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json")
_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def validate(path: Path) -> dict[str, Any]:
    """Check that config, every weight shard and the tokenizer are there and whole.

    Returns:
        Facts: parameters, dtypes, architecture, model_type, context_length, vocab_size, shards.

    Raises:
        ArtifactError: naming the missing or damaged file.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: is not a directory. Name a Hugging Face model directory.")
    config = _json(path / "config.json")
    shards = _shards(path)
    parameters = 0
    dtypes: dict[str, int] = {}
    for shard in shards:
        for dtype, shape in _tensors(shard):
            n = math.prod(shape)
            parameters += n
            dtypes[dtype] = dtypes.get(dtype, 0) + n
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ArtifactError(
            f"{path}: has no tokenizer ({', '.join(_TOKENIZER_FILES[:2])} …). Save it beside the model."
        )
    return {
        "parameters": parameters,
        "dtypes": dtypes,
        "architecture": (config.get("architectures") or ["?"])[0],
        "model_type": config.get("model_type"),
        "context_length": config.get("max_position_embeddings"),
        "vocab_size": config.get("vocab_size"),
        "shards": len(shards),
    }


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ArtifactError(f"{file.parent}: has no {file.name}. Name a Hugging Face model directory.") from e
    except (OSError, ValueError) as e:
        raise ArtifactError(f"{file}: is not JSON ({e}). Save the model again.") from e
    if not isinstance(data, dict):
        raise ArtifactError(f"{file}: is not a JSON object. Save the model again.")
    return data


def _shards(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
        missing = [n for n in names if not (path / n).is_file()]
        if missing or not names:
            raise ArtifactError(f"{path}: shard {(missing or ['(none listed)'])[0]} is missing. Save the model again.")
        return [path / n for n in names]
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise ArtifactError(f"{path}: has no *.safetensors weights. Save the model as safetensors.")
    return found


def _tensors(file: Path) -> list[tuple[str, list[int]]]:
    """(dtype, shape) of each tensor, from the header: u64 length, then JSON (safetensors format)."""
    size = file.stat().st_size
    with open(file, "rb") as f:
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise ArtifactError(f"{file}: is truncated or no safetensors file. Save the model again.")
        try:
            header = json.loads(f.read(length))
        except ValueError as e:
            raise ArtifactError(f"{file}: its header is damaged ({e}). Save the model again.") from e
    header.pop("__metadata__", None)
    end = 0
    tensors = []
    for name, t in header.items():
        start, stop = t["data_offsets"]
        if t["dtype"] in _BYTES and math.prod(t["shape"]) * _BYTES[t["dtype"]] != stop - start:
            raise ArtifactError(f"{file}: tensor {name} has the wrong size. Save the model again.")
        end = max(end, stop)
        tensors.append((t["dtype"], t["shape"]))
    if end + 8 + length != size:
        raise ArtifactError(f"{file}: holds {size} bytes where its header says {end + 8 + length}. Save it again.")
    return tensors


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Parameters, architecture and context length."""
    keys = ("parameters", "architecture", "context_length")
    return {k: facts[k] for k in keys if isinstance(facts.get(k), int | float | str)}
