"""The rows of the ``*_jsonl`` types where they lie in Parquet."""

from __future__ import annotations

import json
from pathlib import Path

from nemotron_dagster.artifacts.types import _check, _rows, _scan, _tally
from nemotron_dagster.artifacts.types._problems import Problems


def check(file: Path, rules: _check.Rules, tally: _tally.Tally, problems: Problems) -> None:
    """Check every row of a file and count it in ``tally``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    tally.rows += 1
                    try:
                        kind = rules.examine(row)
                    except _rows.Fault as e:
                        tally.wrong += 1
                        problems.add(f"{file}: row {number}: {e}")
                        continue
                    _tally.count(tally, row, kind)
                    tally.length(len(json.dumps(row, ensure_ascii=False, default=str)))
                    if number <= 50 or not number % 997:
                        tally.look(row)
                tally.fold()
    except (pa.ArrowException, *_scan.DAMAGE) as e:
        problems.add(f"{file}: cannot be read ({_scan.first_line(e)}). It may be truncated; make it again.")
