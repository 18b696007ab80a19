"""``benchmark_parquet``: questions as Parquet rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types import _questions
from nemotron_dagster.artifacts.types._questions import columns, draw, figures, read, samples, tables, write

__all__ = ["LAYOUT", "columns", "draw", "figures", "read", "samples", "tables", "validate", "write"]

LAYOUT = f"{_questions.LAYOUT}. Its columns are the benchmark's own."


def validate(path: Path) -> dict[str, Any]:
    """Check every question; the facts."""
    return _questions.validate(path, choices=False)
