"""Rows of a slice in batches of bounded size; what cannot be read as a row is counted, never lost silently."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from _runtime.data_prep import sources
from _runtime.data_prep.plan import Slice
from _runtime.data_prep.rejects import Rejects
from _runtime.payload import PayloadError

BATCH_ROWS = 1024
BATCH_BYTES = 4 << 20
LONGEST = 100 << 20  # bytes of one record
_SKIP = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Rows that were read together.

    Attributes:
        file: path or URL they come from.
        rows: one mapping each.
        at: where each is: byte offset, line or row number, as ``unit`` says ("byte", "line" or "row").
        raw: the JSON text of each, without its line end; empty for Parquet and JSON arrays.
        bytes: read from the file for them.
        read: the local copy that was read, where it is another file.
    """

    file: str
    rows: list[dict[str, Any]]
    at: list[int]
    unit: str
    raw: list[bytes]
    bytes: int
    read: str | None = None

    def reject(self, rejects: Rejects, row: int, reason: str, note: str = "", *, bad: bool = True) -> None:
        """Count row number ``row`` of the batch as rejected (see ``Rejects.add``)."""
        rejects.add(reason, self.file, self.at[row], self.unit, note, bad=bad, read=self.read)


def read(part: Slice, rejects: Rejects, columns: Sequence[str] | None = None) -> Iterator[Batch]:
    """The rows of ``part`` in order.

    Args:
        rejects: counts broken rows: ``not_json``, ``not_an_object``, ``not_utf8``, ``record_too_long``.
        columns: fields that are wanted; of Parquet only these are read. None: all.

    Raises:
        PayloadError: the file is damaged, is UTF-16, or was changed since it was planned.
        BadRow: a broken row where ``rejects`` has the policy ``fail``.
    """
    if part.file.format == "parquet":
        from _runtime.data_prep.rows_parquet import read_parquet  # imports pyarrow

        yield from read_parquet(part, columns)
    elif part.file.format == "json" and part.staged is None and is_array(part.file):
        yield from _array(part, rejects)
    else:
        yield from _jsonl(part, rejects)


def blocks(part: Slice, size: int) -> Iterator[tuple[int, int]]:
    """The [start, stop) ranges of a file of ``size`` bytes or rows that belong to the slice; neighbours are joined."""
    size = size if part.end is None else min(size, part.end)
    if part.of == 1:
        yield 0, size
        return
    start = stop = -1
    number = 0
    turn = 0
    while number * part.block < size:
        if number % part.of == 0:  # each round is dealt from another shard on, so that no pattern of the file repeats
            turn = random.Random(f"{part.seed}:{part.file.name}:{number // part.of}").randrange(part.of)
        mine = number - number % part.of + (part.index - turn) % part.of
        low, high = mine * part.block, min(size, (mine + 1) * part.block)
        if low < high:
            if low != stop:
                if start >= 0:
                    yield start, stop
                start = low
            stop = high
        number += part.of - number % part.of
    if start >= 0:
        yield start, stop


def _jsonl(part: Slice, rejects: Rejects) -> Iterator[Batch]:
    """Lines as rows. A line belongs to the block that it begins in."""
    cut = part.of > 1
    batch: list[tuple[int, dict[str, Any], bytes]] = []
    size = 0
    unit = "byte" if cut else "line"
    for at, line in _lines(part):
        if line is None:
            rejects.add("record_too_long", part.file.path, at, unit, f"over {LONGEST >> 20} MB", read=part.staged)
            continue
        row = _parse(line, at, unit, part, rejects)
        if row is not None:
            batch.append((at, row, line))
            size += len(line) + 1
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield _batch(part, batch, unit, size)
            batch, size = [], 0
    if batch:
        yield _batch(part, batch, unit, size)


def _batch(part: Slice, batch: list[tuple[int, dict[str, Any], bytes]], unit: str, size: int) -> Batch:
    at, rows, raw = [b[0] for b in batch], [b[1] for b in batch], [b[2] for b in batch]
    return Batch(part.file.path, rows, at, unit, raw, size, part.staged)


def _lines(part: Slice) -> Iterator[tuple[int, bytes | None]]:
    """(offset or line number, line) of every line that is not blank; None for one that is too long."""
    try:
        if part.of == 1:
            with sources.open_rows(part.file) as stream:
                yield from _numbered(stream, part)
            return
        with sources.open_raw(part.file) if part.staged is None else open(part.staged, "rb") as stream:
            size = stream.seek(0, 2)
            for start, stop in blocks(part if part.staged is None else replace(part, end=None), size):
                yield from _within(stream, start, stop, part)
    except (OSError, EOFError) as e:
        raise sources.unreadable(part.file, str(e)) from None


