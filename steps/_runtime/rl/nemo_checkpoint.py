"""What NeMo-RL saved: ``step_N/policy/weights`` in one of three formats, and how each becomes our artifact."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _runtime import hf_checkpoint, megatron_checkpoint
from _runtime.payload import PayloadError
from _runtime.rl import publish as published
from _runtime.rl.settings import at, put

_STEP = re.compile(r"step_(\d+)")
_TO_HF = "examples/converters/convert_dcp_to_hf.py"


def ask_for_hf(cfg: dict[str, Any]) -> bool:
    """Have DTensor policies saved as whole Hugging Face models as well; returns whether that was not asked for."""
    if at(cfg, "policy.megatron_cfg.enabled", False) or at(cfg, "checkpointing.save_consolidated", False):
        return False
    put(cfg, "checkpointing.save_consolidated", True)
    put(cfg, "checkpointing.model_save_format", "safetensors")
    return True


def latest(output: Path) -> tuple[int, Path] | None:
    """(step, directory) of the last checkpoint; NeMo-RL renames it from ``tmp_step_N`` when it is whole."""
    found = [(int(m[1]), p) for p in output.glob("step_*") if (m := _STEP.fullmatch(p.name)) and p.is_dir()]
    return max(found, default=None)


def publish(step: Path, output: Path, start: str, workdir: Path, launcher: Sequence[str]) -> None:
    """Leave ``hf/`` and ``megatron/`` of a checkpoint; ``start`` is the model that training began with.

    Raises:
        PayloadError: the weights are in none of the formats.
    """
    weights, words = step / "policy" / "weights", step / "policy" / "tokenizer"
    if megatron_checkpoint.is_megatron(weights):
        published.from_megatron(weights, output, start, launcher)
        return
    whole = [
        p for p in (weights / "model" / "consolidated", weights / "model", weights) if (p / "config.json").is_file()
    ]
    if whole:
        published.from_hf(whole[0], words if words.is_dir() else whole[0], output, launcher)
        return
    converter = workdir / _TO_HF
    if not weights.is_dir() or not converter.is_file():
        raise PayloadError("model_invalid", f"{weights}: holds no policy that can be read", "Look at NeMo-RL's log.")
    exported = output / ".exported"
    command = [sys.executable, str(converter), "--config", str(step / "config.yaml"), "--dcp-ckpt-path", str(weights)]
    subprocess.run([*command, "--hf-ckpt-path", str(exported)], cwd=workdir, check=True)
    own = words if words.is_dir() else Path(start) if hf_checkpoint.is_local(start) else exported
    published.from_hf(exported, own, output, launcher)
