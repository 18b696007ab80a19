"""Read what people wrote: YAML, TOML and values of the command line.

Whatever is wrong with one is a single named error with its position; see ``yaml_data`` for how YAML is read.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from nemotron_dagster.config.keys import ABSENT, Key, child, parse_key
from nemotron_dagster.config.yaml_data import Marks, YamlProblem, parse
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.files import Position, printable, read_text, read_toml
from nemotron_dagster.toml_positions import toml_position

__all__ = ["Position", "read_text", "read_toml", "read_value", "read_yaml", "toml_position", "yaml_position"]

#: Of one value on the command line.
MAX_VALUE = 2**20


def read_yaml(path: Path) -> Any:
    """The file's data: dicts, lists, text, numbers, booleans and None. An empty file is an empty mapping.

    Raises:
        ConfigError: unreadable, not UTF-8, malformed, a duplicate key, or too large, deep or wide, with its position.
    """
    data = _parse_file(path, read_text(path))[0]
    return {} if data is None else data


def read_value(text: str, where: str) -> Any:
    """One value as it stands on the command line, as YAML; ``where`` says whose it is in a message.

    Raises:
        ConfigError: malformed, or too large, deep or wide.
    """
    where = printable(where, 200)
    if len(text) > MAX_VALUE:
        raise ConfigError(f"{where}: the value is larger than {MAX_VALUE // 2**20} MiB. Put it into a config file.")
    try:
        return parse(text)[0]
    except YamlProblem as e:
        at = f"column {e.column}" if e.line == 1 else f"line {e.line}, column {e.column}"
        raise ConfigError(f"{where}: the value is not valid YAML ({at}: {e}). Mend or quote it.") from e


def yaml_position(path: Path, key: str | Key) -> Position | None:
    """Where ``key`` (``a.b.0.c`` or ``a.b[0].c``) is written in the file; None where it is not."""
    try:
        node, marks = _parse_cached(path, read_text(path))
        parts = parse_key(key) if isinstance(key, str) else key
    except (ConfigError, ValueError):
        return None
    at: tuple[int, int] | None = None
    for part in parts:
        found = child(node, part)
        if found is ABSENT:
            return None
        at, node = marks[id(node)][found], node[found]
    return Position(path, *at) if at else None


@lru_cache(maxsize=16)
def _parse_cached(path: Path, text: str) -> tuple[Any, Marks]:
    """For positions only: the data is shared by every caller."""
    return _parse_file(path, text)


def _parse_file(path: Path, text: str) -> tuple[Any, Marks]:
    try:
        return parse(text)
    except YamlProblem as e:
        where = Position(path, e.line, e.column)
        raise ConfigError(f"{where}: is not valid YAML: {e}. Mend that line.") from e