def _numbered(stream: BinaryIO, part: Slice) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers, from the first one on, up to the slice's end."""
    plain = part.file.format in ("jsonl", "json")
    offset = rows = number = 0
    while part.end is None or (offset if plain else rows) < part.end:
        line, length = _line(stream)
        if not length:
            return
        number += 1
        if offset == 0:
            line = _first(line, part)
        offset += length
        if line is None or not line.isspace():
            rows += 1
            yield number, line if line is None else line.strip()


def lengths(part: Slice) -> Iterator[tuple[int, bool]]:
    """Length of every line of a whole file, decompressed, and whether it is blank.

    Raises:
        PayloadError: the file is damaged.
    """
    try:
        with sources.open_rows(part.file) as stream:
            while True:
                line, length = _line(stream)
                if not length:
                    return
                yield length, line is not None and line.isspace()
    except (OSError, EOFError) as e:
        raise sources.unreadable(part.file, str(e)) from None


def _within(stream: BinaryIO, start: int, stop: int, part: Slice) -> Iterator[tuple[int, bytes | None]]:
    """Lines that begin in [start, stop), with their offsets."""
    at = start
    stream.seek(max(0, start - 1))
    if start:  # from the byte before: where that ends a line, the next one begins exactly at `start`
        _, length = _line(stream)
        at = start - 1 + length
    while at < stop:
        line, length = _line(stream)
        if not length:
            return
        if at == 0:
            line = _first(line, part)
        if line is None or not line.isspace():
            yield at, line if line is None else line.strip()
        at += length


def _line(stream: BinaryIO) -> tuple[bytes | None, int]:
    """The next line and its length; None for one that is too long, of which little is ever held in memory."""
    line = stream.readline(LONGEST + 1)
    if len(line) <= LONGEST:
        return line, len(line)
    length = len(line)
    while not line.endswith(b"\n") and (line := stream.readline(_SKIP)):
        length += len(line)
    return None, length


def _first(line: bytes | None, part: Slice) -> bytes | None:
    if line is not None and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise PayloadError(
            "input_encoding", f"{part.file.path}: is UTF-16", "Write it in UTF-8: iconv -f UTF-16 -t UTF-8 FILE."
        )
    return line if line is None else line.removeprefix(b"\xef\xbb\xbf") or b"\n"


def _parse(line: bytes, at: int, unit: str, part: Slice, rejects: Rejects) -> dict[str, Any] | None:
    import orjson

    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            row = json.loads(line)  # also takes NaN, large numbers and lone surrogates
        except UnicodeDecodeError as e:
            rejects.add("not_utf8", part.file.path, at, unit, f"column {e.start + 1}", read=part.staged)
            return None
        except (ValueError, RecursionError) as e:
            rejects.add("not_json", part.file.path, at, unit, str(e)[:120], read=part.staged)
            return None
    if isinstance(row, dict):
        return row
    rejects.add("not_an_object", part.file.path, at, unit, f"a JSON {type(row).__name__}", read=part.staged)
    return None


def is_array(file: sources.SourceFile) -> bool:
    """Whether a ``.json`` file is one array, rather than a row a line."""
    with sources.open_raw(file) as stream:
        return stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def array_rows(file: sources.SourceFile) -> list[Any]:
    """The elements of a JSON array.

    Raises:
        PayloadError: it is no array, by line and column.
    """
    with sources.open_raw(file) as stream:
        data = stream.read()
    try:
        rows = json.loads(data)
    except json.JSONDecodeError as e:
        message = f"{file.path}:{e.lineno}: not JSON at column {e.colno}: {e.msg}"
        raise PayloadError("input_not_json", message, "Mend the file, or write one row a line (.jsonl).") from None
    except UnicodeDecodeError as e:
        raise PayloadError("input_encoding", f"{file.path}: not UTF-8 at byte {e.start}", "Write UTF-8.") from None
    if not isinstance(rows, list):
        raise PayloadError("input_not_json", f"{file.path}: not an array of rows", "Write one row a line (.jsonl).")
    return rows


def _array(part: Slice, rejects: Rejects) -> Iterator[Batch]:
    rows = array_rows(part.file)[: part.end]
    for first in range(0, len(rows), BATCH_ROWS):
        found, at = [], []
        for number, row in enumerate(rows[first : first + BATCH_ROWS], first + 1):
            if isinstance(row, dict):
                found.append(row)
                at.append(number)
            else:
                note = f"a JSON {type(row).__name__}"
                rejects.add("not_an_object", part.file.path, number, "row", note)
        yield Batch(part.file.path, found, at, "row", [], part.file.size * len(found) // max(1, len(rows)))
