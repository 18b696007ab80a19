"""Where a Megatron-Bridge run starts: which weights it takes, and what is kept of a run that was killed.

The first of these that is there: a checkpoint to go on with (``checkpoint.load``, else ``checkpoint.save``), a Megatron
checkpoint (``checkpoint.pretrained_checkpoint``), a Hugging Face model (``hf_model_path``), random weights.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _runtime import chat_data, hf_checkpoint
from _runtime.payload import PayloadError

TRACKER, STATE = "latest_checkpointed_iteration.txt", "latest_train_state.pt"
MARKERS = ("run_config.yaml", "train_state.pt", "metadata.json", ".metadata")
#: Holds the number of the last iteration that is whole, while a run is under way. The tracker cannot be trusted after a
#: kill: Megatron-Bridge moves it on before it writes run_config.yaml and the tokenizer.
UNDER_WAY = ".last_whole_iteration"
SCRATCH = "tiny_llama"
GIVE_BASE = "Give the directory that holds iter_* and its tracker file; convert/hf_to_megatron makes one."
_ITERATION = re.compile(r"iter_(\d+)")


@dataclass(frozen=True)
class Start:
    """What was settled on.

    Attributes:
        resume: the parent directory of the checkpoint that training goes on with.
        pretrained: a Megatron checkpoint to start from, a parent or one iteration.
        hf: a Hugging Face model whose architecture is trained; its weights too, unless ``resume`` is set.
        scratch: ``hf`` or ``pretrained`` is to be the untrained tiny Llama, which is made below the output directory.
    """

    resume: Path | None = None
    pretrained: Path | None = None
    hf: str | None = None
    scratch: bool = False


def settle(cfg: Mapping[str, Any], save: Path, adapter: bool, must_have_weights: bool) -> Start:
    """Decide where the weights come from.

    Args:
        cfg: the step's config.
        save: the output directory, cleaned of what a kill left (see ``clean``).
        adapter: the base stays frozen and is always read from a Megatron checkpoint.
        must_have_weights: refuse to start from random ones.

    Raises:
        PayloadError: what is named is not there, or the base and the output are one directory.
    """
    checkpoint = cfg.get("checkpoint") or {}
    given = {k: checkpoint.get(k) for k in ("load", "pretrained_checkpoint")}
    load, base = (v if chat_data.given(v) else None for v in given.values())
    if load is not None and not exists(Path(load)):
        raise PayloadError(
            "checkpoint_missing",
            f"checkpoint.load={load}: no Megatron checkpoint there",
            "Mend the path, or remove it.",
        )
    if base is not None and base != SCRATCH:
        _check_base(Path(base), save)
    elif adapter and base is None:
        raise PayloadError("missing_base_checkpoint", "checkpoint.pretrained_checkpoint is not set", GIVE_BASE)
    inherit = (cfg.get("hf_load") or {}).get("inherit_save_as_load", True)
    resume = Path(load) if load else save if inherit and exists(save) else None
    pretrained = None if base in (None, SCRATCH) else Path(str(base))
    hf = None if base is not None or not chat_data.given(cfg.get("hf_model_path")) else str(cfg["hf_model_path"])
    if resume is None and pretrained is None and hf is None and base is None and must_have_weights:
        raise PayloadError(
            "missing_base_checkpoint", "neither checkpoint.pretrained_checkpoint nor hf_model_path is set", GIVE_BASE
        )
    scratch = SCRATCH in (base, hf)
    if hf is not None and not scratch:
        hf_checkpoint.check_base(hf, "hf_model_path")
    return Start(resume, pretrained, None if scratch else hf, scratch)


def _check_base(base: Path, save: Path) -> None:
    if not exists(base):
        hint = GIVE_BASE
        if (base / "config.json").is_file():
            hint = "It looks like a Hugging Face model: convert/hf_to_megatron makes a Megatron checkpoint of it."
        what = f"checkpoint.pretrained_checkpoint={base}: no Megatron checkpoint there"
        raise PayloadError("missing_base_checkpoint", what, hint)
    inner, outer = save.resolve(), base.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise PayloadError(
            "base_and_adapter_paths_mixed",
            f"checkpoint.pretrained_checkpoint={base} and checkpoint.save={save}: one lies within the other",
            "Give the base and checkpoint.save two directories.",
        )


def exists(path: Path) -> bool:
    """Is there a Megatron checkpoint, as a parent directory or as one iteration?"""
    return any((path / name).is_file() for name in (*MARKERS, TRACKER, STATE))


def iteration(path: Path) -> Path:
    """The iteration that a loader of the directory takes; the directory itself where it is one.

    Raises:
        PayloadError: its tracker names none that is there.
    """
    if any((path / name).is_file() for name in MARKERS):
        return path
    number = tracked(path)
    found = path / ("release" if number is None else f"iter_{number:07d}")
    if not found.is_dir():
        raise PayloadError(
            "missing_base_checkpoint", f"{path / TRACKER}: names {found.name}, which is not there", GIVE_BASE
        )
    return found


def tracked(parent: Path) -> int | None:
    """The iteration that the tracker names; None where there is no tracker, or it names a release."""
    try:
        return int((parent / TRACKER).read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return None


def last_whole(save: Path) -> int | None:
    """The last iteration below ``save`` that was written to its end; the same before and after ``clean``."""
    try:
        number = int((save / UNDER_WAY).read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return tracked(save)
    return number if (save / f"iter_{number:07d}").is_dir() else None


def refuse_finished(save: Path, resumed: int | None) -> None:
    """Refuse to start anew over checkpoints that no interrupted run of this step left."""
    if resumed is None and exists(save) and not (save / UNDER_WAY).is_file():
        raise PayloadError(
            "checkpoint_exists",
            f"checkpoint.save={save}: holds a finished run, which this one would not go on from",
            "Give an empty directory, or set hf_load.inherit_save_as_load=true to go on with it.",
        )


def clean(save: Path, keep: int | None) -> None:
    """Remove the iterations that came after ``keep``, all where it is None, and set the trackers back to it."""
    for path in sorted(save.glob("iter_*")):
        found = _ITERATION.fullmatch(path.name)
        if found and path.is_dir() and (keep is None or int(found[1]) > keep):
            shutil.rmtree(path)
            print(f"removed {path.name}: not written to its end, or of another start", flush=True)
    if keep is None:
        for name in (TRACKER, STATE, UNDER_WAY):
            (save / name).unlink(missing_ok=True)
    elif tracked(save) != keep:
        shutil.copyfile(save / f"iter_{keep:07d}" / "train_state.pt", save / STATE)
        _write(save / TRACKER, str(keep))


def whole(save: Path, number: int | None) -> None:
    """Note that iteration ``number`` is whole, or that none is yet."""
    _write(save / UNDER_WAY, str(-1 if number is None else number))


def done(save: Path) -> None:
    """Nothing is under way any more: the tracker says all."""
    (save / UNDER_WAY).unlink(missing_ok=True)


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
