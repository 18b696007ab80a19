"""Megatron checkpoints: the parent directory, its ``iter_*`` directories, and what run_config.yaml says of a run."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types import _dcp, _tokenizer
from nemotron_dagster.artifacts.types._documents import parse_json, text_of, whole
from nemotron_dagster.artifacts.types._files import UNFINISHED, why
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.errors import ArtifactError
from nemotron_dagster.files import printable

#: Any of these makes a directory an iteration.
MARKERS = ("run_config.yaml", "train_state.pt", "metadata.json", ".metadata")
TRACKER, STATE = "latest_checkpointed_iteration.txt", "latest_train_state.pt"
_ITERATION = re.compile(r"iter_(\d{1,12})")
_SAVE = "Save the checkpoint again, or use an earlier iteration."
_PARALLEL = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
    "cp": "context_parallel_size",
}


@dataclass(frozen=True)
class Layout:
    """``kind`` is ``parent`` or ``iteration``; ``latest`` is the iteration that loaders take."""

    kind: str
    latest: Path
    iterations: tuple[str, ...]
    incomplete: tuple[str, ...]


@dataclass(frozen=True)
class Iteration:
    """What one iteration holds; ``peft`` is that section of its run_config.yaml, of an adapter."""

    ranks: int
    bytes: int
    base: str | None = None
    pretrained: str | None = None
    sequence_length: int | None = None
    vocab_size: int | None = None
    parallel: dict[str, int] = field(default_factory=dict)
    peft: dict[str, Any] | None = None
    tokenizer: str | None = None
    chat_template: str | None = None


def is_iteration(path: Path) -> bool:
    """Has the directory one of the markers of an iteration?"""
    return any((path / name).is_file() for name in MARKERS)


def is_megatron(path: Path) -> bool:
    """Is the directory a parent or an iteration, however incomplete?"""
    return path.is_dir() and (
        is_iteration(path) or (path / TRACKER).is_file() or (path / STATE).is_file() or bool(_iterations(path))
    )


def layout(path: Path, problems: Problems) -> Layout:
    """Tell a parent directory from an iteration, and find the iteration that a loader of it would take.

    Raises:
        ArtifactError: neither, or no iteration to load.
    """
    if not path.is_dir():
        raise ArtifactError(why(path) if not path.exists() else f"{path}: is not a directory. Name a checkpoint's.")
    if is_iteration(path):
        return Layout("iteration", path, (path.name,), ())
    found = _iterations(path)
    tracked = _tracked(path, problems)
    if tracked is None and not found:
        problems.check()
        hint = _hint(path)
        raise ArtifactError(f"{path}: is no Megatron checkpoint (no iter_* directory, no {TRACKER}). {hint}")
    if tracked is None:
        problems.check()
        raise ArtifactError(
            f"{path}: has {found[-1].name}, but no {TRACKER}, so a loader would not find it. "
            f"Name {found[-1]}, or write the number of the iteration into that file."
        )
    if not tracked.is_dir():
        there = ", ".join(p.name for p in found[-5:]) or "none"
        problems.add(f"{path / TRACKER}: names {tracked.name}, which is not there ({there}). Name one that is.")
    elif not is_iteration(tracked):
        problems.add(f"{tracked}: holds none of {', '.join(MARKERS)}, so it is no iteration. {_SAVE}")
    problems.check()
    incomplete = tuple(p.name for p in found if p != tracked and not is_iteration(p))
    names = tuple(p.name for p in found) or (tracked.name,)
    return Layout("parent", tracked, names, incomplete)


def _iterations(path: Path) -> list[Path]:
    numbered = [(int(m[1]), p) for p in path.iterdir() if (m := _ITERATION.fullmatch(p.name)) and p.is_dir()]
    return [p for _, p in sorted(numbered)]


def _tracked(path: Path, problems: Problems) -> Path | None:
    if os.path.lexists(path / STATE):
        _dcp.check_archive(path / STATE, problems)
    if not os.path.lexists(path / TRACKER):
        return None
    text = text_of(path / TRACKER, problems, _SAVE, 1000)
    if text is None:
        return None
    name = text.strip()
    if name == "release":
        return path / "release"
    if not re.fullmatch(r"[0-9]{1,12}", name):
        problems.add(f"{path / TRACKER}: holds {printable(name, 40)!r}, neither a number nor `release`. Mend it.")
        return None
    return path / f"iter_{int(name):07d}"


def _hint(path: Path) -> str:
    if (path / "config.json").is_file():
        return "It looks like a Hugging Face model: convert/hf_to_megatron imports it."
    return "Name the directory that training saved to."


def check_iteration(folder: Path, problems: Problems) -> Iteration:
    """Check one iteration; what is wrong is added to ``problems``."""
    for file in sorted(folder.iterdir()):
        if file.name.endswith((*UNFINISHED, ".tmp")):
            problems.add(f"{file}: looks like a copy that has not ended. Let it end, or delete it.")
    common = _backend(folder, problems)
    ranks, size = _dcp.check_shards(folder, problems)
    for name, needed in (("common.pt", common), ("train_state.pt", False)):
        if os.path.lexists(folder / name):
            _dcp.check_archive(folder / name, problems)
        elif needed:
            problems.add(f"{folder}: has no {name}, which metadata.json calls for. {_SAVE}")
    made: dict[str, Any] = {}
    if os.path.lexists(folder / "run_config.yaml"):
        made = _run_config(folder / "run_config.yaml", problems)
    if (folder / "tokenizer").is_dir():
        found = _tokenizer.read_tokenizer(folder / "tokenizer", problems)
        made["tokenizer"] = found and found.fingerprint
        made["chat_template"] = _tokenizer.fingerprint(_tokenizer.read_template(folder / "tokenizer", problems))
    return Iteration(ranks, size, **made)


def _backend(folder: Path, problems: Problems) -> bool:
    """Must there be a common.pt? Newer versions keep its content in the shards."""
    file = folder / "metadata.json"
    if not os.path.lexists(file):
        return False
    text = text_of(file, problems, _SAVE)
    data = None if text is None else parse_json(text, file, problems, _SAVE)
    if data is not None and data.get("sharded_backend") != "torch_dist":
        backend = printable(data.get("sharded_backend"), 40)
        problems.add(f"{file}: sharded_backend is {backend!r}. Save with ckpt_format=torch_dist.")
    return bool(data) and data is not None and data.get("common_backend") == "torch"


def _run_config(file: Path, problems: Problems) -> dict[str, Any]:
    from nemotron_dagster.config.yaml_data import YamlProblem, parse

    text = text_of(file, problems, _SAVE)
    if text is None:
        return {}
    try:
        # A set is a mapping to null, and a tuple a list: the tags that Megatron-Bridge's writer leaves
        data, _ = parse(re.sub(r"!!(set|python/tuple)(?=\s|$)", "", text))
    except YamlProblem as e:
        problems.add(f"{file}:{e.line}:{e.column}: is not valid YAML: {e}. {_SAVE}")
        return {}
    if not isinstance(data, dict):
        problems.add(f"{file}: is not a YAML mapping. {_SAVE}")
        return {}
    model, checkpoint, peft = (_section(data, name) for name in ("model", "checkpoint", "peft"))
    extra = _section(model, "extra_checkpoint_metadata")
    return {
        "base": _text(model.get("hf_model_id")) or _text(extra.get("hf_model_id")),
        "pretrained": _text(checkpoint.get("pretrained_checkpoint")),
        "sequence_length": whole(model, "seq_length"),
        "vocab_size": whole(model, "vocab_size"),
        "parallel": {short: n for short, key in _PARALLEL.items() if (n := whole(model, key))},
        "peft": peft or None,
    }


def _section(data: dict[str, Any], name: str) -> dict[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _text(found: Any) -> str | None:
    return printable(found, 500) if isinstance(found, str) and found else None
