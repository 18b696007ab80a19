"""Data blends: which datasets there are, how much each weighs, and for which split.

    {"datasets": [{"name", "path", "weight": 1.0, "split", "subset", "revision", "text_field", ...}, ...]}
    {"train": [...], "valid": [...], "test": [...]}

A path, a directory or a glob that is no such JSON file stands for a blend of one dataset.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _runtime.data_prep.options import nearest
from _runtime.payload import PayloadError

SPLITS = ("train", "valid", "test")
ALL = "all"
KEYS = ("name", "path", "weight", "split", "subset", "revision")
FIELDS = ("text_field", "messages_field", "tools_field")
_LARGEST = 64 << 20  # a blend is small; a larger .json file holds rows
_RECOVERY = 'Write {"datasets": [{"name": ..., "path": ..., "weight": 1.0}]}, or name a file, directory or glob.'


@dataclass(frozen=True)
class Dataset:
    """One entry of a blend.

    Attributes:
        name: unique within its list; names its output folder.
        path: file, directory, glob, ``hf://org/name``, ``s3://...``, ``gs://...`` or another fsspec URL.
        weight: relative to the other datasets of its split.
        split, subset, revision: of a Hub dataset: which of its files are read.
        fields: field names that the entry sets itself, such as ``text_field``.
    """

    name: str
    path: str
    weight: float = 1.0
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Blend:
    """``splits`` maps ``"all"`` to the datasets of a single blend, or each split that is given to its own."""

    splits: Mapping[str, tuple[Dataset, ...]]
    file: str | None = None

    @property
    def per_split(self) -> bool:
        return ALL not in self.splits

    def datasets(self) -> list[tuple[str, str, Dataset]]:
        """(split or "all", folder name, dataset) of every entry; a folder is told from its namesake by the split."""
        return [
            (split, f"{d.name}__{split}" if self.per_split else d.name, d)
            for split, entries in self.splits.items()
            for d in entries
        ]


def read_blend(path: str, fields: Sequence[str] = FIELDS) -> Blend:
    """Read the blend that ``blend_path`` names; ``fields`` are the field keys that an entry may set.

    A relative path inside a blend counts from the blend's folder where something is there, else from the working
    directory.

    Raises:
        PayloadError: no such file, not a blend, mixed modes, an unknown key, a bad weight, a name given twice.
    """
    file = Path(path).expanduser()
    if not path.endswith(".json") or "://" in path or file.is_dir() or (glob.has_magic(path) and not file.is_file()):
        return Blend({ALL: (Dataset(_name_of(path), path),)})
    try:
        head = file.open("rb").read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        if head.startswith(b"[") or file.stat().st_size > _LARGEST:
            return Blend({ALL: (Dataset(_name_of(path), path),)})
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise _bad(f"blend_path: {path}: {e.strerror or e}") from None
    except json.JSONDecodeError as e:
        if head.startswith(b"{") and e.msg == "Extra data":  # one row a line
            return Blend({ALL: (Dataset(_name_of(path), path),)})
        raise _bad(f"{path}:{e.lineno}: not JSON at column {e.colno}: {e.msg}", "Mend that line.") from None
    except UnicodeDecodeError as e:
        raise _bad(f"{path}: not UTF-8 at byte {e.start}", "Write the file in UTF-8.") from None
    return parse_blend(data, path, fields)


def parse_blend(data: Any, file: str, fields: Sequence[str] = FIELDS) -> Blend:
    """The blend that parsed JSON describes; ``file`` is named in errors and anchors relative paths.

    Raises:
        PayloadError: as ``read_blend``.
    """
    if not isinstance(data, dict):
        raise _bad(f"{file}: not a JSON object")
    for key in data:
        if key not in ("datasets", *SPLITS):
            raise _bad(f"{file}: unknown key {key!r}; {nearest(key, ('datasets', *SPLITS))}")
    given = {key: value for key, value in data.items() if value is not None}
    if "datasets" in given and len(given) > 1:
        other = next(k for k in given if k != "datasets")
        raise _bad(f"{file}: has both 'datasets' and {other!r}", "Keep one: 'datasets', or lists per split.")
    if not given:
        raise _bad(f"{file}: has neither 'datasets' nor a list for {', '.join(SPLITS)}")
    splits = {}
    for key in ("datasets", *SPLITS):
        if key not in given:
            continue
        entries = given[key]
        if not isinstance(entries, list) or not entries:
            raise _bad(f"{file}: {key!r} is {_shown(entries)}, not a list of datasets")
        splits[ALL if key == "datasets" else key] = _entries(entries, key, file, fields)
    return Blend(splits, file)


def _entries(entries: list[Any], key: str, file: str, fields: Sequence[str]) -> tuple[Dataset, ...]:
    made: list[Dataset] = []
    for i, entry in enumerate(entries):
        where = f"{file}: {key}[{i}]"
        if not isinstance(entry, dict):
            raise _bad(f"{where} is {_shown(entry)}, not an object with name and path")
        dataset = _dataset(entry, where, file, fields)
        if any(d.name == dataset.name for d in made):
            raise _bad(f"{where}: the name {dataset.name!r} is given twice", "Give each dataset a name of its own.")
        made.append(dataset)
    return tuple(made)


def _dataset(entry: Mapping[str, Any], where: str, file: str, fields: Sequence[str]) -> Dataset:
    known = (*KEYS, *fields)
    for key, value in entry.items():
        if key not in known:
            raise _bad(f"{where}: unknown key {key!r}; {nearest(key, known)}", "Mend or remove the key.")
        if key != "weight" and value is not None and (not isinstance(value, str) or not value.strip()):
            raise _bad(f"{where}: {key} is {_shown(value)}, not text", f"Write a string for {key}.")
    if entry.get("path") is None:
        raise _bad(f"{where}: has no path")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0:
        raise _bad(f"{where}: weight is {_shown(weight)}", "Write a number above 0, or remove the dataset.")
    name = entry.get("name") or _name_of(entry["path"])
    if name.startswith(".") or "/" in name or "\\" in name or not name.isprintable():
        raise _bad(f"{where}: the name {name!r} cannot name a folder", "Use letters, digits, '-', '_' and '.'.")
    return Dataset(
        name=name,
        path=_anchored(entry["path"], file),
        weight=float(weight),
        split=entry.get("split"),
        subset=entry.get("subset"),
        revision=entry.get("revision"),
        fields={key: entry[key] for key in fields if entry.get(key) is not None},
    )


def _anchored(path: str, file: str) -> str:
    if "://" in path or os.path.isabs(path) or path.startswith("~"):
        return path
    beside = os.path.join(os.path.dirname(os.path.abspath(file)), path)
    return beside if os.path.exists(beside) or glob.glob(beside, recursive=True) else path


def _name_of(path: str) -> str:
    """A folder name for a path: its last part that is no pattern, without its extensions."""
    parts = [p for p in path.split("://", 1)[-1].split("/") if p and not glob.has_magic(p) and p not in (".", "..")]
    name = re.sub(r"(\.(jsonl|json|parquet|gz|zst))+$", "", parts[-1] if parts else "")
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "data"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _bad(message: str, recovery: str = _RECOVERY) -> PayloadError:
    return PayloadError("missing_or_invalid_blend", message, recovery)
