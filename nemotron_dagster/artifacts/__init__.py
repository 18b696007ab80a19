"""Artifact types as code: what a valid one looks like and what a person wants to see of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest
from nemotron_dagster.errors import ArtifactError

__all__ = ["ArtifactRef", "Manifest", "validate"]


def _jsonl(path: Path, chat: bool) -> dict[str, Any]:
    from nemotron_dagster.artifacts import jsonl

    return jsonl.validate(path, chat=chat)


def _checkpoint_hf(path: Path) -> dict[str, Any]:
    from nemotron_dagster.artifacts import checkpoint_hf

    return checkpoint_hf.validate(path)


def _eval_results(path: Path) -> dict[str, Any]:
    from nemotron_dagster.artifacts import eval_results

    return eval_results.validate(path)


#: Type -> validator: path -> facts, or ArtifactError.
VALIDATORS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "raw_jsonl": partial(_jsonl, chat=False),
    "filtered_jsonl": partial(_jsonl, chat=False),
    "translated_jsonl": partial(_jsonl, chat=False),
    "synthetic_jsonl": partial(_jsonl, chat=False),
    "training_jsonl": partial(_jsonl, chat=True),
    "checkpoint_hf": _checkpoint_hf,
    "eval_results": _eval_results,
}


def validate(type_name: str, path: Path) -> dict[str, Any]:
    """Check an artifact's content; its facts.

    Raises:
        ArtifactError: invalid, or a type that nothing here can validate yet.
    """
    if type_name not in VALIDATORS:
        raise ArtifactError(f"{path}: artifacts of type {type_name} cannot be validated yet, so none is accepted.")
    return VALIDATORS[type_name](path)
