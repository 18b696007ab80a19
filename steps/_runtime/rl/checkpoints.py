"""Checkpoints of a TRL trainer: ``checkpoint-N``, whole once ``trainer_state.json``, written last, can be read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from _runtime import hf_checkpoint

_SAVED = re.compile(r"checkpoint-(\d+)")


def latest(root: Path) -> tuple[int, Path] | None:
    """(step, directory) of the last whole checkpoint; what a kill left half written is removed."""
    whole: list[tuple[int, Path]] = []
    for path in root.glob("checkpoint-*"):
        number = _SAVED.fullmatch(path.name)
        if number and _is_whole(path, int(number[1])):
            whole.append((int(number[1]), path))
        elif path.is_dir():
            shutil.rmtree(path)
            print(f"removed {path.name}: a kill left it half written", flush=True)
    return max(whole, default=None)


def _is_whole(path: Path, step: int) -> bool:
    try:
        said = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("global_step") == step and hf_checkpoint.problem(path) is None
