"""Checkpoints of a TRL trainer: ``checkpoint-N``, whole once ``trainer_state.json``, written last, can be read."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from _runtime import hf_checkpoint
from _runtime.payload import PayloadError

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


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn a full disk and too little memory, which libraries report in many ways, into what a person can mend."""
    try:
        yield
    except PayloadError:
        raise
    except (OSError, RuntimeError, MemoryError) as e:
        said = f"{type(e).__name__}: {e}"
        if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or re.search(r"No space left|os error 28", said):
            raise PayloadError(
                "disk_full",
                f"no space is left to save a checkpoint; the last whole one is kept ({said[:200]})",
                "Free space, or lower checkpointing.keep_top_k; the same command continues from that checkpoint.",
            ) from e
        if isinstance(e, MemoryError) or re.search(r"out of memory|can't allocate memory", said, re.IGNORECASE):
            raise PayloadError(
                "oom",
                f"out of memory ({said[:200]})",
                "Lower policy.train_micro_batch_size, policy.max_total_sequence_length or the generations per prompt.",
            ) from e
        if "SafetensorError" in said and "No space" in said:
            raise PayloadError("disk_full", said[:300], "Free space and run again.") from e
        raise
