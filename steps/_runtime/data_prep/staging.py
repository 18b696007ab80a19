"""Plain local copies of files that several shards share and that cannot be read in parts where they lie.

A compressed file or a JSON array can only be read from its beginning, and an object store is best read once. Such a
file is written out as plain JSONL below the output directory, and removed when all shards are done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from _runtime.data_prep import rows, sources
from _runtime.data_prep.plan import Shard, Slice, digest
from _runtime.data_prep.shards import FULL, disk_full
from _runtime.payload import PayloadError

FOLDER = ".staged"
_BLOCK = 4 << 20


def stage(shards: Sequence[Shard], output_dir: Path) -> tuple[Shard, ...]:
    """The shards, reading staged copies where their files need one; copies of a killed run are used again.

    Raises:
        PayloadError: a file that is damaged or cannot be had; a full disk.
    """
    needed = {s.file.path: s for shard in shards for s in shard.slices if _needs(s)}
    if not needed:
        return tuple(shards)
    folder = output_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(len(needed), len(os.sched_getaffinity(0)))) as threads:
        copies = dict(zip(needed, threads.map(lambda s: _copy(s, folder), needed.values()), strict=True))
    return tuple(replace(shard, slices=tuple(_staged(s, copies) for s in shard.slices)) for shard in shards)


def remove(output_dir: Path) -> None:
    """Remove the copies."""
    shutil.rmtree(output_dir / FOLDER, ignore_errors=True)


def _staged(part: Slice, copies: Mapping[str, str]) -> Slice:
    return replace(part, staged=copies[part.file.path]) if part.of > 1 and part.file.path in copies else part


def _needs(part: Slice) -> bool:
    file = part.file
    if part.of == 1 or file.format == "parquet":
        return False
    if file.format == "json" and rows.is_array(file):
        return True
    return file.format.endswith((".gz", ".zst")) or not (sources.is_local(file) or file.path.startswith("hf://"))


def _copy(part: Slice, folder: Path) -> str:
    target = folder / f"{digest([part.file.path, part.file.identity, part.end])}.jsonl"
    if target.is_file():
        return str(target)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as out:
            if part.file.format == "json" and rows.is_array(part.file):
                _write_array(part, out)
            else:
                _write_lines(part, out)
        os.replace(temporary, target)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        if e.errno in FULL:
            raise disk_full(str(folder), e) from None
        raise sources.unreadable(part.file, str(e)) from None
    except EOFError as e:
        raise sources.unreadable(part.file, str(e)) from None
    except PayloadError:
        temporary.unlink(missing_ok=True)
        raise
    return str(target)


def _write_lines(part: Slice, out: BinaryIO) -> None:
    """The file's bytes, up to the slice's end: a byte offset of a plain file, rows of a compressed one."""
    left = part.end
    with sources.open_rows(part.file) as stream:
        if left is not None and part.file.format.endswith((".gz", ".zst")):
            while left and (line := stream.readline()):
                out.write(line)
                left -= not line.isspace()
            return
        while block := stream.read(_BLOCK if left is None else min(left, _BLOCK)):
            out.write(block)
            left = None if left is None else left - len(block)


def _write_array(part: Slice, out: BinaryIO) -> None:
    import json

    for row in rows.array_rows(part.file)[: part.end]:
        out.write(json.dumps(row).encode() + b"\n")
