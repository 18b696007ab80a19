"""The rows of the ``*_jsonl`` types where they lie in Parquet."""

from __future__ import annotations

import json
from pathlib import Path

from nemotron_dagster.artifacts.types import _check, _rows, _scan, _tally


def check(task: tuple[Path, _check.Rules]) -> _tally.Tally:
    """Check and count every row of a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, rules = task
    tally = _tally.Tally()
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(1000):
                for row in batch.to_pylist():
                    tally.rows += 1
                    try:
                        kind = rules.examine(row)
                    except _rows.Fault as e:
                        tally.problem(tally.rows, str(e))
                        continue
                    _tally.count(tally, row, kind)
                    tally.length(len(json.dumps(row, ensure_ascii=False, default=str)))
                    if tally.looked_at < _check.FIRST or not tally.rows % _check.EVERY:
                        tally.look(row)
                tally.fold()
    except (pa.ArrowException, *_scan.DAMAGE) as e:
        tally.damage = f"{file}: cannot be read ({_scan.first_line(e)}). It may be truncated; make it again."
    return tally
