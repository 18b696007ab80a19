"""Rows that are not used: counted by reason, with the first examples of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from _runtime.payload import PayloadError

EXAMPLES = 5
POLICIES = ("skip", "fail")


class BadRow(Exception):  # noqa: N818 - it is a finding, which the shard runner tells as a PayloadError
    """A bad row under ``on_bad_row: fail``."""

    def __init__(self, reason: str, example: Mapping[str, Any]) -> None:
        super().__init__(reason, example)
        self.reason, self.example = reason, dict(example)


@dataclass
class Rejects:
    """What a shard leaves out.

    Attributes:
        counts: reason -> rows.
        examples: reason -> up to five ``{"file", "at", "unit", "note", "read"}``; ``at`` is a byte offset where
            ``unit`` is "byte" (its line is counted only where it is shown), else a line or row number from 1.
    """

    policy: str = "skip"
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(
        self, reason: str, file: str, at: int, unit: str, note: str = "", *, bad: bool = True, read: str | None = None
    ) -> None:
        """Count a row. A ``bad`` one is damaged or lacks a field; others were filtered by choice.

        Args:
            file, at, unit: as the ``Batch`` has them.
            read: the copy that was read, where it is another file (``Slice.staged``).

        Raises:
            BadRow: it is bad, and the policy is ``fail``.
        """
        example = {"file": file, "at": at, "unit": unit, "note": note, "read": read or file}
        if bad and self.policy == "fail":
            raise BadRow(reason, example)
        self.counts[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append(example)

    def to_json(self) -> dict[str, Any]:
        return {"counts": dict(sorted(self.counts.items())), "examples": self.examples}


def merge(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The ``to_json`` of several shards as one; of the examples the first ones stay."""
    total = Rejects()
    for part in parts:
        total.counts.update(part["counts"])
        for reason, examples in part["examples"].items():
            kept = total.examples.setdefault(reason, [])
            kept += examples[: EXAMPLES - len(kept)]
    return total.to_json()


def place(example: Mapping[str, Any]) -> str:
    """``file:line`` of an example, or ``file: row n``."""
    if example["unit"] == "row":
        return f"{example['file']}: row {example['at']}"
    line = _line(example["read"], example["at"]) if example["unit"] == "byte" else example["at"]
    return f"{example['file']}:{line}" if line else f"{example['file']}: byte {example['at']}"


def told(rejects: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Reason -> count and examples, each example with its place in words."""
    return {
        reason: {
            "rows": count,
            "examples": [
                {"row": place(e), **({"note": e["note"]} if e["note"] else {})}
                for e in rejects["examples"].get(reason, ())
            ],
        }
        for reason, count in rejects["counts"].items()
    }


def error(reason: str, example: Mapping[str, Any]) -> PayloadError:
    """What a person is told of the first bad row under ``on_bad_row: fail``."""
    note = f" ({example['note']})" if example["note"] else ""
    return PayloadError(
        "bad_row", f"{place(example)}: {reason}{note}", "Mend the row, or set on_bad_row=skip to count such rows."
    )


def _line(file: str, at: int) -> int:
    """Which line a byte lies in; the file is read up to there, which only shown examples cost."""
    lines, left = 1, at
    try:
        with open(file, "rb") as data:
            while left > 0 and (block := data.read(min(left, 1 << 22))):
                lines += block.count(b"\n")
                left -= len(block)
    except OSError:
        return 0
    return lines
