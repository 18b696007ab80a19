"""Text and TOML files of unknown make: whatever is wrong with one is a named error with its position.

Standard library only, as `steps list` reads every manifest through it.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dagster.errors import ConfigError, NemotronError
from nemotron_dagster.plain_toml import plain

MAX_TEXT = 16 * 2**20
#: tomllib needs quadratic time for some inputs; a real env.toml or step.toml has a few KiB.
MAX_TOML = 2**20
#: OmegaConf and json recurse several frames per level.
MAX_DEPTH = 60
MAX_KEY_PARTS = 1000
MAX_MESSAGE = 3000

_AT = re.compile(r" ?\(at (?:line (\d+), column (\d+)|end of document)\)")
_HUGE = re.compile(r"\d[\d_]{4300}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, order=True)
class Position:
    """Where something stands in a file; lines and columns count from 1."""

    file: Path
    line: int
    column: int

    def __str__(self) -> str:
        return f"{printable(self.file)}:{self.line}:{self.column}"


def printable(value: object, limit: int = 4096) -> str:
    """``value`` as text for a message: control and direction characters escaped, a very long one without its middle."""
    text = str(value)
    if len(text) > limit:
        tail = limit // 4  # the fix stands last
        text = f"{text[: limit - tail]}… ({len(text):,} characters) …{text[-tail:]}"
    return _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def told(message: object) -> str:
    """A message as it may reach a terminal: no control or direction character but line breaks, and no whole novel."""
    return "\n".join(printable(line, MAX_MESSAGE) for line in str(message).split("\n"))


def read_text(path: Path | str, error: type[NemotronError] = ConfigError, limit: int = MAX_TEXT) -> str:
    """The text of a regular file, without a byte order mark.

    Only a regular file is opened: reading a FIFO or a device could wait for ever.

    Raises:
        error: missing, not a regular file, unreadable, larger than ``limit`` bytes, or not UTF-8.
    """
    try:
        _refuse_special(path, os.stat(path).st_mode, error)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(descriptor)
            _refuse_special(path, about.st_mode, error)
            data = b"" if about.st_size > limit else os.read(descriptor, about.st_size + 1)
            if len(data) != about.st_size:  # too large, or growing, or a file of the kernel's
                with open(descriptor, "rb", closefd=False) as file:
                    data += file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as e:
        why = (e.strerror or type(e).__name__).lower()
        raise error(f"{printable(path)}: cannot be read ({why}). Check the path and its permissions.") from e
    except ValueError as e:
        raise error(f"{printable(path)}: is no path ({e}). Name a file.") from e
    if len(data) > limit:
        raise error(
            f"{printable(path)}: is larger than {limit // 2**20} MiB. Is it the right file? Keep data out of it."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        start = data.rfind(b"\n", 0, e.start) + 1
        column = len(data[start : e.start].decode("utf-8", "replace")) + 1
        byte = f"byte 0x{data[e.start]:02x}"
        raise error(f"{printable(path)}:{line}:{column}: is not UTF-8 text ({byte}). Save it as UTF-8.") from e


def _refuse_special(path: Path | str, mode: int, error: type[NemotronError]) -> None:
    if stat.S_ISDIR(mode):
        raise error(f"{printable(path)}: is a directory, not a file. Remove it or name a file.")
    if not stat.S_ISREG(mode):
        raise error(f"{printable(path)}: is not a regular file (a pipe, socket or device). Copy it into a file.")


def read_toml(path: Path, error: type[NemotronError] = ConfigError) -> dict[str, Any]:
    """The file's tables.

    Raises:
        error: not readable as ``read_text`` says, malformed, or nested too deep; with line and column.
    """
    return parse_toml(read_text(path, error, MAX_TOML), path, error)


def parse_toml(
    text: str, path: Path | str, error: type[NemotronError] = ConfigError, first_line: int = 1, what: str = "is"
) -> dict[str, Any]:
    """The tables of TOML text that begins at ``first_line`` of ``path``; raises as ``read_toml``."""
    found = plain(text)
    if found is not None:
        return found
    name = printable(path)
    for number, line in enumerate(text.split("\n") if text.count(".") > MAX_KEY_PARTS else (), first_line):
        if line.count(".") > MAX_KEY_PARTS and any(p.count(".") > MAX_KEY_PARTS for p in re.split(r"[,=\[\]{}]", line)):
            raise error(f"{name}:{number}:1: a key of more than {MAX_KEY_PARTS} parts. Shorten it.")
    try:
        doc = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        at = _AT.search(str(e))
        if at and at[1]:
            line_number, column = int(at[1]), int(at[2])
        else:
            line_number, column = text.count("\n") + 1, len(text) - text.rfind("\n")
        why = printable(_AT.sub("", str(e)))
        position = f"{name}:{line_number + first_line - 1}:{column}"
        raise error(f"{position}: {what} not valid TOML: {why}. Mend that line.") from e
    except RecursionError as e:
        raise error(f"{name}: nests deeper than {MAX_DEPTH} levels. Flatten it.") from e
    except ValueError as e:  # of int(): a number of thousands of digits
        number = text.count("\n", 0, next((m.start() for m in _HUGE.finditer(text)), 0)) + first_line
        raise error(f"{name}:{number}:1: {what} not valid TOML: a number has too many digits. Mend that line.") from e
    if too_deep(doc):
        raise error(f"{name}: nests deeper than {MAX_DEPTH} levels. Flatten it.")
    return doc


def too_deep(value: Any) -> bool:
    """Whether plain data nests deeper than ``MAX_DEPTH``; found without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:
            return True
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
    return False
