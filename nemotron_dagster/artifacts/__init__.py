"""Artifact types as code: what a valid one looks like and what a person wants to see of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from nemotron_dagster.artifacts.loading import Rows, rows
    from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest
    from nemotron_dagster.artifacts.registry import ArtifactType, artifact_type

__all__ = ["ArtifactRef", "ArtifactType", "Manifest", "Rows", "artifact_type", "rows", "validate"]


def validate(type_name: str, path: Path) -> dict[str, Any]:
    """Check an artifact's content; its facts.

    Raises:
        ArtifactError: invalid, or a type that nothing here can validate.
    """
    from nemotron_dagster.artifacts.registry import artifact_type

    return artifact_type(type_name).validate(path)


_FROM = {
    "ArtifactRef": "manifest",
    "ArtifactType": "registry",
    "Manifest": "manifest",
    "Rows": "loading",
    "artifact_type": "registry",
    "rows": "loading",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: the processes that check data ask for none of them."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
