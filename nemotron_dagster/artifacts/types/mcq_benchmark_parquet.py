"""``mcq_benchmark_parquet``: multiple-choice questions as Parquet rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types import _questions
from nemotron_dagster.artifacts.types._questions import columns, draw, figures, read, samples, tables, write

__all__ = ["LAYOUT", "columns", "draw", "figures", "read", "samples", "tables", "validate", "write"]

LAYOUT = (
    f"{_questions.LAYOUT}. "
    "Columns: question_id, question, options list<string>, answer_index (from 0), answer (its letter), and category."
)


def validate(path: Path) -> dict[str, Any]:
    """Check every question; the facts."""
    return _questions.validate(path, choices=True)
