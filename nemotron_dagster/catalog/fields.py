"""Typed access to the tables of a manifest: a value of another type is one error that names key and line."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from nemotron_dagster.errors import ConfigError, did_you_mean
from nemotron_dagster.files import printable
from nemotron_dagster.toml_positions import positions


@dataclass(frozen=True)
class Table:
    """One table of a TOML text.

    Attributes:
        values: its keys and values.
        path: where it lies in the document, array entries as their index.
        file: what a message calls the file.
        text: the whole document, for positions; it begins at ``first_line`` of the file, ``indent`` columns in.
    """

    values: dict[str, Any]
    path: tuple[str, ...]
    file: str
    text: str
    first_line: int = 1
    indent: int = 0

    def error(self, key: str | None, problem: str) -> ConfigError:
        """The error about ``key`` of this table, or about the table."""
        path = self.path if key is None else (*self.path, key)
        at = positions(self.text).get(path)
        where = f":{at[0] + self.first_line - 1}:{at[1] + self.indent}" if at else ""
        return ConfigError(f"{printable(self.file)}{where}: {printable(problem, 1000)}")

    def wrong(self, key: str, wanted: str) -> ConfigError:
        shown = printable(repr(self.values[key]), 80)
        return self.error(key, f"{key} = {shown} is not {wanted}. Write {wanted}.")

    def known(self, keys: Set[str], where: str) -> None:
        """Raises ConfigError: a key that is none of ``keys``."""
        if self.values.keys() <= keys:
            return
        known = sorted(keys)
        for key in self.values:
            if key not in known:
                hint = did_you_mean(key, known) or f" Known keys: {', '.join(known)}."
                raise self.error(key, f"unknown key {key!r} in {where}.{hint}")

    def text_of(self, key: str, default: str = "") -> str:
        return default if key not in self.values else self._text(key)

    def optional_text(self, key: str) -> str | None:
        return None if key not in self.values else self._text(key)

    def _text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str):
            raise self.wrong(key, "text in quotes")
        return value

    def scalar_text(self, key: str) -> str:
        """Text, or a number or truth value as text."""
        value = self.values[key]
        if not isinstance(value, str | int | float):
            raise self.wrong(key, "text or a number")
        return str(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def count(self, key: str, default: int, least: int) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, f"a whole number of at least {least}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.wrong(key, 'a list of texts, ["a", "b"]')
        return tuple(value)

    def table(self, key: str) -> Table:
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return Table(value, (*self.path, key), self.file, self.text, self.first_line, self.indent)

    def tables(self, key: str) -> list[Table]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self.wrong(key, f"an array of tables, [[{key}]]")
        return [
            Table(v, (*self.path, key, str(i)), self.file, self.text, self.first_line, self.indent)
            for i, v in enumerate(value)
        ]
