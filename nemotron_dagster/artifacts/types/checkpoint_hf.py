"""``checkpoint_hf``: a Hugging Face model directory. Read without torch: safetensors headers are JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.markdown import table
from nemotron_dagster.artifacts.types import _groups, _hf_config, _hf_folder, _safetensors, _tokenizer
from nemotron_dagster.artifacts.types._documents import read_json
from nemotron_dagster.artifacts.types._groups import columns
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._safetensors import Tensor
from nemotron_dagster.errors import ArtifactError
from nemotron_dagster.files import printable

__all__ = ["LAYOUT", "HFCheckpoint", "columns", "draw", "figures", "nonfinite", "read", "tables", "validate"]

LAYOUT = (
    "A directory with config.json, model.safetensors (or shards with model.safetensors.index.json), the tokenizer's "
    "files, and generation_config.json where the model has one."
)
_FIX = "Name a Hugging Face model directory, or save the model again."
_NOTES = 5


@dataclass(frozen=True)
class HFCheckpoint:
    """A handle on a model directory: its path, its config, and the facts that ``validate`` found."""

    path: Path
    config: Mapping[str, Any]
    facts: Mapping[str, Any]

    def tensors(self) -> dict[str, tuple[Path, Tensor]]:
        """Name -> file and place of each tensor.

        Raises:
            ArtifactError: the weights were changed since.
        """
        problems = Problems()
        weights = _hf_folder.read_weights(self.path, _hf_folder.entries(self.path, problems), problems)
        problems.check()
        return {t.name: (h.file, t) for h in weights.headers for t in h.tensors}


def validate(path: Path, finite: bool = False) -> dict[str, Any]:
    """Check config, weights, tokenizer and generation config, and that they fit each other.

    Headers are read, not weights: a flipped bit in a weight is found by the digests of the manifest only. ``finite``
    reads every weight and refuses NaN and infinity.

    Returns:
        Facts: parameters, dtypes (parameters of each), architecture, model_type, context_length, vocab_size,
        hidden_size, layers, heads, kv_heads, embedding_rows (token ids that the model takes), shards, bytes, tied,
        tokenizer (its file), tokenizer_size, tokenizer_fingerprint, chat_template, chat_template_fingerprint,
        quantization, tensors (groups of tensors), blocks (parameters of each), unused (safetensors files that nothing
        names), notes.

    Raises:
        ArtifactError: naming the file and tensor of what is wrong.
    """
    problems = Problems()
    names = _hf_folder.entries(path, problems)
    if problem := _hf_folder.elsewhere(path, names):
        raise ArtifactError(problem)
    config = read_json(path / "config.json", problems, _FIX)
    weights = _hf_folder.read_weights(path, names, problems)
    tokenizer = _tokenizer.read_tokenizer(path, problems)
    template = _tokenizer.read_template(path, problems)
    if "generation_config.json" in names:
        read_json(path / "generation_config.json", problems, "Save the model again.")
    quantization = _quantization(path, config or {}, names, problems)
    problems.check()
    if config is None or tokenizer is None:  # each is a problem
        raise ArtifactError(f"{path}: is no whole model. {_FIX}")
    tensors = weights.tensors
    notes = _hf_config.check(config, tensors, str(path), problems)
    notes += _vocabulary(path, tokenizer, config, tensors, problems)
    problems.check()
    if finite:
        nonfinite(path)
    dtypes: dict[str, int] = {}
    for t in tensors:
        dtypes[t.dtype] = dtypes.get(t.dtype, 0) + t.elements
    named = config.get("architectures")
    return {
        "parameters": sum(dtypes.values()),
        "dtypes": dtypes,
        "architecture": printable(named[0], 100) if isinstance(named, list) and named else "?",
        "model_type": printable(config.get("model_type") or "?", 100),
        "context_length": _hf_config.context_length(config),
        **_hf_config.sizes(config),
        "embedding_rows": _hf_config.embedding_rows(config, tensors),
        "shards": len(weights.headers),
        "bytes": sum(h.size for h in weights.headers),
        "tied": _hf_config.is_tied(tensors),
        "tokenizer": tokenizer.file,
        "tokenizer_size": tokenizer.size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "chat_template": template is not None,
        "chat_template_fingerprint": _tokenizer.fingerprint(template),
        "quantization": quantization,
        "tensors": _groups.groups(tensors),
        "blocks": _groups.blocks(tensors),
        "unused": list(weights.unused[:_NOTES]),
        "notes": notes[:_NOTES],
    }


def nonfinite(path: Path) -> None:
    """Read every weight.

    Raises:
        ArtifactError: naming the tensors with NaN or infinity.
    """
    problems = Problems()
    weights = _hf_folder.read_weights(path, _hf_folder.entries(path, problems), problems)
    for header in weights.headers:
        try:
            for name, bad in _safetensors.nonfinite(header):
                problems.add(f"{header.file}: {printable(name, 200)} has {bad:,} elements that are NaN or infinite.")
        except OSError as e:
            problems.add(f"{header.file}: cannot be read ({e.strerror}). Copy the model again.")
    problems.check("Use a checkpoint from before training diverged.")


def _vocabulary(
    path: Path, found: _tokenizer.Tokenizer, config: Mapping[str, Any], tensors: list[Tensor], problems: Problems
) -> list[str]:
    """Every id that text can give must have a row; of added tokens some models leave one without, which is noted."""
    rows = _hf_config.embedding_rows(config, tensors)
    if rows is None:
        return []
    if found.largest is not None and found.largest >= rows:
        problems.add(
            f"{path / found.file}: has the token id {found.largest:,}, and the model has {rows:,} embeddings. "
            "Save the tokenizer that belongs to the model, or resize the embeddings."
        )
    elif found.largest_added is not None and found.largest_added >= rows:
        return [f"the added token with the id {found.largest_added:,} has no embedding"]
    return []


def _quantization(
    path: Path, config: Mapping[str, Any], names: list[str], problems: Problems
) -> dict[str, str | int] | None:
    """How weights are quantized: method, and what else is a short text or number."""
    found = config.get("quantization_config")
    if found is None and "hf_quant_config.json" in names:
        about = read_json(path / "hf_quant_config.json", problems, "Quantize the model again.") or {}
        found = about.get("quantization")
    if not isinstance(found, dict):
        return None
    short = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, str | int) and v is not None}
    return {printable(k, 60): v if isinstance(v, int) else printable(v, 100) for k, v in list(short.items())[:12]}


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Parameters, architecture, sizes and number format."""
    keys = ("parameters", "architecture", "context_length", "vocab_size", "hidden_size", "layers", "shards")
    out = {k: facts[k] for k in keys if isinstance(facts.get(k), int | float | str)}
    if facts.get("dtypes"):
        out["dtype"] = max(facts["dtypes"], key=facts["dtypes"].get)
    if facts.get("quantization"):
        out["quantization"] = str(facts["quantization"].get("quant_algo") or facts["quantization"].get("quant_method"))
    if "chat_template" in facts:
        out["chat_template"] = "yes" if facts["chat_template"] else "no"
    return out


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """Parameters by number format; what does not fit but was let pass."""
    made = {"number formats": table(("dtype", "parameters"), facts.get("dtypes", {}).items())}
    if facts.get("notes"):
        made["notes"] = table(("note",), [(n,) for n in facts["notes"]])
    return made


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Parameters by block."""
    from nemotron_dagster.artifacts import pictures

    blocks = facts.get("blocks") or {}
    return [pictures.bars(blocks, "parameters", folder / "parameters.png")] if len(blocks) > 1 else []


def read(path: Path) -> HFCheckpoint:
    """A handle on the model, after a check.

    Raises:
        ArtifactError: as ``validate``.
    """
    found = validate(path)
    return HFCheckpoint(path, json.loads((path / "config.json").read_text(encoding="utf-8-sig")), found)
