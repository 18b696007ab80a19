"""What conversions and merges read and where they write: tiny models made on the spot, and checks before the work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from _runtime import failures, hf_checkpoint, megatron_checkpoint
from _runtime.payload import PayloadError

#: Stands for an untrained model of half a million parameters, wherever a model or checkpoint is named.
TINY = "tiny_llama"
_NEEDS = "Give the model that training started from, or one with the same config and tokenizer."


def required(cfg: dict[str, Any], key: str) -> str:
    """A path or name that must be set.

    Raises:
        PayloadError: it is not.
    """
    value = cfg.get(key)
    if not isinstance(value, str) or value in ("", "???"):
        raise PayloadError("config_invalid", f"{key} is not set", f"Give {key}=...; README.md says what it is.")
    return value


def base_model(iteration: Path, given: Any) -> str:
    """The Hugging Face model that describes an iteration: the one given, else the one that it records.

    A record names a directory as it was while the checkpoint was made. Where that has moved since, as what is published
    does, ``hf/`` beside the checkpoint is taken.

    Raises:
        PayloadError: neither is there, or it has no config and tokenizer.
    """
    recorded = megatron_checkpoint.base_of(megatron_checkpoint.run_config(iteration))
    if given and recorded and given != recorded:
        print(f"hf_model_id={given}: the checkpoint records {recorded}", flush=True)
    gone = not recorded or (recorded.startswith(("/", ".", "~")) and not Path(recorded).expanduser().is_dir())
    if not given and gone and (near := megatron_checkpoint.beside(iteration)):
        print(f"hf_model_id: {near}, which lies beside the checkpoint", flush=True)
        recorded = str(near)
    elif not given and recorded:
        print(f"hf_model_id: {recorded}, as run_config.yaml of the checkpoint records", flush=True)
    base = str(given or recorded or "")
    if not base:
        raise PayloadError(
            "missing_hf_config_or_tokenizer",
            f"hf_model_id is not set, and {iteration / 'run_config.yaml'} names no model",
            _NEEDS,
        )
    if base != TINY and hf_checkpoint.is_local(base):
        path = Path(base).expanduser()
        for name in ("config.json", "tokenizer_config.json"):
            if not (path / name).is_file():
                raise PayloadError("missing_hf_config_or_tokenizer", f"hf_model_id={base}: has no {name}", _NEEDS)
        return str(path.absolute())
    return base


@contextmanager
def hf_model(name: str) -> Iterator[tuple[str, str]]:
    """A model's directory or id, and its name; ``tiny_llama`` is made, and removed afterwards."""
    if name != TINY:
        local = hf_checkpoint.is_local(name)
        path = str(Path(name).expanduser().absolute()) if local else name
        if local:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        yield path, path
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from _runtime import tiny_model

    with tempfile.TemporaryDirectory(prefix="tiny-llama-") as made:
        tiny_model.save(made)
        yield made, TINY


def check_source(source: str, key: str, name: str = "source_not_clean_hf_checkpoint") -> None:
    """Refuse a local directory that is not a whole Hugging Face model.

    Raises:
        PayloadError: called ``name``; what is wrong with it.
    """
    try:
        hf_checkpoint.check_base(source, key)
    except PayloadError as e:
        raise PayloadError(name, e.message, e.recovery) from None
    if hf_checkpoint.is_local(source) and (wrong := hf_checkpoint.problem(Path(source).expanduser())):
        raise PayloadError(name, f"{key}: {wrong}", hf_checkpoint.GIVE_MODEL)


def refuse_overlap(
    target: Path, target_key: str, source: str, source_key: str, name: str = "output_path_overlaps_source"
) -> None:
    """Refuse to write into what is read, or around it.

    Raises:
        PayloadError: called ``name``, naming both keys.
    """
    if not hf_checkpoint.is_local(source):
        return
    mine, theirs = target.resolve(), Path(source).expanduser().resolve()
    if mine == theirs or mine in theirs.parents or theirs in mine.parents:
        raise PayloadError(
            name,
            f"{target_key}={target} overlaps {source_key}={source}",
            f"Choose a {target_key} that is neither that directory nor above or below it.",
        )


def writing(target: Path) -> AbstractContextManager[None]:
    """Tell a full disk and exhausted memory.

    Raises:
        PayloadError: ``disk_full`` or ``oom``.
    """
    return failures.told(
        target,
        disk_full="Free some space, or write elsewhere, and run again.",
        oom="Run on a machine with more memory; a conversion also on several GPUs, with distributed=true.",
    )
