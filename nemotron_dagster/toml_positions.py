"""Where a key stands in a TOML file. tomllib reads the values and keeps no positions."""

from __future__ import annotations

import re
import tomllib
from functools import lru_cache
from pathlib import Path

from nemotron_dagster.errors import ConfigError
from nemotron_dagster.files import MAX_TOML, Position, parse_toml, read_text

_PART = r"(?:[A-Za-z0-9_-]+|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*')"
_KEY = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(r"\"\"\"(?:[^\\]|\\.)*?\"\"\"\"{0,2}|'''.*?''''{0,2}|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'", re.DOTALL)
_WORD = re.compile(r"[^,\]}\n#]*")

Parts = tuple[str, ...]


def toml_position(path: Path, key: str) -> Position | None:
    """Where the dotted ``key`` (or table) is written; an entry of an array is its index: ``consumes.0.type``.

    A key of an inline table is found where it stands in the line. None where the file is malformed or lacks the key.
    """
    wanted = _parts(key) if _KEY.fullmatch(key) else tuple(key.split("."))
    try:
        at = positions(read_text(path, ConfigError, MAX_TOML)).get(wanted)
    except ConfigError:
        return None
    return Position(path, *at) if at else None


@lru_cache(maxsize=16)
def positions(text: str) -> dict[Parts, tuple[int, int]]:
    """Line and column of every table, key and array entry of a TOML document.

    Raises:
        ConfigError: it is malformed.
    """
    parse_toml(text, Path("-"))  # what follows relies on its being well formed
    scan = _Scan(text)
    scan.document()
    return scan.found


def _parts(key: str) -> Parts:
    """The names of a dotted key, quotes removed."""
    node, parts = tomllib.loads(f"{key} = 0"), []
    while isinstance(node, dict):
        part = next(iter(node))
        parts.append(part)
        node = node[part]
    return tuple(parts)


class _Scan:
    """One walk through a document that tomllib accepts."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.found: dict[Parts, tuple[int, int]] = {}

    def document(self) -> None:
        table: Parts = ()
        counts: dict[Parts, int] = {}
        while self._blank() < len(self.text):
            if self.text[self.at] != "[":
                self._pair(table)
                continue
            opened = 2 if self.text.startswith("[[", self.at) else 1
            self.at += opened
            start = self._blank()
            table = self._indexed(self._key(), counts, opened == 2)
            self._record(table, start)
            if opened == 2:
                self.found.setdefault(table[:-1], self.found[table])
            self._blank()
            self.at += opened

    def _indexed(self, parts: Parts, counts: dict[Parts, int], entry: bool) -> Parts:
        """The header's path with the index of every array of tables on the way."""
        path: Parts = ()
        for i, part in enumerate(parts):
            path = (*path, part)
            if entry and i == len(parts) - 1:
                counts[path] = counts.get(path, -1) + 1
            if path in counts:
                path = (*path, str(counts[path]))
        return path

    def _pair(self, table: Parts) -> None:
        start = self.at
        parts = self._key()
        for i in range(1, len(parts) + 1):
            self._record((*table, *parts[:i]), start)
        self._blank()
        self.at += 1  # =
        self._blank()
        self._value((*table, *parts))

    def _value(self, path: Parts) -> None:
        opener = self.text[self.at]
        if opener not in "{[":
            match = _STRING.match(self.text, self.at) or _WORD.match(self.text, self.at)
            assert match is not None  # _WORD matches the empty text
            self.at = match.end()
            return
        self.at += 1
        index = 0
        while self.text[self._blank()] not in "}]":
            if opener == "{":
                self._pair(path)
            else:
                self._record((*path, str(index)), self.at)
                self._value((*path, str(index)))
                index += 1
            if self.text[self._blank()] == ",":
                self.at += 1
        self.at += 1

    def _key(self) -> Parts:
        match = _KEY.match(self.text, self.at)
        assert match is not None  # tomllib accepted the document
        self.at = match.end()
        return _parts(match[0])

    def _blank(self) -> int:
        match = _BLANK.match(self.text, self.at)
        assert match is not None  # it matches the empty text
        self.at = match.end()
        return self.at

    def _record(self, path: Parts, start: int) -> None:
        line = self.text.count("\n", 0, start) + 1
        self.found.setdefault(path, (line, start - self.text.rfind("\n", 0, start)))
