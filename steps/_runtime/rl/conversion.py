"""Between Megatron checkpoints and Hugging Face models, in a process of its own.

On a CPU torch is made to take the CPU for CUDA by then (``cpu_megatron``), which the trainer must not see.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from _runtime import failures, hf_checkpoint, megatron_checkpoint
from _runtime.payload import PayloadError

KEY = "policy.model_name"
_OURS = ("disk_full", "oom", "model_missing", "model_invalid", "cpu_model_too_large", "cpu_unsupported")
_REFUSED = 3
_TAIL = 3000


def iteration(path: Path) -> Path:
    """The iteration that a loader of the directory takes.

    Raises:
        PayloadError: there is none, or none is whole.
    """
    try:
        return megatron_checkpoint.iteration(str(path), KEY)
    except PayloadError as e:
        raise PayloadError("model_invalid", e.message, e.recovery) from None


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
    try:
        recorded = megatron_checkpoint.base_of(megatron_checkpoint.run_config(at))
    except PayloadError as e:
        raise PayloadError("model_invalid", e.message, e.recovery) from None
    if recorded and (not hf_checkpoint.is_local(recorded) or Path(recorded).is_dir()):
        return recorded
    what = f"names {recorded}, which is not here" if recorded else "names no Hugging Face model"
    raise PayloadError(
        "model_invalid",
        f"{KEY}={path}: {at / 'run_config.yaml'} {what}",
        "Give that model in policy.hf_model_id, or convert the checkpoint with convert/megatron_to_hf.",
    )


def to_hf(path: Path, target: Path, named: str | None = None, launcher: Sequence[str] = ()) -> None:
    """Export a Megatron checkpoint as ``target``, a Hugging Face model; a whole one that is there stays.

    Raises:
        PayloadError: it is no whole checkpoint, or the conversion failed.
    """
    if hf_checkpoint.problem(target) is None:
        return
    _convert("to_hf", iteration(path), target, [reference(path, named)], launcher)


def from_hf(path: Path, target: Path, launcher: Sequence[str] = ()) -> None:
    """Import a Hugging Face model as ``target``, a Megatron checkpoint (the parent of iter_0000000).

    ``launcher`` is the start of a command whose Python has Megatron-Bridge, where this one has not.

    Raises:
        PayloadError: the conversion failed.
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
        raise _failed(source, done)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _failed(source: Path, done: subprocess.CompletedProcess[str]) -> PayloadError:
    last = next((line.strip() for line in reversed(done.stdout.splitlines()) if line.strip()), "no output")
    if done.returncode == _REFUSED:
        name, message, recovery = json.loads(last)
        return PayloadError(name if name in _OURS else "conversion_failed", message, recovery)
    return PayloadError(
        "conversion_failed",
        f"{source}: Megatron-Bridge could not convert it (exit {done.returncode}): {last[:300]}",
        "Look at the log; an architecture may not be supported.",
    )


def _main(how: str, source: str, target: str, base: str | None = None) -> None:
    """What the process does; what a person must mend is its last line, as JSON."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1" if hf_checkpoint.is_local(base or source) else "0")
    from _runtime import megatron_convert

    try:
        with failures.told(Path(target)):
            if base is None:
                megatron_convert.import_model(source, Path(target), source, None, trust=False, key=KEY)
            else:
                megatron_convert.export_model(
                    Path(source), Path(target), base, trust=False, show_progress=False, key="policy.hf_model_id"
                )
    except PayloadError as e:
        print(json.dumps([e.name, e.message, e.recovery]), flush=True)
        sys.exit(_REFUSED)


if __name__ == "__main__":
    _main(*sys.argv[1:])
