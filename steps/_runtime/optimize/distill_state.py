"""What a distillation continues from after a kill: whole checkpoints of the student, its optimizer and its metrics."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from _runtime.payload import PayloadError

KEEP = 2
_NAME = re.compile(r"step_(\d+)\.pt")


@dataclass(frozen=True)
class State:
    """``settings`` are those that the order of samples and the course of the learning rate depend on."""

    step: int
    student: dict[str, Any]
    optimizer: dict[str, Any]
    metrics: list[dict[str, float]]
    settings: dict[str, Any]


def save(folder: Path, state: State) -> None:
    """Write one checkpoint, whole or not at all, and forget all but the last two."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".step.{os.getpid()}"
    try:
        torch.save(vars(state), partial)
        partial.rename(folder / f"step_{state.step:07d}.pt")
    finally:
        partial.unlink(missing_ok=True)
    for old in _saved(folder)[:-KEEP]:
        old.unlink()


def load(folder: Path, settings: dict[str, Any]) -> State | None:
    """The last checkpoint that can be read, or None.

    Raises:
        PayloadError: it was made with other settings.
    """
    import torch

    for left in folder.glob(".step.*"):
        left.unlink()  # a kill cut it short
    for file in reversed(_saved(folder)):
        try:
            state = State(**torch.load(file, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, UnpicklingError) as e:
            print(f"{file}: cannot be read ({' '.join(str(e).split())[:200]}); the one before it is taken", flush=True)
            continue
        changed = [k for k in settings if state.settings.get(k) != settings[k]]
        if changed:
            raise PayloadError(
                "checkpoint_mismatch",
                f"args.output_dir: {file} was made with another {', '.join(changed)}",
                "Give an empty directory, or the settings that its checkpoints were made with.",
            )
        return state
    return None


def forget(folder: Path) -> None:
    """Remove the checkpoints: what they were for is done."""
    shutil.rmtree(folder, ignore_errors=True)


def _saved(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*.pt") if _NAME.fullmatch(p.name))
