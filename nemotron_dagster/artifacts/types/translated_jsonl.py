"""``translated_jsonl``: JSONL with translated text or messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types import _check, _jsonl
from nemotron_dagster.artifacts.types._jsonl import columns, draw, figures, read, samples, tables, write

__all__ = ["LAYOUT", "columns", "draw", "figures", "read", "samples", "tables", "validate", "write"]

LAYOUT = _jsonl.PARQUET


def validate(path: Path) -> dict[str, Any]:
    """Check every row; its facts."""
    return _jsonl.validate(path, _check.Rules(translated=True), parquet=True)
