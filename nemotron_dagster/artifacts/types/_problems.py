"""Collects what is wrong with an artifact: the first problems in full, all of them counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from nemotron_dagster.errors import ArtifactError


@dataclass
class Problems:
    """Problems in the order in which they were met; only the first ``SHOWN`` are kept."""

    SHOWN: ClassVar[int] = 20
    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, problem: str) -> None:
        self.count += 1
        if len(self.shown) < self.SHOWN:
            self.shown.append(problem)

    def merge(self, shown: list[str], count: int) -> None:
        """Add the problems that another process met."""
        self.shown += shown[: self.SHOWN - len(self.shown)]
        self.count += count

    def check(self, closing: str = "") -> None:
        """Raises ArtifactError: there was a problem. ``closing`` is its last line."""
        if self.count:
            hidden = self.count - len(self.shown)
            lines = [*self.shown, *([f"… and {hidden:,} more"] if hidden else []), *([closing] if closing else [])]
            raise ArtifactError("\n".join(lines))
