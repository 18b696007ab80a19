"""Facts as Markdown: what cells and samples hold can neither break the table nor leave the block."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; integers with thousands separators, floats with three digits, None as a dash."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell(c) for c in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """One table cell."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}"
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def json_block(rows: Iterable[Any], limit: int = 3, width: int = 300) -> str:
    """Up to ``limit`` rows as a fenced block of JSON lines, each cut to ``width`` characters; empty for no rows."""
    shown = [json.dumps(row, ensure_ascii=False, default=str) for row in list(rows)[:limit]]
    if not shown:
        return ""
    cut = [s[:width] + ("…" if len(s) > width else "") for s in shown]
    return "```json\n" + "\n".join(cut).replace("```", "'''") + "\n```"
