"""Writes packed sequences as Parquet, in the columns that Megatron-Bridge's GPTSFTPackedParquetDataset reads.

    input_ids     list<int32>   the sequences of a pack one after the other, at most the pack size, not padded to it
    loss_mask     list<uint8>   1 where the next token counts; 0 at the last token of each sequence
    seq_start_id  list<int32>   where each sequence begins

With context parallelism the trainer wants the length of each sequence, without its last token (which is only a
label), to be a multiple of some number. Padding tokens then stand at the end of each sequence; no loss counts there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from _runtime.data_prep.chat_tokens import Tokens
from _runtime.data_prep.packing import Bins

Array = np.ndarray[Any, Any]

_LARGEST = 1 << 30  # tokens of a row group: its offsets are 32 bits


def padded(lengths: Array, multiple: int) -> Array:
    """What each sequence takes: the least ``k * multiple + 1`` that holds it, the length itself for a multiple of 1."""
    if multiple == 1:
        return np.asarray(lengths, np.int64)
    return -(-np.maximum(np.asarray(lengths, np.int64) - 1, 1) // multiple) * multiple + 1


def longest(pack_size: int, multiple: int) -> int:
    """How many tokens a sequence may have so that it fits into a pack with its padding."""
    return pack_size if multiple == 1 else (pack_size - 1) // multiple * multiple + 1


def write(
    path: Path, tokens: Tokens, bins: Bins, *, pad_id: int = 0, multiple: int = 1, row_group_size: int = 1000
) -> None:
    """Write one shard, under its name only when it is whole.

    Args:
        tokens: its mask is shifted already.
        bins: sequences of each row.

    Raises:
        OSError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"input_ids": pa.int32(), "loss_mask": pa.uint8(), "seq_start_id": pa.int32()}
    schema = pa.schema([(name, pa.list_(pa.field("element", t))) for name, t in types.items()])
    size = padded(tokens.lengths, multiple)[bins.order]
    largest = int(np.add.reduceat(size, bins.offsets[:-1]).max()) if len(bins) else 1
    rows = max(1, min(row_group_size, _LARGEST // largest))
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as out:
            for first in range(0, len(bins), rows):
                columns = _rows(tokens, bins, first, min(len(bins), first + rows), pad_id, multiple)
                arrays = [
                    pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(values), type=schema.field(i).type)
                    for i, (offsets, values) in enumerate(columns)
                ]
                out.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=rows)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _rows(tokens: Tokens, bins: Bins, first: int, last: int, pad_id: int, multiple: int) -> list[tuple[Array, Array]]:
    """Offsets and values of each column, of the bins from ``first`` up to ``last``."""
    chosen = bins.order[bins.offsets[first] : bins.offsets[last]]
    per_row = bins.offsets[first : last + 1] - bins.offsets[first]
    lengths = tokens.lengths[chosen]
    takes = padded(lengths, multiple)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(takes)])
    rows = ends[per_row]
    source = np.repeat(tokens.starts[chosen] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    if multiple == 1:
        ids, mask = tokens.ids[source], tokens.mask[source]
    else:
        target = np.repeat(ends[:-1] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        ids, mask = np.full(ends[-1], pad_id, np.int32), np.zeros(ends[-1], np.uint8)
        ids[target], mask[target] = tokens.ids[source], tokens.mask[source]
    starts = ends[:-1] - np.repeat(rows[:-1], np.diff(per_row))
    return [(rows, ids), (rows, mask), (per_row, starts.astype(np.int32))]
