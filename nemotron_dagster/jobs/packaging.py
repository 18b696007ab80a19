"""What code travels with a job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog import Step
from nemotron_dagster.project import Project


def package(project: Project, step: Step, settings: Mapping[str, Any], into: Path) -> Path:
    """One archive of the code that ``step`` needs, below ``into``."""
    raise NotImplementedError
