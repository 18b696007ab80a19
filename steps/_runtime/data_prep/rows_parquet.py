"""Rows of a slice of a Parquet file: only the row groups and columns that it needs, some thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa  # noqa: TID253 - this module is imported for Parquet files only
import pyarrow.parquet as pq  # noqa: TID253

from _runtime.data_prep import sources
from _runtime.data_prep.plan import Slice
from _runtime.data_prep.rows import BATCH_ROWS, Batch, blocks


def read_parquet(part: Slice, columns: Sequence[str] | None) -> Iterator[Batch]:
    """The rows of the slice in order; ``columns`` as in ``rows.read``.

    Raises:
        PayloadError: the file is damaged, or was changed since it was planned.
    """
    try:
        with sources.open_raw(part.file) as stream:
            file = pq.ParquetFile(stream if sources.is_local(part.file) else pa.PythonFile(stream, "r"))
            wanted = [c for c in file.schema_arrow.names if columns is None or c in columns]
            ranges = list(blocks(part, file.metadata.num_rows))
            at = 0
            for group in range(file.num_row_groups):
                end = at + file.metadata.row_group(group).num_rows
                mine = [(max(a, at), min(b, end)) for a, b in ranges if a < end and b > at]
                if mine:
                    yield from _group(file, group, at, mine, wanted, part)
                at = end
    except (pa.ArrowException, OSError) as e:
        raise sources.unreadable(part.file, str(e).splitlines()[0]) from None


def _group(
    file: Any, group: int, at: int, mine: list[tuple[int, int]], columns: list[str], part: Slice
) -> Iterator[Batch]:
    """The rows of one row group that lie in ``mine``; ``at`` is the number of its first row."""
    per_row = part.file.size / max(1, file.metadata.num_rows)
    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
        picked = [(a, b) for x, y in mine if (a := max(x, at)) < (b := min(y, at + batch.num_rows))]
        if picked:
            found = [row for a, b in picked for row in batch.slice(a - at, b - a).to_pylist()]
            numbers = [n + 1 for a, b in picked for n in range(a, b)]
            if not columns:  # no wanted field is there, so rows have nothing to hold
                found = [{} for _ in numbers]
            yield Batch(part.file.path, found, numbers, "row", [], int(len(found) * per_row))
        at += batch.num_rows
