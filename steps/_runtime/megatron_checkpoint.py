"""Megatron checkpoints without Megatron: which iteration a directory means, and what its run_config.yaml records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from _runtime.payload import PayloadError

TRACKER = "latest_checkpointed_iteration.txt"
MARKERS = ("run_config.yaml", "train_state.pt", "metadata.json", ".metadata")
_NUMBERED = re.compile(r"iter_(\d+)")


def is_megatron(path: Path) -> bool:
    """Is the directory an iteration, or the parent of some?"""
    return path.is_dir() and (_is_iteration(path) or (path / TRACKER).is_file() or any(path.glob("iter_*")))


def iteration(given: str, key: str) -> Path:
    """The iteration that ``given`` is, or the one that a loader takes of its parent, else the newest that is whole.

    Raises:
        PayloadError: there is none, or it was not saved to its end.
    """
    path = Path(given).expanduser()
    if not path.is_dir():
        raise PayloadError(
            "bad_megatron_checkpoint_path", f"{key}={given}: no such directory", "Name a Megatron checkpoint."
        )
    if _is_iteration(path):
        if not _is_whole(path):
            raise _unfinished(path, key)
        return path
    found = sorted((int(m[1]), p) for p in path.iterdir() if (m := _NUMBERED.fullmatch(p.name)))
    tracked = _tracked(path)
    whole = [p for _, p in found if _is_whole(p)]
    chosen = tracked if tracked and _is_whole(tracked) else (whole or [None])[-1]
    if chosen is None:
        if found or tracked:
            raise _unfinished(tracked or found[-1][1], key)
        hint = "It is a Hugging Face model." if (path / "config.json").is_file() else "It holds no iter_* directory."
        raise PayloadError(
            "bad_megatron_checkpoint_path",
            f"{key}={given}: no Megatron checkpoint",
            f"{hint} Name an iter_* directory or the directory above it.",
        )
    print(f"{key}={given}: the newest whole iteration is {chosen.name}", flush=True)
    return chosen


def _is_iteration(path: Path) -> bool:
    return any((path / name).is_file() for name in MARKERS)


def _is_whole(path: Path) -> bool:
    """``.metadata`` comes after the shards, metadata.json after both."""
    return (path / ".metadata").is_file() and (path / "metadata.json").is_file() and any(path.glob("*.distcp"))


def _tracked(path: Path) -> Path | None:
    try:
        text = (path / TRACKER).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    if text == "release":
        return path / text
    return path / f"iter_{int(text):07d}" if text.isdecimal() else None


def _unfinished(path: Path, key: str) -> PayloadError:
    return PayloadError(
        "incomplete_or_async_checkpoint",
        f"{key}: {path} was not saved to its end (it needs .metadata, metadata.json and *.distcp)",
        "Wait until an asynchronous save has ended, or name an earlier iter_* directory.",
    )


def check_shards(path: Path, key: str) -> None:
    """Refuse an iteration of which a shard is missing or shorter than its metadata says.

    Raises:
        PayloadError: naming the shard.
    """
    from torch.distributed.checkpoint import FileSystemReader

    try:
        stored = FileSystemReader(path).read_metadata().storage_data or {}
    except Exception as e:  # whatever unpickling makes of bytes that are no pickle
        raise _damaged(path / ".metadata", key, " ".join(str(e).split())) from None
    ends: dict[str, int] = {}
    for place in stored.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in sorted(ends.items()):
        size = (path / name).stat().st_size if (path / name).is_file() else -1
        if size < end:
            told = "is missing" if size < 0 else f"has {size:,} of {end:,} bytes"
            raise _damaged(path / name, key, told)


def _damaged(file: Path, key: str, told: str) -> PayloadError:
    return PayloadError(
        "incomplete_or_async_checkpoint", f"{key}: {file}: {told}", "Copy the iteration again, or use an earlier one."
    )


def run_config(path: Path) -> dict[str, Any]:
    """The run_config.yaml of an iteration; empty where it has none.

    Objects of Python that Megatron-Bridge writes into it become the plain values that they hold.

    Raises:
        PayloadError: it is not YAML.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        pass

    def plain(loader: Any, suffix: str, node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node)

    Plain.add_multi_constructor("tag:yaml.org,2002:python/", plain)
    file = path / "run_config.yaml"
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader=Plain) if file.is_file() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        reason = " ".join(str(e).split())
        raise PayloadError("bad_megatron_checkpoint_path", f"{file}: {reason}", "Copy the iteration again.") from None
    return found if isinstance(found, dict) else {}


def base_of(config: dict[str, Any]) -> str | None:
    """The Hugging Face model, an id or a directory, that a run_config.yaml names as the one it started from."""
    model = config.get("model")
    if not isinstance(model, dict):
        return None
    extra = model.get("extra_checkpoint_metadata")
    named = model.get("hf_model_id") or (extra.get("hf_model_id") if isinstance(extra, dict) else None)
    return named if isinstance(named, str) and named else None


def beside(iteration: Path) -> Path | None:
    """The same model for Hugging Face, ``hf/``, which reinforcement learning and distillation leave beside it."""
    parent = iteration.parent if _NUMBERED.fullmatch(iteration.name) else iteration
    found = parent.parent / "hf"
    return found if (found / "config.json").is_file() else None
