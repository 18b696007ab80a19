"""Reads packed Parquet as a Megatron-Bridge trainer does, from what is public about its format: no trainer is needed.

A directory, file or glob names shards; rows are numbered through them in the order of their names; a row group is read
when a row of it is asked for. A batch row drops the last token of each sequence from the inputs, the first from the
labels, and takes the loss mask where the inputs are.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq


class PackedDataset:
    """``dataset[i]`` is ``{"input_ids", "loss_mask", "seq_boundaries"}``."""

    def __init__(self, path: Path | str) -> None:
        pattern = f"{path}/*.parquet" if Path(path).is_dir() else str(path)
        self.files = [pq.ParquetFile(f) for f in sorted(glob.glob(pattern))]
        assert self.files, f"no shard at {path}"
        assert all({"input_ids", "loss_mask", "seq_start_id"} <= set(f.schema_arrow.names) for f in self.files)
        groups = [(f, g, f.metadata.row_group(g).num_rows) for f in self.files for g in range(f.num_row_groups)]
        self.groups = [(f, g) for f, g, _ in groups]
        self.firsts = np.cumsum([0, *(n for _, _, n in groups)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        number = int(np.searchsorted(self.firsts, i, side="right")) - 1
        file, group = self.groups[number]
        table = file.read_row_group(group).slice(i - int(self.firsts[number]), 1)
        row = {name: table.column(name)[0].values.to_numpy() for name in table.column_names}
        assert row["input_ids"].dtype == np.int32 and row["loss_mask"].dtype == np.uint8
        return {
            "input_ids": row["input_ids"],
            "loss_mask": row["loss_mask"],
            "seq_boundaries": [*row["seq_start_id"].tolist(), len(row["input_ids"])],
        }


def collate(item: dict[str, Any]) -> dict[str, Any]:
    """Inputs, labels, loss mask, positions and where sequences end, as the attention kernels take them."""
    bounds = list(zip(item["seq_boundaries"][:-1], item["seq_boundaries"][1:], strict=True))

    def cut(name: str, first: int, last: int) -> np.ndarray:
        return np.concatenate([item[name][a + first : b + last] for a, b in bounds])

    return {
        "tokens": cut("input_ids", 0, -1),
        "labels": cut("input_ids", 1, 0),
        "loss_mask": cut("loss_mask", 0, -1),
        "position_ids": np.concatenate([np.arange(b - a - 1) for a, b in bounds]),
        "cu_seqlens": np.cumsum([0, *(b - a - 1 for a, b in bounds)]),
    }
