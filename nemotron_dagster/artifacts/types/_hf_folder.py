"""Which weight files of a Hugging Face model directory belong together, and what cannot be meant."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nemotron_dagster.artifacts.types import _safetensors
from nemotron_dagster.artifacts.types._documents import read_json
from nemotron_dagster.artifacts.types._files import UNFINISHED, why
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._safetensors import Header, Tensor
from nemotron_dagster.errors import ArtifactError
from nemotron_dagster.files import printable

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
_AGAIN = "Save or copy the model again."
_BUSY = (*UNFINISHED, ".tmp", ".aria2", ".safetensors.lock", ".json.lock", ".model.lock")


@dataclass(frozen=True)
class Weights:
    """``unused`` are safetensors files that no index names."""

    headers: tuple[Header, ...]
    unused: tuple[str, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """Of all shards, in the order of the files."""
        return [t for header in self.headers for t in header.tensors]


def entries(path: Path, problems: Problems) -> list[str]:
    """The names in the directory; dangling links and unfinished copies are added to ``problems``.

    Raises:
        ArtifactError: no directory, or one that cannot be listed.
    """
    try:
        if not path.is_dir():
            gone = why(path) if not path.exists() else f"{path}: is not a directory. Name a Hugging Face model's."
            raise ArtifactError(gone)
        names = sorted(p.name for p in path.iterdir())
    except (OSError, ValueError) as e:
        raise ArtifactError(f"{path}: cannot be listed ({e}). Check the path and its permissions.") from e
    for name in names:
        if name.endswith(_BUSY):
            problems.add(f"{path / name}: looks like a download or copy that has not ended. Let it end, or delete it.")
        elif (path / name).is_symlink() and not (path / name).exists():
            problems.add(why(path / name))
    return names


def read_weights(path: Path, names: list[str], problems: Problems) -> Weights:
    """The headers of all shards, compared with the index where there is one."""
    there = [n for n in names if n.endswith(".safetensors")]
    if INDEX in names:
        return _indexed(path, there, problems)
    if not there:
        problems.add(f"{path}: has no *.safetensors weights. {_instead(path, names)}")
        return Weights((), ())
    shards = [n for n in there if _SHARD.fullmatch(n)]
    if ONE in there:
        if shards:
            problems.add(f"{path}: has {ONE} and {shards[0]}, of another save. Delete what is old.")
        return Weights(_headers(path, [ONE], problems), tuple(n for n in there if n != ONE))
    if shards:
        problems.add(f"{path}: has {len(shards)} shards and no {INDEX}. {_AGAIN}")
    else:
        problems.add(f"{path}: has no {ONE} (it has {printable(', '.join(there[:3]), 200)}). Rename or save it so.")
    return Weights((), ())


def _indexed(path: Path, there: list[str], problems: Problems) -> Weights:
    file = path / INDEX
    index = read_json(file, problems, _AGAIN)
    if index is None:
        return Weights((), ())
    mapped = index.get("weight_map")
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(v, str) for v in mapped.values()):
        problems.add(f"{file}: its weight_map does not map tensors to files. {_AGAIN}")
        return Weights((), ())
    shards = sorted(set(mapped.values()))
    whole = [n for n in shards if _is_shard(path, n, problems)]
    headers = _headers(path, whole, problems)
    held = {h.file.name: {t.name for t in h.tensors} for h in headers}
    for tensor, shard in mapped.items():
        if shard in held and tensor not in held[shard]:
            problems.add(f"{path / shard}: holds no tensor {printable(tensor, 200)}, as {INDEX} says. {_AGAIN}")
    for shard, tensors in held.items():
        for tensor in sorted(t for t in tensors if mapped.get(t) != shard):
            other = f"; the index says {mapped[tensor]}" if tensor in mapped else ""
            problems.add(f"{path / shard}: holds {printable(tensor, 200)}, which is not in {INDEX}{other}. {_AGAIN}")
    unused = [n for n in there if n not in shards]
    for name in unused:
        if _SHARD.fullmatch(name) or name == ONE:
            problems.add(f"{path / name}: is not in {INDEX}: a shard of another save. Delete it.")
    if len(headers) == len(shards):
        _total(file, index, headers, problems)
    return Weights(headers, tuple(unused))


def _is_shard(path: Path, name: str, problems: Problems) -> bool:
    if os.path.basename(name) != name or not name.endswith(".safetensors"):
        problems.add(f"{path / INDEX}: names {printable(name, 200)!r}, which is no shard beside it. {_AGAIN}")
        return False
    if not os.path.lexists(path / name):
        problems.add(f"{path}: shard {printable(name, 200)} is missing, and {INDEX} names it. {_AGAIN}")
        return False
    return (path / name).exists()  # of a dangling link `entries` has told


def _total(file: Path, index: dict[str, object], headers: tuple[Header, ...], problems: Problems) -> None:
    about = index.get("metadata")
    said = about.get("total_size") if isinstance(about, dict) else None
    if said is None:
        return
    held = sum(t.stop - t.start for h in headers for t in h.tensors)
    # some writers count every use of shared weights, some none
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0.5 * held <= said <= 2 * held:
        problems.add(f"{file}: says total_size {printable(said, 40)}, and the shards hold {held:,} bytes. {_AGAIN}")


def _headers(path: Path, names: list[str], problems: Problems) -> tuple[Header, ...]:
    found = [_safetensors.read_header(path / n, problems) for n in names]
    for header in found:
        if header is not None and not header.tensors:
            problems.add(f"{header.file}: holds no tensor. {_AGAIN}")
    return tuple(h for h in found if h is not None)


def _instead(path: Path, names: list[str]) -> str:
    """What to do about a directory without safetensors weights."""
    if any(n.endswith((".bin", ".pt", ".pth")) and not n.startswith("training_args") for n in names):
        return "Its weights are pickles: load them with transformers and save_pretrained(…, safe_serialization=True)."
    return "Save the model as safetensors."


def elsewhere(path: Path, names: list[str]) -> str | None:
    """What the directory is, and what to do, where it is no model but holds or belongs to one."""
    if "config.json" in names:
        return None
    for inner in ("LATEST/model/consolidated", "model/consolidated", "consolidated"):
        if (path / inner / "config.json").is_file():
            return f"{path}: has no config.json. Name {path / inner}."
    if "adapter_config.json" in names:
        return f"{path}: has no config.json: it is an adapter. Merge it into its base with convert/merge_lora."
    if any(re.fullmatch(r"iter_\d+", n) for n in names) or "run_config.yaml" in names:
        return f"{path}: has no config.json: it is a Megatron checkpoint. Convert it with convert/megatron_to_hf."
    if (path / "snapshots").is_dir():
        return f"{path}: has no config.json. Name one of the directories in {path / 'snapshots'}."
    return None
