"""The small JSON and YAML files of a checkpoint or of results: whatever is wrong with one is one named problem."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types._files import why
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.errors import ArtifactError, ConfigError
from nemotron_dagster.files import MAX_DEPTH, printable, read_text, too_deep

#: The largest tokenizers have some 35 MB.
LIMIT = 256 * 2**20


def read_json(file: Path, problems: Problems, fix: str) -> dict[str, Any] | None:
    """The file's object; None where it is missing or none, which is then among ``problems``.

    ``fix`` is what to do, as a sentence.
    """
    if not os.path.lexists(file):
        problems.add(f"{file.parent}: has no {file.name}. {fix}")
        return None
    text = text_of(file, problems, fix)
    return None if text is None else parse_json(text, file, problems, fix)


def parse_json(text: str, file: Path, problems: Problems, fix: str) -> dict[str, Any] | None:
    """The object that ``text``, the content of ``file``, holds; None as for ``read_json``."""
    try:
        data = json.loads(text)
    except RecursionError:
        problems.add(f"{file}: nests deeper than {MAX_DEPTH} levels. {fix}")
        return None
    except ValueError as e:
        problems.add(f"{file}: is not JSON ({printable(e, 200)}). {fix}")
        return None
    if not isinstance(data, dict):
        problems.add(f"{file}: is not a JSON object. {fix}")
        return None
    if too_deep(data):
        problems.add(f"{file}: nests deeper than {MAX_DEPTH} levels. {fix}")
        return None
    return data


def read_yaml(file: Path, problems: Problems, fix: str) -> dict[str, Any] | None:
    """The file's mapping; None where it is none, which is then among ``problems``."""
    from nemotron_dagster.config.source import read_yaml as read

    try:
        data = read(file)
    except ConfigError as e:
        problems.add(f"{e} {fix}")
        return None
    if not isinstance(data, dict):
        problems.add(f"{file}: is not a YAML mapping. {fix}")
        return None
    return data


def text_of(file: Path, problems: Problems, fix: str, limit: int = LIMIT) -> str | None:
    """The file's text; None where it cannot be read, which is then among ``problems``."""
    if not file.exists():
        problems.add(why(file))
        return None
    try:
        return read_text(file, ArtifactError, limit)
    except ArtifactError as e:
        problems.add(f"{e} {fix}")
        return None


def whole(data: Any, *keys: str) -> int | None:
    """The first of ``keys`` that holds a positive integer in the mapping ``data``."""
    for key in keys:
        value = data.get(key) if isinstance(data, dict) else None
        if type(value) is int and value > 0:
            return value
    return None
