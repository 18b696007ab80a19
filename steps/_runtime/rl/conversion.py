"""Between Megatron checkpoints and Hugging Face models, with Megatron-Bridge, in a process of its own.

On a CPU torch is made to take the CPU for CUDA by then (``cpu_megatron``), which the trainer must not see.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _runtime import hf_checkpoint
from _runtime.payload import PayloadError

MARKERS = ("run_config.yaml", "train_state.pt", "metadata.json", ".metadata")
TRACKER = "latest_checkpointed_iteration.txt"
_TAIL = 3000


def is_checkpoint(path: Path) -> bool:
    """Is the directory a Megatron checkpoint: the parent of ``iter_*``, or one of them?"""
    return path.is_dir() and ((path / TRACKER).is_file() or bool(_iterations(path)) or _is_iteration(path))


def _is_iteration(path: Path) -> bool:
    return any((path / name).is_file() for name in MARKERS)


def _iterations(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("iter_*") if p.is_dir() and p.name[5:].isdigit() and _is_iteration(p))


def iteration(path: Path) -> Path:
    """The iteration that a loader of the directory takes.

    Raises:
        PayloadError: there is none.
    """
    if _is_iteration(path):
        return path
    tracker = path / TRACKER
    said = tracker.read_text(encoding="utf-8").strip() if tracker.is_file() else ""
    found = [path / f"iter_{int(said):07d}"] if said.isdigit() else _iterations(path)
    if not found or not _is_iteration(found[-1]):
        raise PayloadError("model_invalid", f"{path}: holds no whole iteration", "Save the checkpoint again.")
    return found[-1]


def reference(path: Path, named: str | None = None) -> str:
    """The Hugging Face model whose architecture and tokenizer a Megatron checkpoint has.

    That is ``named``, ``hf/`` beside the checkpoint, or what its run_config.yaml records.

    Raises:
        PayloadError: none of these is there.
    """
    if named:
        return named
    at = iteration(path)
    parent = at.parent if at != path or at.name.startswith("iter_") else at
    if hf_checkpoint.problem(parent.parent / "hf") is None:
        return str(parent.parent / "hf")
    recorded = _recorded(at / "run_config.yaml")
    if recorded and (not recorded.startswith(("/", ".", "~")) or Path(recorded).is_dir()):
        return recorded
    what = f"names {recorded}, which is not here" if recorded else "names no Hugging Face model"
    raise PayloadError(
        "model_invalid",
        f"policy.model_name={path}: {at / 'run_config.yaml'} {what}",
        "Give that model in policy.hf_model_id, or convert the checkpoint with convert/megatron_to_hf.",
    )


def _recorded(file: Path) -> str | None:
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        said = yaml.load(text, Loader=_loader())
    except (OSError, yaml.YAMLError):
        return None
    model = said.get("model") if isinstance(said, dict) else None
    if not isinstance(model, dict):
        return None
    extra = model.get("extra_checkpoint_metadata")
    found = model.get("hf_model_id") or (extra.get("hf_model_id") if isinstance(extra, dict) else None)
    return str(found) if found else None


def _loader() -> Any:
    """Plain YAML in which the tags of Python objects, which Megatron-Bridge writes, mean nothing."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def nothing(loader: Any, _: str, node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node)

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", nothing)
    return Loader


def to_hf(path: Path, target: Path, named: str | None = None, launcher: Sequence[str] = ()) -> None:
    """Export a Megatron checkpoint as ``target``, a Hugging Face model; a whole one that is there stays.

    Raises:
        PayloadError: it is no whole checkpoint, or the conversion failed.
    """
    if hf_checkpoint.problem(target) is None:
        return
    _convert("to_hf", iteration(path), target, [reference(path, named)], launcher)
    wrong = hf_checkpoint.problem(target)
    if wrong:
        raise RuntimeError(f"the exported policy is not whole: {wrong}")


def from_hf(path: Path, target: Path, launcher: Sequence[str] = ()) -> None:
    """Import a Hugging Face model as ``target``, a Megatron checkpoint (the parent of iter_0000000).

    ``launcher`` is the start of a command whose Python has Megatron-Bridge, where this one has not.
    """
    _convert("from_hf", path, target, [], launcher)


def _convert(how: str, source: Path, target: Path, more: list[str], launcher: Sequence[str]) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = [*(launcher or [sys.executable]), "-P", "-m", __name__, how, str(source), str(partial), *more]
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        print(done.stdout[-_TAIL:], file=sys.stderr, flush=True)
        disk = "No space left" in done.stdout
        raise PayloadError(
            "disk_full" if disk else "conversion_failed",
            f"{source}: Megatron-Bridge could not convert it (exit {done.returncode}): {_last(done.stdout)}",
            "Free space and run again." if disk else "Look at the log; an architecture may not be supported.",
        )
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _last(output: str) -> str:
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no output")[:300]


def _main(how: str, source: str, target: str, base: str | None = None) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1" if hf_checkpoint.is_local(base or source) else "0")
    from _runtime import cpu_megatron

    cpu_megatron.enable()
    import torch
    from megatron.bridge import AutoBridge

    if how == "to_hf":
        bridge = AutoBridge.from_hf_pretrained(base)
        bridge.export_ckpt(source, target, show_progress=False)
    else:
        from transformers import AutoConfig

        dtype = getattr(AutoConfig.from_pretrained(source), "dtype", None) or torch.float32
        AutoBridge.import_ckpt(source, target, torch_dtype=dtype)


if __name__ == "__main__":
    _main(*sys.argv[1:])
