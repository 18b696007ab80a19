"""``raw_jsonl``: JSONL as it was downloaded or generated, before any filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types import _check, _jsonl
from nemotron_dagster.artifacts.types._jsonl import columns, draw, figures, read, samples, tables, write

__all__ = ["LAYOUT", "columns", "draw", "figures", "read", "samples", "tables", "validate", "write"]

LAYOUT = _jsonl.LAYOUT


def validate(path: Path) -> dict[str, Any]:
    """Check every row; its facts."""
    return _jsonl.validate(path, _check.Rules())
