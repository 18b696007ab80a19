"""Counts what rows hold: one ``Tally`` per piece of the data, merged at the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_dagster.artifacts.types import _rows
from nemotron_dagster.artifacts.types._problems import Problems

SAMPLES = 5
_DISTINCT = 20_000
_COLUMNS = 200
_CURATED = re.compile(r"\(.*?['\"]([A-Za-z_-]+)['\"]\)")


@dataclass
class Tally:
    """What a piece holds."""

    lines: int = 0
    rows: int = 0
    blank: int = 0
    shown: list[tuple[int, str]] = field(default_factory=list)  # line number, problem
    wrong: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    with_tools: int = 0
    without_assistant: int = 0
    samples: list[Any] = field(default_factory=list)
    columns: dict[str, set[str]] = field(default_factory=dict)
    looked_at: int = 0
    damage: str = ""  # why the file could not be read to its end

    def problem(self, line: int, text: str) -> None:
        self.wrong += 1
        if len(self.shown) < Problems.SHOWN:
            self.shown.append((line, text))

    def conversation(self, row: Mapping[str, Any]) -> None:
        """Count a row's roles and tools; its messages need not be well formed."""
        messages = row.get("messages")
        if not isinstance(messages, list):
            return
        roles = [m.get("role") for m in messages if isinstance(m, dict)]
        self.roles.update(role for role in roles if role in _rows.ROLES)
        self.turns[len(messages)] += 1
        self.without_assistant += "assistant" not in roles
        called = any(isinstance(m, dict) and m.get("tool_calls") for m in messages)
        self.with_tools += bool(called or "tool" in roles or row.get("tools"))

    def length(self, characters: int) -> None:
        self.lengths[characters] += 1

    def language(self, value: Any, count: int = 1) -> None:
        """Count rows whose language is ``value``; anything but text is none."""
        if isinstance(value, str):
            found = _CURATED.fullmatch(value) if value[:1] == "(" else None  # the curator's "(0.93, 'EN')"
            name = found[1] if found else value[:20]
            self.languages[name if name in self.languages or len(self.languages) < 200 else "other"] += count

    def look(self, row: Mapping[str, Any]) -> None:
        """Keep a row as a sample while there are few, and note its columns."""
        self.looked_at += 1
        if len(self.samples) < SAMPLES:
            self.samples.append(clipped(row))
        for key, value in row.items():
            if key in self.columns or len(self.columns) < _COLUMNS:
                self.columns.setdefault(key, set()).add(json_type(value))

    def fold(self) -> None:
        """Keep the counters small: many distinct lengths become steps of a sixteenth of a power of two."""
        for counter in (self.lengths, self.turns):
            if len(counter) > _DISTINCT:
                folded: Counter[int] = Counter()
                for value, count in counter.items():
                    shift = max(value.bit_length() - 5, 0)
                    folded[value >> shift << shift] += count
                counter.clear()
                counter.update(folded)

    def merge(self, other: Tally) -> None:
        """Add what the next piece holds, but for its problems."""
        for name in ("lines", "rows", "blank", "wrong", "with_tools", "without_assistant"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("kinds", "roles", "turns", "lengths", "languages"):
            getattr(self, name).update(getattr(other, name))
        self.looked_at += other.looked_at
        self.samples += other.samples[: SAMPLES - len(self.samples)]
        for key, types in other.columns.items():
            if key in self.columns or len(self.columns) < _COLUMNS:
                self.columns.setdefault(key, set()).update(types)
        self.fold()

    def facts(self) -> dict[str, Any]:
        """What is worth keeping of it."""
        out: dict[str, Any] = {"rows": self.rows, "kinds": {k: n for k, n in self.kinds.most_common() if n}}
        if self.roles:
            out |= {
                "roles": dict(self.roles.most_common()),
                "turns": histogram(self.turns),
                "rows_with_tools": self.with_tools,
                "rows_without_assistant": self.without_assistant,
            }
        if self.languages:
            out["languages"] = dict(self.languages.most_common(30))
        out |= {
            "lengths": histogram(self.lengths),
            "blank_lines": self.blank,
            "columns": [[key, " or ".join(sorted(types))] for key, types in self.columns.items()],
            "columns_of_rows": self.looked_at,
            "samples": self.samples,
        }
        return out


def histogram(counts: Mapping[int, int], bins: int = 40) -> dict[str, list[int]]:
    """Counts of whole numbers as up to ``bins`` equal bins; a long tail, above the 99.9th percentile, is one bin."""
    if not any(counts.values()):
        return {"edges": [0, 1], "counts": [0]}
    counts = {value: count for value, count in counts.items() if count > 0}
    values = sorted(counts)
    total, seen, top = sum(counts.values()), 0, values[-1]
    for value in values:
        seen += counts[value]
        if seen >= 0.999 * total:
            top = value
            break
    low = values[0]
    width = max(1, -(-(top + 1 - low) // bins))
    full = [0] * -(-(top + 1 - low) // width)
    tail = 0
    for value, count in counts.items():
        if value <= top:
            full[(value - low) // width] += count
        else:
            tail += count
    edges = [low + i * width for i in range(len(full) + 1)]
    if tail:
        edges.append(max(values[-1] + 1, edges[-1] + 1))
        full.append(tail)
    return {"edges": edges, "counts": full}


def clipped(value: Any, most: int = 400, depth: int = 0) -> Any:
    """A value small enough for a manifest: long text, lists and objects cut."""
    if isinstance(value, str):
        return value if len(value) <= most else value[:most] + "…"
    if isinstance(value, list):
        shown = [clipped(v, most // 2, depth + 1) for v in value[:8]] if depth < 6 else []
        return shown + (["…"] if len(value) > len(shown) else [])
    if isinstance(value, dict):
        kept = list(value.items())[:30] if depth < 6 else []
        out = {str(k)[:100]: clipped(v, most, depth + 1) for k, v in kept}
        return out | ({"…": len(value) - len(kept)} if len(value) > len(kept) else {})
    return value if isinstance(value, bool | int | float) or value is None else str(value)[:most]


def json_type(value: Any) -> str:
    """A JSON value's type, in one word, with what a list holds."""
    if isinstance(value, list):
        return f"list[{json_type(value[0])}]" if value else "list"
    names: dict[type, str] = {dict: "object", str: "string", bool: "boolean", int: "integer", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def count(tally: Tally, row: dict[str, Any], kind: str) -> None:
    """Count a row that was examined."""
    tally.kinds[kind] += 1
    language = row.get("language")
    tally.language(row.get("lang") if language is None else language)
    if kind == _rows.KINDS[0]:
        tally.conversation(row)
