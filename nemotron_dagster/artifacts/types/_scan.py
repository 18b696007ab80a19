"""Reads JSON lines in pieces that several processes can share, in memory that no file's size moves."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from nemotron_dagster.errors import ArtifactError

CHUNK = 1 << 19
LONGEST = 100 << 20
_PACKED = (".gz", ".zst")
#: What reading a damaged file may raise. pyarrow's errors are OSErrors and ValueErrors.
DAMAGE = (OSError, EOFError, zlib.error, ValueError)


@dataclass(frozen=True)
class Piece:
    """The lines of ``file`` that begin at ``start`` or behind it and before ``end``; offsets count unpacked bytes."""

    file: Path
    start: int
    end: int | None  # None: to the end of the file


@dataclass(frozen=True)
class Lines:
    """Whole lines with their line feeds, and as they lie in the file one after the other.

    ``cut``: the last one is the file's last and has no line feed. ``too_long``: instead of lines, this many bytes of
    one that is longer than ``LONGEST``.
    """

    lines: list[bytes]
    body: bytes
    cut: bool = False
    too_long: int = 0


def pieces(files: list[Path], size_each: int) -> list[Piece]:
    """Plain files in ranges of ``size_each`` bytes, packed ones whole."""
    out: list[Piece] = []
    for file in files:
        if file.name.endswith(_PACKED):
            out.append(Piece(file, 0, None))
            continue
        size = file.stat().st_size
        starts = list(range(0, max(size, 1), size_each))
        out += [Piece(file, a, b) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return out


def read(piece: Piece) -> Iterator[Lines]:
    """The piece's lines, some megabytes of them at a time.

    Raises:
        ArtifactError: the file is damaged or cannot be read.
    """
    try:
        with opened(piece.file) as stream:
            yield from _read(cast(IO[bytes], stream), piece)
    except DAMAGE as e:
        if isinstance(e, ArtifactError):
            raise
        raise ArtifactError(
            f"{piece.file}: cannot be read ({first_line(e)}). It may be truncated; make it again."
        ) from e


def opened(file: Path) -> AbstractContextManager[Any]:
    """The file's unpacked bytes."""
    if file.name.endswith(".gz"):
        return gzip.open(file, "rb")
    if file.name.endswith(".zst"):
        import pyarrow as pa  # its reader, unlike zstandard's, says when the last frame is cut

        return cast(AbstractContextManager[Any], pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"))
    return open(file, "rb", buffering=0)


def _read(stream: IO[bytes], piece: Piece) -> Iterator[Lines]:
    first = _first_line_at(stream, piece)
    if first is None:
        return
    for at, body, too_long in _bodies(stream, first):
        if piece.end is not None:
            if at >= piece.end:
                return
            if at + len(body) > piece.end:
                body = body[: body.find(b"\n", piece.end - at - 1) + 1] or body
        if too_long:
            yield Lines([], b"", too_long=too_long)
            continue
        yield Lines(io.BytesIO(body).readlines(), body, not body.endswith(b"\n"))  # seven times as fast as split


def _first_line_at(stream: IO[bytes], piece: Piece) -> int | None:
    """Where the piece's first line begins, with the stream there; None where none does."""
    if not piece.start:
        return 0
    at = piece.start - 1
    stream.seek(at)
    while piece.end is None or at < piece.end:
        chunk = stream.read(CHUNK)
        if not chunk:
            return None
        end = chunk.find(b"\n")
        if end >= 0:
            stream.seek(at + end + 1)
            return at + end + 1
        at += len(chunk)
    return None


def _bodies(stream: IO[bytes], at: int) -> Iterator[tuple[int, bytes, int]]:
    """(offset, whole lines, 0), or (offset, nothing, length) of a line too long to be held."""
    held: list[bytes] = []
    size = 0
    while chunk := bytes(stream.read(CHUNK)):
        end = chunk.rfind(b"\n") + 1
        if not end:
            size += len(chunk)
            held = [*held, chunk] if size <= LONGEST else []
            continue
        if size > LONGEST:
            first = chunk.find(b"\n") + 1
            yield at, b"", size + first
            at += size + first
            body = chunk[first:end]
        else:
            body = b"".join([*held, chunk[:end]])
        held, size = [chunk[end:]], len(chunk) - end
        if body:
            yield at, body, 0
            at += len(body)
    if size > LONGEST:
        yield at, b"", size
    elif size:
        yield at, b"".join(held), 0


def first_line(e: Exception) -> str:
    """An error in one line."""
    return (str(e) or type(e).__name__).splitlines()[0][:200]
