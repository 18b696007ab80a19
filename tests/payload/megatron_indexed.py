"""Run in the train environment with megatron-core: ``write`` shards with its builder, or ``read`` some with its reader.

python megatron_indexed.py write TASK    {prefix: {"dtype": ..., "documents": [[sequence, ...], ...]}}
python megatron_indexed.py read TASK     [prefix, ...]; prints what each holds
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy
import torch
from _runtime import cpu_megatron_imports

cpu_megatron_imports.install()  # megatron.core imports Triton, which it does not need here

from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder  # noqa: E402


def write(task: dict[str, dict]) -> None:
    for prefix, shard in task.items():
        dtype = getattr(numpy, shard["dtype"])
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        for document in shard["documents"]:
            for sequence in document:
                builder.add_item(torch.tensor(sequence, dtype=torch.int64))
            builder.end_document()
        builder.finalize(f"{prefix}.idx")


def read(task: list[str]) -> None:
    held = {}
    for prefix in task:
        for mmap in (True, False):
            try:
                data = IndexedDataset(prefix, mmap=mmap)
            except ValueError as e:
                held[prefix] = {"error": str(e)}
                break
            held[prefix] = {
                "sequences": [data[i].tolist() for i in range(len(data))],
                "documents": data.document_indices.tolist(),
                "dtype": data.index.dtype.__name__,
                **({"the same without mmap": held[prefix]["sequences"]} if not mmap else {}),
            }
    sizes = {n: DType.optimal_dtype(n).__name__ for n in (None, 1, 65_499, 65_500, 131_072)}
    print(json.dumps({"held": held, "dtypes": list(sizes.items())}))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
