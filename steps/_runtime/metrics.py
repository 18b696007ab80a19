"""``metrics.parquet``: what a training step measured, one row per optimizer step, at the root of its output directory.

Column ``step`` is int64 and counts from 1; every metric is a float64 column, null where a step did not measure it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

NAME = "metrics.parquet"


def save(directory: Path | str, records: Iterable[Mapping[str, float | None]]) -> Path:
    """Write the records as ``directory/metrics.parquet``, whole or not at all; returns its path.

    Each record has ``step`` and any metrics. They are sorted by step; of a step that was run twice, as after a resume,
    the last record counts.

    Raises:
        ValueError: a record without ``step``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: dict[int, Mapping[str, float | None]] = {}
    for record in records:
        step = record.get("step")
        if step is None:
            raise ValueError(f"a record without step: {dict(record)}")
        rows[int(step)] = record
    steps = sorted(rows)
    names = dict.fromkeys(name for step in steps for name in rows[step] if name != "step")
    columns = {"step": pa.array(steps, pa.int64())}
    for name in names:
        columns[name] = pa.array([_number(rows[step].get(name)) for step in steps], pa.float64())
    target = Path(directory) / NAME
    partial = target.with_name(f".{NAME}.{os.getpid()}")
    try:
        pq.write_table(pa.table(columns), partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def load(directory: Path | str) -> list[dict[str, float]]:
    """The records that ``save`` wrote, in order, without their nulls; none where there is no such file.

    So a resumed run keeps what was measured before: ``save(d, [*load(d), *new])``.
    """
    import pyarrow.parquet as pq

    file = Path(directory) / NAME
    table = pq.read_table(file).to_pylist() if file.is_file() else []
    return [{k: v for k, v in row.items() if v is not None} for row in table]


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
