"""What a payload says of itself, and who listens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Reporter(Protocol):
    """Who watches the run: the CLI's live line, or Dagster's log."""

    def note(self, text: str) -> None:
        """A fact worth a line: adopted, inputs, where things lie."""

    def log(self, data: bytes) -> None:
        """A piece of the job's own output."""

    def progress(self, step: int | None, total: int | None, metrics: Mapping[str, float]) -> None:
        """The job's latest progress message."""


def read_messages(file: Path) -> list[dict[str, Any]]:
    """The payload's messages so far; a line that is still being written is left out."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    messages = []
    for line in lines:
        try:
            messages.append(json.loads(line))
        except ValueError:
            continue
    return messages
