"""``manifest.json``: where the files of each split are, and by which dataset class of NeMo-RL they are read.

Paths are relative to the manifest, so that the directory can move; ``${manifest:DIR,train}`` makes them whole. A split
of one file is named by its path, one of several by a glob, which ``datasets.load_dataset`` takes as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _runtime.data_prep import shards
from _runtime.data_prep.blend import SPLITS
from _runtime.data_prep.rl_rows import value_at
from _runtime.data_prep.rl_shard import SUFFIX
from _runtime.data_prep.rl_splits import HUB, MANIFEST
from _runtime.data_prep.runs import DatasetRun

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Reader:
    """The keys of NeMo-RL's ``data.default`` by which the files are read; no name where it has no such class."""

    dataset_name: str | None
    input_key: str | None = None
    output_key: str | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any], heads: Sequence[Mapping[str, Any]]) -> Reader:
        """The reader of rows that were made by these settings; ``heads`` are some of them."""
        kind = settings["row_format"]
        if kind == "preference":
            binary = settings["preference_format"] == "binary"
            return cls("BinaryPreferenceDataset" if binary else "PreferenceDataset")
        if kind == "gym":
            return cls("NemoGymDataset")
        if kind == "chat":
            messages = all(row.get("messages") is not None for row in heads)
            return cls("ResponseDataset" if messages else None)
        if kind == "verifier":
            prompt, answer = settings["prompt_field"], settings["answer_field"]
            values = [value_at(row, f) for row in heads for f in (prompt, answer)]
            if "." not in answer and all(isinstance(v, str | None) for v in values):
                return cls("ResponseDataset", prompt, answer)
        return cls(None)

    def to_json(self) -> dict[str, str]:
        return {key: value for key, value in vars(self).items() if value}


def write_manifest(
    output_dir: Path, datasets: Sequence[DatasetRun], reader: Reader, given: Sequence[str], row_format: str
) -> None:
    """Write the manifest, whole or not at all.

    Args:
        given: the splits that the source has itself.
    """
    files: dict[str, list[dict[str, Any]]] = {MANIFEST[split]: [] for split in SPLITS}
    for d in datasets:
        for _, receipt in sorted(d.receipts.items()):
            for split in SPLITS:
                if split in receipt["files"]:
                    about = receipt["files"][split]
                    files[MANIFEST[split]].append(
                        {
                            "path": os.path.relpath(d.folder / about["path"], output_dir),
                            "rows": receipt["stats"][f"{split}_rows"],
                            "bytes": about["bytes"],
                            "checksum": about["checksum"],
                        }
                    )
    run = datasets[0].folder.parents[2].name
    suffix = SUFFIX[datasets[0].plan.settings["compression"]]
    paths = {split: _path(split, found, run, suffix) for split, found in files.items()}
    manifest = {
        **paths,
        "mode": "resolve",
        "source_splits": [HUB[s] for s in given],
        "run_hash": run,
        "row_format": row_format,
        "reader": reader.to_json(),
        "rows": {split: sum(f["rows"] for f in found) for split, found in files.items()},
        "shards": files,
    }
    shards.write_whole(output_dir / MANIFEST_FILE, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _path(split: str, files: Sequence[Mapping[str, Any]], run: str, suffix: str) -> str:
    """A path, a glob of exactly these files, or "" where there are none, as in the reference."""
    if len(files) < 2:
        return str(files[0]["path"]) if files else ""
    folders = {os.path.dirname(f["path"]) for f in files}
    folder = folders.pop() if len(folders) == 1 else f"runs/{run}/datasets/*/*"
    return f"{folder}/{split}_shard_*{suffix}"
