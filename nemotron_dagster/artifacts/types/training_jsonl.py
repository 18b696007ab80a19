"""``training_jsonl``: JSONL whose rows hold messages in the OpenAI chat format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types import _jsonl
from nemotron_dagster.artifacts.types._jsonl import draw, figures, samples

__all__ = ["LAYOUT", "draw", "figures", "samples", "validate"]

LAYOUT = "One .jsonl file, a directory of *.jsonl files (also .gz, .zst), or a glob of them; one JSON object per line."


def validate(path: Path) -> dict[str, Any]:
    """Check every row; its facts."""
    return _jsonl.validate(path, chat=True)
