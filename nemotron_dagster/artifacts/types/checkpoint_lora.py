"""``checkpoint_lora``: a LoRA adapter, as Hugging Face PEFT or as Megatron-Bridge saves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.markdown import table
from nemotron_dagster.artifacts.types import _groups, _megatron, _peft
from nemotron_dagster.artifacts.types._documents import whole
from nemotron_dagster.artifacts.types._files import why
from nemotron_dagster.artifacts.types._groups import columns
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.errors import ArtifactError

__all__ = ["LAYOUT", "LoraAdapter", "columns", "draw", "figures", "read", "tables", "validate"]

LAYOUT = (
    "A directory with adapter_config.json and adapter_model.safetensors, or one above it with epoch_*_step_*/model "
    "directories, of which the last save counts; or a Megatron-Bridge checkpoint whose run_config.yaml has a peft "
    "section."
)
_NAMES = 30


@dataclass(frozen=True)
class LoraAdapter:
    """A handle: ``path`` is the adapter's own directory, ``base`` the model it belongs to."""

    path: Path
    layout: str
    base: str
    facts: Mapping[str, Any]


def validate(path: Path) -> dict[str, Any]:
    """Check that the adapter is whole and names its base.

    Returns:
        Facts: layout (peft or megatron), adapter (its directory, relative to ``path``), base, rank, alpha, targets,
        bytes, tokenizer_fingerprint, chat_template_fingerprint; of peft also parameters, dtypes, pairs (modules with
        both matrices), tensors and blocks; of megatron kind, iterations_total, ranks and pretrained (the base
        checkpoint's directory).

    Raises:
        ArtifactError: naming the file or tensor of what is wrong.
    """
    if not path.is_dir():
        raise ArtifactError(why(path) if not path.exists() else f"{path}: is not a directory. Name an adapter's.")
    folder = _peft.find(path)
    if folder is not None:
        return _of_peft(path, folder)
    if _megatron.is_megatron(path):
        return _of_megatron(path)
    raise ArtifactError(
        f"{path}: holds no adapter ({_peft.CONFIG}, or a Megatron checkpoint). Name the directory that training saved."
    )


def _of_peft(path: Path, folder: Path) -> dict[str, Any]:
    problems = Problems()
    made = _peft.check(folder, problems)
    problems.check()
    if made is None:
        raise ArtifactError(f"{folder}: is no whole adapter. Save it again.")
    dtypes: dict[str, int] = {}
    for t in made.tensors:
        dtypes[t.dtype] = dtypes.get(t.dtype, 0) + t.elements
    return {
        "layout": "peft",
        "adapter": folder.relative_to(path).as_posix(),
        "base": made.base,
        "rank": made.rank,
        "alpha": made.alpha,
        "targets": list(made.targets[:_NAMES]),
        "parameters": sum(dtypes.values()),
        "dtypes": dtypes,
        "pairs": made.pairs,
        "bytes": made.bytes,
        "tokenizer_fingerprint": made.tokenizer,
        "chat_template_fingerprint": made.chat_template,
        "tensors": _groups.groups(made.tensors),
        "blocks": _groups.blocks(made.tensors),
    }


def _of_megatron(path: Path) -> dict[str, Any]:
    problems = Problems()
    found = _megatron.layout(path, problems)
    made = _megatron.check_iteration(found.latest, problems)
    config = found.latest / "run_config.yaml"
    if made.peft is None:
        problems.add(f"{config}: has no peft section, so this is a whole model. Use it as checkpoint_megatron.")
    elif not (made.base or made.pretrained):
        problems.add(
            f"{config}: names no base model. Set model.hf_model_id, or checkpoint.pretrained_checkpoint, to the one "
            "that the adapter was trained on."
        )
    problems.check()
    peft = made.peft or {}
    alpha, targets = peft.get("alpha"), peft.get("target_modules")
    return {
        "layout": "megatron",
        "adapter": found.latest.relative_to(path).as_posix(),
        "kind": found.kind,
        "iterations_total": len(found.iterations),
        "base": made.base or made.pretrained,
        "pretrained": made.pretrained,
        "rank": whole(peft, "dim"),
        "alpha": alpha if isinstance(alpha, int | float) and isfinite(alpha) else None,
        "targets": [t[:100] for t in targets if isinstance(t, str)][:_NAMES] if isinstance(targets, list) else [],
        "ranks": made.ranks,
        "bytes": made.bytes,
        "sequence_length": made.sequence_length,
        "tokenizer_fingerprint": made.tokenizer,
        "chat_template_fingerprint": made.chat_template,
    }


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """The base, the rank, how many parameters, and which save."""
    keys = ("base", "rank", "alpha", "parameters", "pairs", "layout", "adapter")
    return {k: facts[k] for k in keys if isinstance(facts.get(k), int | float | str)}


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """The modules that are adapted."""
    return {"adapted modules": table(("module",), [(t,) for t in facts["targets"]])} if facts.get("targets") else {}


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Parameters by block."""
    from nemotron_dagster.artifacts import pictures

    blocks = facts.get("blocks") or {}
    return [pictures.bars(blocks, "parameters", folder / "parameters.png")] if len(blocks) > 1 else []


def read(path: Path) -> LoraAdapter:
    """A handle on the adapter, after a check.

    Raises:
        ArtifactError: as ``validate``.
    """
    facts = validate(path)
    return LoraAdapter(path / facts["adapter"], facts["layout"], facts["base"], facts)
