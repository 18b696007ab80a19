"""Checks packed rows column by column, without a Python step per row, and writes them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._scan import first_line
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    Array = np.ndarray[Any, Any]

_NAMES = ("input_ids", "loss_mask", "seq_start_id")
_TOKENS = 1_000_000  # so many at a time


@dataclass
class Counts:
    """What (a part of) a shard holds."""

    file: str
    rows: int = 0
    sequences: int = 0
    tokens: int = 0
    trained: int = 0
    largest: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    packs: Counter[int] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)
    wrong: int = 0

    def add(self, other: Counts) -> None:
        """Add the counts, not the problems, of another part."""
        self.rows += other.rows
        self.sequences += other.sequences
        self.tokens += other.tokens
        self.trained += other.trained
        self.largest = max(self.largest, other.largest)
        self.lengths.update(other.lengths)
        self.packs.update(other.packs)


def schema() -> pa.Schema:
    """The columns of a shard."""
    import pyarrow as pa

    types = (pa.int32(), pa.uint8(), pa.int32())
    return pa.schema([(n, pa.list_(pa.field("element", t))) for n, t in zip(_NAMES, types, strict=True)])


def check(task: tuple[Path, int, int]) -> Counts:
    """Check the packs of a part of a shard: (file, which part, of how many)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, part, parts = task
    counts, problems = Counts(str(file)), Problems()
    opened = False
    try:
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            wrong = _wrong_columns(parquet.schema_arrow)
            groups, row, at_once = _share(parquet.metadata, part, parts)
            opened = True
            if wrong and part == 0:
                problems.add(f"{file}: {wrong}")
            if groups and not wrong:
                for batch in parquet.iter_batches(at_once, groups, list(_NAMES), use_threads=False):
                    for number, text in _batch(batch, counts):
                        problems.add(f"{file}: row {row + number}: {text}")
                    row += batch.num_rows
                    counts.rows += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as e:
        if opened or part == 0:
            problems.add(f"{file}: cannot be read as Parquet ({first_line(e)}). It may be truncated; pack again.")
    counts.shown, counts.wrong = problems.shown, problems.count
    return counts


