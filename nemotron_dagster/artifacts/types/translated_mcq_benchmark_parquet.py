"""``translated_mcq_benchmark_parquet``: multiple-choice questions, translated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types import _questions
from nemotron_dagster.artifacts.types._questions import columns, draw, figures, read, samples, tables, write

__all__ = ["LAYOUT", "columns", "draw", "figures", "read", "samples", "tables", "validate", "write"]

LAYOUT = (
    f"{_questions.LAYOUT}. "
    "Columns as in mcq_benchmark_parquet, with score_* for each translation metric where it was scored."
)


def validate(path: Path) -> dict[str, Any]:
    """Check every question; the facts."""
    return _questions.validate(path, choices=True, metrics=True)
