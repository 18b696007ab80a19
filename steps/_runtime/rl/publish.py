"""What a run leaves for others: ``hf/``, the trained policy, and ``megatron/``, the same as a Megatron checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _runtime import hf_checkpoint, megatron_checkpoint
from _runtime.rl import conversion

HF, MEGATRON = "hf", "megatron"
_MODEL = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.py")
_WORDS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "*.tiktoken",
)


def from_hf(model: Path, words: Path, output: Path, launcher: Sequence[str] = ()) -> None:
    """Publish the weights in ``model`` with the tokenizer in ``words``; each directory appears when it is whole.

    ``launcher`` starts a Python that has Megatron-Bridge, where this one has not.
    """
    target, partial = output / HF, output / f".{HF}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for folder, patterns in ((model, _MODEL), (words, _WORDS)):
        for file in (f for pattern in patterns for f in folder.glob(pattern)):
            shutil.copy2(file, partial / file.name)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    wrong = hf_checkpoint.problem(target)
    if wrong:
        raise RuntimeError(f"the trained policy is not whole: {wrong}")
    conversion.from_hf(target, output / MEGATRON, launcher)


def from_megatron(weights: Path, output: Path, architecture: str, launcher: Sequence[str] = ()) -> None:
    """Publish a Megatron checkpoint that lies below ``output``: by a relative link, and exported beside it.

    ``architecture``: the Hugging Face model that the training started from.
    """
    tracker = weights / megatron_checkpoint.TRACKER
    if not tracker.exists():
        tracker.write_text(str(int(conversion.iteration(weights).name.removeprefix("iter_"))), encoding="utf-8")
    shutil.rmtree(output / HF, ignore_errors=True)
    conversion.to_hf(weights, output / HF, architecture, launcher)
    link = output / MEGATRON
    link.unlink(missing_ok=True)
    link.symlink_to(weights.relative_to(output))


def history(checkpoint: Path) -> list[dict[str, Any]]:
    """The log of a trainer up to its checkpoint, kept beside it."""
    said = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return list(said["log_history"])
