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

CHUNK = 1 << 18  # a block, its lines and its rows stay in the processor's cache
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
    """Whole lines with their line feeds.

    ``cut``: the last one is the file's last and has no line feed. ``too_long``: instead of lines, this many bytes of
    one that is longer than ``LONGEST``.
    """

    lines: list[bytes]
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
    """The piece's lines, some hundred kilobytes of them at a time.

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
    """Blocks of lines, through one buffer: memory that is new to the process costs more than reading into it."""
    at = _first_line_at(stream, piece)
    if at is None:
        return
    memory, held, dropped = _memory(CHUNK), 0, 0  # ``dropped``: bytes of a line that was too long to be held
    while piece.end is None or at < piece.end:
        room = memory.getbuffer()
        got = cast(Any, stream).readinto(room[held : held + CHUNK])
        if not got:
            break
        begin, total = 0, held + got
        whole = _past_last_feed(room, held, total)
        if not whole:
            held = total
            if dropped or held > LONGEST:
                dropped, held = dropped + held, 0
            elif held + CHUNK > len(room):
                memory = _memory(2 * held, room[:held])
            continue
        if dropped:
            begin = _past_first_feed(room, 0)
            yield Lines([], too_long=dropped + begin)
            at, dropped = at + dropped + begin, 0
            if piece.end is not None and at >= piece.end:
                return
        if piece.end is not None and at + whole - begin > piece.end:
            whole = _past_first_feed(room, begin + piece.end - at - 1)
        if whole > begin:
            memory.seek(begin)
            yield Lines(memory.readlines(whole - begin))  # seven times as fast as split
            at += whole - begin
        held = total - whole
        rest = bytes(room[whole:total])
        if len(room) > 8 * CHUNK and held < CHUNK:
            memory = _memory(CHUNK)
            room = memory.getbuffer()
        room[:held] = rest
    else:
        return
    if dropped:
        yield Lines([], too_long=dropped + held)
    elif held:
        yield Lines([bytes(memory.getbuffer()[:held])], cut=True)


def _memory(size: int, first: bytes | memoryview = b"") -> io.BytesIO:
    """A buffer with room for ``size`` bytes and a chunk."""
    memory = io.BytesIO(bytes(size + CHUNK))
    memory.getbuffer()[: len(first)] = first
    return memory


def _past_last_feed(room: memoryview, low: int, high: int) -> int:
    """The offset behind the last line feed of these bytes, found from their end; 0 where there is none."""
    step = 1 << 13
    while high > low:
        begin = max(low, high - step)
        found = bytes(room[begin:high]).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        high, step = begin, 1 << 16
    return 0


def _past_first_feed(room: memoryview, low: int) -> int:
    """The offset behind the first line feed at ``low`` or later; there is one."""
    while (found := bytes(room[low : low + (1 << 16)]).find(b"\n")) < 0:
        low += 1 << 16
    return low + found + 1


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


def first_line(e: Exception) -> str:
    """An error in one line."""
    return (str(e) or type(e).__name__).splitlines()[0][:200]
