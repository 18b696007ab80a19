"""PyTorch distributed checkpoints, without torch: which shards there must be and how long, and whole ``.pt`` files.

``.metadata`` is a pickle. It is never unpickled, as that would run what is in it: its opcodes are read as text.
"""

from __future__ import annotations

import mmap
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types._files import why
from nemotron_dagster.artifacts.types._problems import Problems

_SHARD = re.compile(r"__(\d{1,9})_(\d{1,9})\.distcp")
#: Above this, names alone are read: walking the opcodes takes seconds per megabyte.
_WALKED = 8 * 2**20
_AGAIN = "Copy the iteration again, or use an earlier one."


def check_shards(folder: Path, problems: Problems) -> tuple[int, int]:
    """How many ranks have shards in ``folder``, and the shards' bytes; what is missing or short is a problem."""
    there: dict[str, int] = {}
    for file in sorted(folder.iterdir()):
        if _SHARD.fullmatch(file.name):
            if not file.is_file():
                problems.add(why(file) if not file.exists() else f"{file}: is no regular file. {_AGAIN}")
                continue
            there[file.name] = file.stat().st_size
    wanted = _recorded(folder / ".metadata", problems)
    for name, least in wanted.items():
        if name not in there:
            problems.add(f"{folder / name}: is missing, and .metadata refers to it. {_AGAIN}")
        elif there[name] < least:
            problems.add(f"{folder / name}: has {there[name]:,} of {least:,} bytes: it was truncated. {_AGAIN}")
    for name, size in there.items():
        if size == 0:
            problems.add(f"{folder / name}: is empty. {_AGAIN}")
    ranks = sorted({int(m[1]) for name in there if (m := _SHARD.fullmatch(name))})
    if not there and not wanted:
        problems.add(f"{folder}: has no __<rank>_<part>.distcp shards. {_AGAIN}")
    elif not wanted and len(ranks) <= ranks[-1]:  # nothing says which there must be: they are numbered from 0
        gaps = [r for r in range(min(ranks[-1], 10_000)) if r not in set(ranks)]
        problems.add(f"{folder}: has no shard of rank {', '.join(map(str, gaps[:10]))}. {_AGAIN}")
    return len(ranks), sum(there.values())


def _recorded(metadata: Path, problems: Problems) -> dict[str, int]:
    """Shard -> its least size; empty where ``.metadata`` is damaged."""
    if not os.path.lexists(metadata):
        problems.add(f"{metadata.parent}: has no .metadata, so its save did not end. {_AGAIN}")
        return {}
    try:
        if not metadata.is_file():
            raise OSError(0, "is no regular file")
        with open(metadata, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size > _WALKED:
                with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    ended = data[-1:] == b"."
                    names = {m[0].decode(): 1 for m in re.finditer(_SHARD.pattern.encode(), data)}
            else:
                names, ended = _walk(f.read())
    except OSError as e:
        problems.add(f"{metadata}: cannot be read ({(e.strerror or str(e)).lower()}). {_AGAIN}")
        return {}
    if not ended:
        problems.add(f"{metadata}: is damaged or was truncated. {_AGAIN}")
        return {}
    return names


def _walk(data: bytes) -> tuple[dict[str, int], bool]:
    """Shard -> where its last entry ends; and whether the pickle ends as one does.

    An entry's state is pickled as relative_path, offset and length with their values; texts that were met before
    come from the memo.
    """
    memo: list[str | None] = []
    puts: dict[int, str | None] = {}
    ends: dict[str, int] = {}
    last: str | int | None = None
    key = path = ""
    offset = 0
    ended = False
    try:
        argument: Any
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "MEMOIZE":
                memo.append(last if isinstance(last, str) else None)
                continue
            if name in ("BINPUT", "LONG_BINPUT", "PUT"):
                puts[argument] = last if isinstance(last, str) else None
                continue
            if name in ("BINGET", "LONG_BINGET", "GET"):
                last = puts[argument] if puts else memo[argument]
            elif name in ("SHORT_BINUNICODE", "BINUNICODE", "BININT1", "BININT2", "BININT", "LONG1"):
                last = argument
            else:
                ended = name == "STOP"
                last = None
                continue
            if last in ("relative_path", "offset", "length"):
                key = str(last)
            elif key:
                if key == "relative_path" and isinstance(last, str):
                    path = last
                elif key == "offset" and isinstance(last, int):
                    offset = last
                elif key == "length" and isinstance(last, int) and _SHARD.fullmatch(path):
                    ends[path] = max(ends.get(path, 1), offset + last)
                key = ""
    except Exception:  # whatever bytes that are no pickle make of its reader
        return {}, False
    return ends, ended


def check_archive(file: Path, problems: Problems) -> None:
    """A ``.pt`` file is a zip archive without compression: check that it is whole."""
    try:
        if not file.is_file():
            raise OSError(0, "is no regular file")
        with open(file, "rb") as f:
            if f.read(2) == b"\x80\x02":  # the format before torch 1.6
                return
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                raise zipfile.BadZipFile("has compressed entries, which torch does not write")
            if sum(e.file_size for e in entries) > file.stat().st_size:
                raise zipfile.BadZipFile("its entries are longer than the file")
            bad = archive.testzip()
        if bad is not None:
            raise zipfile.BadZipFile(f"{bad} is damaged")
    except Exception as e:  # zipfile has many for what it cannot read
        problems.add(f"{file}: is no whole torch file ({e}). {_AGAIN}")
