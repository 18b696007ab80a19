"""Artifact types as code: what a valid one looks like and what a person wants to see of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.loading import Rows, rows
from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest
from nemotron_dagster.artifacts.registry import ArtifactType, artifact_type

__all__ = ["ArtifactRef", "ArtifactType", "Manifest", "Rows", "artifact_type", "rows", "validate"]


def validate(type_name: str, path: Path) -> dict[str, Any]:
    """Check an artifact's content; its facts.

    Raises:
        ArtifactError: invalid, or a type that nothing here can validate.
    """
    return artifact_type(type_name).validate(path)
