"""The first rows of a dataset: where ``max_rows`` ends."""

from __future__ import annotations

from collections.abc import Sequence

from _runtime.data_prep import rows, sources
from _runtime.data_prep.plan import Slice
from _runtime.data_prep.sources import SourceFile


def ends(files: Sequence[SourceFile], max_rows: int | None) -> dict[str, int]:
    """Path -> how much of the file belongs to the dataset's first ``max_rows`` rows, as ``Slice.end`` counts it.

    Files that are used whole are not in it; those that are not used have 0. A row is a line that is not blank, an
    element of a JSON array, or a row of Parquet.

    Raises:
        PayloadError: a file is damaged.
    """
    if max_rows is None:
        return {}
    found: dict[str, int] = {}
    left = max_rows
    for file in files:
        if not left:
            found[file.path] = 0
            continue
        count, end = _count(file, left)
        if count >= left:
            found[file.path] = end
        left -= min(left, count)
    return found


def _count(file: SourceFile, most: int) -> tuple[int, int]:
    """How many rows the file has, but no more than ``most``, and where the last one counted ends."""
    if file.format == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with sources.open_raw(file) as stream:
                count = pq.ParquetFile(pa.PythonFile(stream, "r")).metadata.num_rows
        except (pa.ArrowException, OSError) as e:
            raise sources.unreadable(file, str(e).splitlines()[0]) from None
        return min(count, most), min(count, most)
    if file.format == "json" and rows.is_array(file):
        count = min(most, len(rows.array_rows(file)))
        return count, count
    count = end = 0
    for length, blank in rows.lengths(Slice(file)):
        end += length
        count += not blank
        if count == most:
            break
    return count, end if file.format in ("jsonl", "json") else count
