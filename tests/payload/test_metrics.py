"""metrics.parquet, written and read as every training step does, in the train environment."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from interpreters import STEPS, payload_python


def save(directory: Path, records: list[dict[str, Any]], again: list[dict[str, Any]] | None = None) -> str:
    """Save, then save what was loaded with more behind it; returns what was said on stderr."""
    code = """
import json, sys
from _runtime import metrics
for records in json.loads(sys.argv[2]):
    metrics.save(sys.argv[1], [*metrics.load(sys.argv[1]), *records])
"""
    batches = json.dumps([records] if again is None else [records, again])
    done = subprocess.run(
        [payload_python("train"), "-c", code, str(directory), batches],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(STEPS)},
    )
    return done.stderr


def test_one_row_per_step_in_order_with_nulls_where_nothing_was_measured(tmp_path: Path) -> None:
    records = [{"step": 3, "loss": 1, "validation_loss": 2.5}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}]
    assert not save(tmp_path, records)
    table = pq.read_table(tmp_path / "metrics.parquet")
    assert {f.name: str(f.type) for f in table.schema} == {
        "step": "int64",
        "loss": "double",
        "validation_loss": "double",
    }
    assert table["step"].to_pylist() == [1, 2, 3] and table["validation_loss"].to_pylist() == [None, None, 2.5]
    first, second, third = table["loss"].to_pylist()
    assert (first, third) == (3.0, 1.0) and math.isnan(second)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.parquet"]


def test_a_step_run_twice_is_kept_once_as_it_was_last(tmp_path: Path) -> None:
    before = [{"step": s, "loss": 10.0 - s} for s in (1, 2, 3)]
    assert not save(tmp_path, before, [{"step": 3, "loss": 0.5}, {"step": 4, "lr": 1e-3}])
    assert pq.read_table(tmp_path / "metrics.parquet").to_pylist() == [
        {"step": 1, "loss": 9.0, "lr": None},
        {"step": 2, "loss": 8.0, "lr": None},
        {"step": 3, "loss": 0.5, "lr": None},
        {"step": 4, "loss": None, "lr": 1e-3},
    ]


def test_a_record_without_step_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    assert "without step" in save(tmp_path, [{"step": 1, "loss": 1.0}], [{"loss": 2.0}])
    assert pq.read_table(tmp_path / "metrics.parquet").to_pylist() == [{"step": 1, "loss": 1.0}]


def test_no_steps_make_an_empty_table(tmp_path: Path) -> None:
    assert not save(tmp_path, [])
    assert pq.read_table(tmp_path / "metrics.parquet").column_names == ["step"]
