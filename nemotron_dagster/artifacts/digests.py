"""Digests of an artifact's files: xxh3-64, in threads, at the speed of the disk.

What a resumed job left unchanged is not read again: its digests are kept beside the staging directory. They are used
only before publication; whoever verifies a published artifact reads every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "artifact.json"
#: Fits the second-level cache; a larger buffer is slower. xxhash lets go of the GIL while it works through one.
_BUFFER = 1 << 20
_SMALL = 1 << 16  # up to here, one read into a new object costs less than the buffer's bookkeeping
#: A file younger than this when its digest was taken may change again without its time changing.
_SETTLED = 2 * 10**9
_LOCAL = threading.local()

Table = dict[str, list[Any]]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class _Entry:
    name: str
    path: str
    size: int
    stamp: tuple[int, ...]
    link: bool


def tally(directory: Path, cache: Path | None = None, progress: Progress | None = None) -> tuple[Table, str, int]:
    """Digest every file below ``directory`` but its manifest: the files table, its digest, and the total bytes.

    ``cache`` is a file that keeps the digests for the next call; a file whose device, inode, size and times are what
    they were then is not read. ``progress`` is told the bytes of each file as it is done.

    Raises:
        OSError: a file cannot be read, or is neither a file nor a link.
    """
    entries = sorted(_walk(directory, ""), key=lambda e: e.name.split("/"))
    known = _load(cache)
    started = time.time_ns()

    def digest(entry: _Entry) -> str:
        if entry.link:
            return f"-> {os.readlink(entry.path)}"
        kept = known.get(entry.name)
        found = str(kept[1]) if kept is not None and tuple(kept[0]) == entry.stamp else file_digest(entry.path)
        if progress:
            progress(entry.size)
        return found

    with ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(digest, entries))
    if cache is not None:
        oldest = started - _SETTLED
        settled = zip(entries, digests, strict=True)
        _keep(cache, {e.name: [e.stamp, d] for e, d in settled if not e.link and max(e.stamp[3:]) < oldest})
    table: Table = {e.name: [0 if e.link else e.size, d] for e, d in zip(entries, digests, strict=True)}
    return table, content_digest(table), sum(row[0] for row in table.values())


def content_digest(table: Table) -> str:
    """The digest of a files table: equal for artifacts of equal content."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """xxh3-64 of a file's bytes, as 16 hexadecimal digits."""
    import xxhash

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size <= _SMALL:
            data = os.read(descriptor, _SMALL + 1)
            if len(data) <= _SMALL and not os.read(descriptor, 1):
                return str(xxhash.xxh3_64_hexdigest(data))
            os.lseek(descriptor, 0, os.SEEK_SET)
        buffer: memoryview = _LOCAL.__dict__.setdefault("buffer", memoryview(bytearray(_BUFFER)))
        state = xxhash.xxh3_64()
        while count := os.readv(descriptor, [buffer]):
            state.update(buffer[:count])
        return state.hexdigest()
    finally:
        os.close(descriptor)


def _walk(directory: str | Path, prefix: str) -> Iterator[_Entry]:
    with os.scandir(directory) as found:
        for entry in found:
            name = prefix + entry.name
            if name == MANIFEST:
                continue
            if entry.is_symlink():
                yield _Entry(name, entry.path, 0, (), True)
            elif entry.is_dir():
                yield from _walk(entry.path, f"{name}/")
            else:
                about = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(about.st_mode):
                    raise OSError(None, "is a pipe, socket or device; remove it", entry.path)
                stamp = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
                yield _Entry(name, entry.path, about.st_size, stamp, False)


def _load(cache: Path | None) -> dict[str, Any]:
    if cache is None:
        return {}
    try:
        found = json.loads(cache.read_bytes())
        return {k: v for k, v in found.items() if isinstance(v, list) and len(v) == 2 and isinstance(v[0], list)}
    except (OSError, ValueError, AttributeError):
        return {}


def _keep(cache: Path, rows: dict[str, Any]) -> None:
    """Keep the digests; failing to costs only time."""
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(rows), encoding="utf-8")
        os.replace(temporary, cache)
    except OSError:
        temporary.unlink(missing_ok=True)