def _share(meta: pq.FileMetaData, part: int, parts: int) -> tuple[list[int], int, int]:
    """A part's row groups, the number of its first row, and how many rows to read at a time."""
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    size = max(1, sum(g.total_byte_size for g in groups))
    mine: list[int] = []
    first = rows = values = before = 0
    for i, group in enumerate(groups):
        if before * parts // size == part:
            mine.append(i)
            rows += group.num_rows
            values += group.column(0).num_values if group.num_columns else 0
        elif not mine:
            first += group.num_rows
        before += group.total_byte_size
    return mine, first, max(1, min(rows, _TOKENS * rows // max(values, 1)))


def _wrong_columns(found: pa.Schema) -> str:
    import pyarrow as pa

    for name, wanted in zip(_NAMES, ("int32", "uint8", "int32"), strict=True):
        if name not in found.names:
            return f"has no column {name} (it has {', '.join(found.names[:6]) or 'none'}). Name it so"
        type_ = found.field(name).type
        if not pa.types.is_list(type_) or str(type_.value_type) != wanted:
            return f"column {name} is {type_}. Write list<{wanted}>"
    return ""


def _batch(batch: pa.RecordBatch, counts: Counts) -> list[tuple[int, str]]:
    """Count a batch; (row, problem) for what is wrong in it."""
    import numpy as np

    found: list[tuple[int, str]] = []

    def report(rows: Array, text: str) -> None:
        found.extend((int(r), text) for r in np.unique(rows))

    columns: dict[str, tuple[Array, Array]] = {}
    for name in _NAMES:
        column = batch.column(name)
        values = column.flatten()
        if column.null_count or values.null_count:
            nulls = np.flatnonzero((column if column.null_count else values).is_null().to_numpy(zero_copy_only=False))
            first = nulls[:1] if column.null_count else _rows_of(nulls[:1] + column.offsets[0].as_py(), column.offsets)
            report(first, f"{name} has nulls. Write values")
            return found
        offsets = column.offsets.to_numpy()
        columns[name] = offsets - offsets[0], values.to_numpy()
    (offsets, ids), (mask_offsets, mask), (seq_offsets, starts) = (columns[n] for n in _NAMES)
    lengths, sequences = np.diff(offsets), np.diff(seq_offsets)
    report(np.flatnonzero(lengths == 0), "input_ids is empty. Leave the row out")
    report(np.flatnonzero(np.diff(mask_offsets) != lengths), "loss_mask is not as long as input_ids. Pack again")
    report(np.flatnonzero(sequences == 0), "seq_start_id is empty. It begins with 0")
    if ids.size and ids.min() < 0:
        report(_rows_of(np.flatnonzero(ids < 0), offsets), "input_ids has a negative token. Tokenize again")
    if mask.size and mask.max() > 1:
        report(_rows_of(np.flatnonzero(mask > 1), mask_offsets), "loss_mask has values other than 0 and 1")
    if found:
        return found
    row = np.repeat(np.arange(len(lengths)), sequences)
    ends = np.empty(len(starts), np.int64)
    ends[:-1] = starts[1:]
    ends[seq_offsets[1:] - 1] = lengths
    report(np.flatnonzero(starts[seq_offsets[:-1]] != 0), "seq_start_id does not begin with 0. Pack again")
    report(row[ends <= starts], "seq_start_id does not rise within the row. Pack again")
    report(row[starts < 0], "seq_start_id is negative. Pack again")
    if found:
        return found
    absolute = offsets[row].astype(np.int64) + ends
    report(row[mask[absolute - 1] != 0], "loss_mask is 1 at a sequence's last position; it is not shifted. Pack again")
    counts.sequences += len(starts)
    counts.tokens += len(ids)
    counts.trained += int(np.count_nonzero(mask))
    counts.largest = max(counts.largest, int(ids.max(initial=0)))
    for counter, numbers in ((counts.lengths, ends - starts), (counts.packs, lengths)):
        values, n = np.unique(numbers, return_counts=True)
        counter.update(dict(zip(values.tolist(), n.tolist(), strict=True)))
    return found


def _rows_of(positions: Array, offsets: Array) -> Array:
    import numpy as np

    rows: Array = np.searchsorted(offsets, positions, side="right") - 1
    return rows


def batches(rows: Iterable[Any], size: int) -> Iterator[pa.RecordBatch]:
    """Triples as record batches of up to ``size`` rows.

    Raises:
        ArtifactError: a triple that does not fit the columns.
    """
    import numpy as np
    import pyarrow as pa

    columns = schema()
    rows, number = iter(rows), 0
    while some := list(islice(rows, size)):
        arrays = []
        for i, field_ in enumerate(columns):
            try:
                parts = [np.asarray(row[i]) for row in some]
                offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int32)
                flat = np.concatenate(parts)
                values = pa.array(flat if flat.size else [], field_.type.value_type)
            except (pa.ArrowException, TypeError, ValueError, IndexError) as e:
                raise ArtifactError(
                    f"rows {number} to {number + len(some) - 1}: {field_.name} does not fit {field_.type} "
                    f"({first_line(e)}). Give (input_ids, loss_mask, seq_start_id)."
                ) from e
            arrays.append(pa.ListArray.from_arrays(offsets, values, type=field_.type))
        number += len(some)
        yield pa.RecordBatch.from_arrays(arrays, schema=columns)


def write(value: Iterable[pa.RecordBatch], file: Path, columns: pa.Schema) -> None:
    """Write batches as a row group each, zstd, under the file's name only when it is whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.exists():
        raise ArtifactError(f"{file}: exists already. Name another directory.")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.tmp")
    rows = 0
    try:
        with pq.ParquetWriter(partial, columns, compression="zstd") as out:
            for batch in value:
                out.write_batch(batch.cast(columns) if batch.schema != columns else batch)
                rows += batch.num_rows
        if not rows:
            raise ArtifactError(f"{file}: there are no rows to write. Check what makes them.")
        os.replace(partial, file)
    except (pa.ArrowException, OSError) as e:
        raise ArtifactError(f"{file}: cannot be written ({first_line(e)}). Check the columns and the disk.") from e
    finally:
        partial.unlink(missing_ok=True)
