"""What the steps of model optimization check before anything heavy is imported."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _runtime import hf_checkpoint, modelopt_scripts
from _runtime.payload import PayloadError

SCRATCH = "tiny_llama"


def given(args: Mapping[str, Any], key: str, error: str, fix: str) -> str:
    """The text of a setting that must be there.

    Raises:
        PayloadError: it is not.
    """
    value = args.get(key)
    if value in (None, "", "???"):
        raise PayloadError(error, f"args.{key} is not set", fix)
    return str(value)


def model(args: Mapping[str, Any], key: str) -> str:
    """The model that a setting names; a local one must look whole.

    Raises:
        PayloadError: none is named, or the directory holds none.
    """
    named = given(args, key, "model_missing", hf_checkpoint.GIVE_MODEL)
    if named != SCRATCH:
        hf_checkpoint.check_base(named, f"args.{key}")
    return named


def apart(output: str, output_key: str, sources: Mapping[str, str], error: str) -> None:
    """Refuse an output directory that is a source, lies in one, or holds one; ``sources`` are key -> model.

    Raises:
        PayloadError: ``error``, naming both.
    """
    target = Path(output).expanduser().resolve()
    for key, source in sources.items():
        if not hf_checkpoint.is_local(source):
            continue
        path = Path(source).expanduser().resolve()
        if target == path or path in target.parents or target in path.parents:
            raise PayloadError(
                error,
                f"args.{output_key}={output}: overlaps args.{key}={source}",
                f"Set args.{output_key} to a directory away from args.{key}.",
            )


def world_divides(cfg: Mapping[str, Any], sizes: Mapping[str, int], error: str) -> None:
    """Refuse a number of processes that the product of the parallel sizes does not divide.

    Raises:
        PayloadError: ``error``, with the numbers.
    """
    world = modelopt_scripts.processes(cfg)
    need = 1
    for size in sizes.values():
        need *= size
    if world % need:
        product = " * ".join(f"args.{k}={v}" for k, v in sizes.items())
        raise PayloadError(
            error,
            f"{world} processes: not a multiple of {product} = {need}",
            "Change torchrun.nproc_per_node, the number of nodes, or the parallel sizes.",
        )


def one_process(cfg: Mapping[str, Any]) -> None:
    """``backend: inprocess`` runs in one process.

    Raises:
        PayloadError: a launcher started several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PayloadError(
            "config_invalid",
            f"backend=inprocess was started in {os.environ['WORLD_SIZE']} processes; it runs in one",
            "Set run.env.nproc_per_node=1 and run.env.nodes=1, or take backend=script.",
        )


def known(args: Mapping[str, Any], names: frozenset[str]) -> None:
    """``backend: inprocess`` refuses what it would have to ignore; null and false are nothing.

    Raises:
        PayloadError: naming the key.
    """
    for key, value in args.items():
        if key not in names and value not in (None, False):
            raise PayloadError(
                "config_invalid",
                f"args.{key}={value}: backend=inprocess does not know it; it knows {', '.join(sorted(names))}",
                "Remove it, or take backend=script.",
            )


def vocabulary(model_name: str) -> dict[str, int] | None:
    """Token -> id of a local model's tokenizer.json, or None where there is none to read."""
    try:
        data = json.loads((Path(model_name).expanduser() / "tokenizer.json").read_text(encoding="utf-8"))
        listed = data["model"]["vocab"]
        words = listed if isinstance(listed, dict) else {str(token): n for n, (token, _) in enumerate(listed)}
        return {**words, **{t["content"]: t["id"] for t in data.get("added_tokens", [])}}
    except (OSError, ValueError, KeyError, TypeError):
        return None
