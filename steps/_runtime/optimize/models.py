"""Loads the model that is optimized, and what is measured on it before and after."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _runtime import chat_data, cpu, failures, hf_checkpoint, tiny_model
from _runtime.payload import PayloadError

ROWS = "Name a .jsonl file of chat rows (`messages`) or texts (`text`), a directory of them, or a glob."


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode and float32, its tokenizer, where it came from, its device, its own number format."""

    model: Any
    tokenizer: Any
    path: str
    scratch: bool
    device: str
    dtype: Any


def load(name: str, key: str, made: Path, seed: int, trust: bool = False, **sizes: Any) -> Loaded:
    """Load a model in float32, on the GPU where there is one; ``tiny_llama`` is made below ``made`` first.

    Raises:
        PayloadError: no model, a damaged one, or one that is too large for a CPU.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    scratch = name == "tiny_llama"
    if scratch:
        tiny_model.save(made, seed, **sizes)
        name = str(made)
    tokenizer = hf_checkpoint.load_tokenizer(name, f"args.{key}", trust)
    device = "cuda" if cpu.has_cuda() else "cpu"
    if device == "cpu":
        cpu.choose_threads(cpu.refuse_large(name, trust))
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, trust_remote_code=trust)
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        reason = " ".join(str(e).split())[:300]
        raise PayloadError("model_invalid", f"args.{key}={name}: {reason}", hf_checkpoint.GIVE_MODEL) from None
    dtype = getattr(AutoConfig.from_pretrained(name, trust_remote_code=trust), "dtype", None) or torch.float32
    return Loaded(model.to(device).eval(), tokenizer, name, scratch, device, dtype)


def rows(named: Any, key: str, count: int) -> list[dict[str, Any]]:
    """The first ``count`` rows of JSONL data: conversations (``messages``) or texts (``text``).

    Raises:
        PayloadError: no data, no rows, or a row that is neither.
    """
    if not chat_data.given(named):
        raise PayloadError("calibration_missing", f"args.{key} is not set", ROWS)
    files = chat_data.find(named, f"args.{key}")
    if isinstance(files, str):
        raise PayloadError("calibration_missing", f"args.{key}={named}: no such file or directory", ROWS)
    found: list[dict[str, Any]] = []
    for place, row in itertools.islice((r for file in files for r in chat_data.rows(file)), count):
        is_text = isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"].strip()
        wrong = None if is_text else chat_data.fault(row) or (None if row.get("messages") else "no `messages`")
        if wrong:
            raise PayloadError("calibration_invalid", f"args.{key}: {place}: {wrong}", ROWS)
        found.append(row)
    if not found:
        raise PayloadError("calibration_missing", f"args.{key}={named}: no rows", ROWS)
    return found


def text(row: dict[str, Any], tokenizer: Any) -> str:
    """A row as text: a conversation goes through the chat template, where there is one."""
    if row.get("text"):
        return str(row["text"])
    if hf_checkpoint.template_text(tokenizer):
        return str(tokenizer.apply_chat_template(row["messages"], tokenize=False))
    return "\n".join(str(turn.get("content") or "") for turn in row["messages"])


def blocks(found: list[dict[str, Any]], loaded: Loaded, length: int) -> list[Any]:
    """The rows' tokens one after the other, cut into batches of shape (up to 8, length); a short rest is one block.

    Packed, so that no padding token counts as calibration data.
    """
    import torch

    words = loaded.tokenizer
    ids = [i for row in found for i in words(text(row, words), add_special_tokens=False)["input_ids"]]
    longest = getattr(loaded.model.config, "max_position_embeddings", None) or length
    length = max(2, min(length, longest, len(ids)))
    whole = torch.tensor(ids[: len(ids) // length * length], device=loaded.device).view(-1, length)
    return list(whole.split(8))


def loss(model: Any, batches: list[Any]) -> float:
    """Mean cross-entropy of the next token, in nats."""
    import torch

    with torch.no_grad():
        per = [(float(model(input_ids=b, labels=b).loss), len(b)) for b in batches]
    return sum(value * n for value, n in per) / sum(n for _, n in per)


def logits(model: Any, batch: Any) -> Any:
    """Logits of one batch, float32: (rows, tokens, vocabulary)."""
    import torch

    with torch.no_grad():
        return model(input_ids=batch).logits.float()


def relative_error(found: Any, reference: Any) -> float:
    """Norm of the difference over the norm of the reference."""
    return float((found - reference).norm() / reference.norm())


def saving(directory: Path) -> AbstractContextManager[None]:
    """Turn a full disk or full memory while a result is written into a message.

    Raises:
        PayloadError: disk_full or oom.
    """
    return failures.told(
        directory,
        disk_full="Free space there, or name another disk.",
        oom="Take a smaller model, or a machine with more memory.",
    )
