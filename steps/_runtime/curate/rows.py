"""Find JSONL files, cut them into units of work, and read their rows."""

from __future__ import annotations

import glob
import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from _runtime.payload import PayloadError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
UNIT_BYTES = 8 << 20  # a unit's texts are held in memory at once; a compressed file cannot be cut and is one unit


@dataclass(frozen=True)
class Unit:
    """A run of whole lines of one file. ``size`` is -1 for a compressed file, which is read to its end."""

    index: int
    path: str
    start: int
    size: int
    first_line: int


def find_files(patterns: list[str], output_dir: str) -> list[Path]:
    """The JSONL files that files, directories and globs (``**`` included) name, each once, in order.

    Raises:
        PayloadError: a pattern matches nothing, or a file lies in the output directory.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        for path in _expand(pattern):
            found[path.resolve()] = None
    inside = Path(output_dir).resolve()
    for path in found:
        if path.is_relative_to(inside):
            raise PayloadError(
                "config_invalid",
                f"input_glob names {path}, which lies in output_dir {inside}",
                "Point output_dir to another folder, so that a run does not read its own output.",
            )
    return list(found)


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
        if not inside:
            raise _no_match(f"{pattern}: the directory holds no {', '.join(SUFFIXES)} file")
        return inside
    if path.is_file():
        return [path]
    if not glob.has_magic(pattern):
        raise _no_match(f"{pattern}: no such file or directory")
    matched = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    files = [p for p in matched if p.is_file()]
    if not files:
        raise _no_match(f"{pattern}: the glob matches no file")
    return files


def _no_match(message: str) -> PayloadError:
    return PayloadError("input_glob_no_matches", message, "Set input_glob to a JSONL file, a directory or a glob.")


def compressed(path: str | Path) -> bool:
    return str(path).endswith((".gz", ".zst"))


def cut(files: list[Path]) -> list[Unit]:
    """Cut files into units at line ends, so that workers share a large file and line numbers stay known."""
    units: list[Unit] = []
    for path in files:
        size = path.stat().st_size
        if compressed(path):
            units.append(Unit(len(units), str(path), 0, -1, 1))
            continue
        with path.open("rb") as data:
            start, line = 0, 1
            while start < size:
                block = data.read(UNIT_BYTES)
                block += data.readline()
                units.append(Unit(len(units), str(path), start, len(block), line))
                start += len(block)
                line += block.count(b"\n")
    return units


def lines(unit: Unit) -> Iterator[tuple[int, bytes]]:
    """The unit's lines that hold something, with their numbers in the file.

    Raises:
        PayloadError: a compressed file is damaged.
    """
    try:
        with _open(unit) as data:
            for number, line in enumerate(data, unit.first_line):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line := line.strip():
                    yield number, line
    except (gzip.BadGzipFile, EOFError, OSError) as e:
        raise PayloadError("input_unreadable", f"{unit.path}: {e}", "Write the file anew.") from None


def _open(unit: Unit) -> BinaryIO:
    if unit.path.endswith(".gz"):
        return gzip.open(unit.path, "rb")  # type: ignore[return-value]
    if unit.path.endswith(".zst"):
        return _open_zst(unit.path)
    with open(unit.path, "rb") as data:
        data.seek(unit.start)
        return io.BytesIO(data.read(unit.size))


def _open_zst(path: str) -> BinaryIO:
    import zstandard

    class Checked(io.RawIOBase):
        """Turns the library's own error into one that ``lines`` reports."""

        def __init__(self) -> None:
            self.file = open(path, "rb")  # noqa: SIM115 - closed by close()
            self.stream = zstandard.ZstdDecompressor().stream_reader(self.file, read_across_frames=True)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            try:
                return self.stream.readinto(buffer)
            except zstandard.ZstdError as e:
                raise OSError(str(e)) from None

        def close(self) -> None:
            self.file.close()
            super().close()

    return io.BufferedReader(Checked(), 1 << 20)


def parse(line: bytes, path: str, number: int) -> dict[str, Any]:
    """One row.

    Raises:
        PayloadError: the line is not a JSON object; file, line and column are named.
    """
    where = f"{path}:{number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        message = f"{where}: not JSON at column {e.colno}: {e.msg}"
        raise PayloadError("input_not_json", message, "Each line must be one JSON object.") from None
    except UnicodeDecodeError as e:
        message = f"{where}: not UTF-8 at column {e.start + 1}"
        raise PayloadError("input_not_json", message, "Write the file in UTF-8.") from None
    if not isinstance(row, dict):
        message = f"{where}: a JSON {_kind(row)}, not an object"
        raise PayloadError("input_not_json", message, "Each line must be one JSON object.")
    return row


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {str: "string", list: "array", dict: "object", int: "number", float: "number"}[type(value)]


def text_of(row: dict[str, Any], text_field: str, path: str, number: int) -> str:
    """What the filters see of a row: its text field, or the joined contents of its messages.

    Raises:
        PayloadError: the row has neither.
    """
    value = row.get(text_field)
    if isinstance(value, str):
        text = value
    elif isinstance(row.get("messages"), list):
        text = "\n".join(_contents(row["messages"], f"{path}:{number}"))
    else:
        if text_field in row:
            what = f"the row's {text_field} is a JSON {_kind(value)}, and there are no messages"
        else:
            what = f"the row has no {text_field!r} and no messages; its keys: {', '.join(row) or 'none'}"
        recovery = "Set text_field to the key that holds the text."
        raise PayloadError("input_without_text", f"{path}:{number}: {what}", recovery)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which the filters' C code refuses
        text = text.encode("utf-8", "replace").decode()
    return text


def _contents(messages: list[Any], where: str) -> Iterator[str]:
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _bad_message(where, index, "not an object")
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):  # content parts: only text can be filtered
            yield from (p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
        elif content is not None:  # null is a message that holds tool calls only
            raise _bad_message(where, index, f"its content is a JSON {_kind(content)}")


def _bad_message(where: str, index: int, what: str) -> PayloadError:
    recovery = "Messages are objects with a role and a content."
    return PayloadError("input_without_text", f"{where}: messages[{index}]: {what}", recovery)
