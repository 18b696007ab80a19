"""Publishing to an object store, which has no rename.

    <root>/<asset key>/<job key>/data-<content>/...    the files, uploaded first
    <root>/<asset key>/<job key>/artifact.json         written last, and only where there is none

Files lie in a directory named by their content, so that publishers of one key never write over each other: whoever
puts the manifest first has published, and half an upload has no manifest and is never loaded. An upload that was cut
short goes on where it stopped.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts.manifest import FILE, ArtifactRef, Manifest, encoded, read
from nemotron_dagster.artifacts.places import failures, unreachable
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    from upath import UPath

_UPLOADS = 16  # at a time; s3fs sends the parts of one large file in parallel too
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP}
_BUSY = 5  # attempts at a write that a store turned down because of another's at the same instant


def publish(
    output: Path, journal: Path, final: UPath, manifest: Manifest, progress: Callable[[int], None] | None = None
) -> ArtifactRef:
    """Upload ``output``, then its manifest; ``journal`` keeps what was uploaded. Nothing local is removed.

    Returns what is published: another's artifact, where that came first and has the same content.

    Raises:
        ArtifactError: another's came first and differs, or the store cannot be reached.
    """
    manifest = replace(manifest, data=f"data-{manifest.content[:16]}")
    data = final / manifest.data
    try:
        _upload(output, journal, data, manifest, progress)
        if create(final / FILE, encoded(manifest)):
            _remove(final, lambda name: name.startswith("data-") and not name.startswith(f"{manifest.data}/"))
            return read(final)
        winner = read(final)
        if winner.manifest.content == manifest.content:
            return winner
        _remove(final, lambda name: name.startswith(f"{manifest.data}/"))
    except failures() as e:
        raise ArtifactError(f"{unreachable(final, e)} What is uploaded is kept; running again continues.") from e
    raise ArtifactError(
        f"{final}: another process published it meanwhile, with other content. Nothing was overwritten; what was to be "
        f"published lies in {output}."
    )


def _upload(
    output: Path, journal: Path, data: UPath, manifest: Manifest, progress: Callable[[int], None] | None
) -> None:
    """Upload what the store lacks: a file counts as there when it is, in size and version, what the journal says."""
    fs, prefix = data.fs, data.path.rstrip("/") + "/"
    there = {name.removeprefix(prefix): about for name, about in fs.find(data.path, detail=True).items()}
    sent = _sent(journal)
    lock = Lock()

    def send(item: tuple[str, list[Any]]) -> None:
        name, (size, digest) = item
        about = there.get(name)
        if about is None or sent.get(prefix + name) != [digest, _version(about)] or about.get("size") != size:
            fs.put_file(str(output / name), prefix + name)
            about = fs.info(prefix + name)
            if about.get("size") != size:
                raise OSError(f"{name}: {about.get('size')} bytes arrived, not {size}")
            with lock, open(journal, "a", encoding="utf-8") as out:
                out.write(json.dumps([prefix + name, digest, _version(about)]) + "\n")
        if progress:
            progress(size)

    files = [(n, row) for n, row in manifest.files.items() if not str(row[1]).startswith("->")]
    with ThreadPoolExecutor(_UPLOADS) as pool:
        for done in [pool.submit(send, f) for f in files]:
            done.result()


def _sent(journal: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    with suppress(FileNotFoundError):
        for line in journal.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the last line of a killed process
                name, digest, version = json.loads(line)
                found[name] = [digest, version]
    return found


def _version(about: dict[str, Any]) -> str:
    """What changes when an object is written anew: its ETag or generation, where the store tells one."""
    for key in ("ETag", "etag", "generation", "md5Hash", "created"):
        value = about.get(key)
        if value is not None:  # some tell a time as a number in a listing, as a datetime of one file
            return str(value.timestamp() if hasattr(value, "timestamp") else value)
    return ""


def create(file: UPath, data: bytes) -> bool:
    """Write ``file`` only where there is none, in one conditional request; whether it was written.

    A store without such requests is asked first and read afterwards, which is less: two that write in the same instant
    may both believe they lost, never both that they won with different data.

    Raises:
        OSError: the store cannot be reached.
    """
    for attempt in range(_BUSY):
        try:
            file.fs.pipe_file(file.path, data, mode="create")
            return True
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError, ValueError):
            break
        except OSError as e:
            if e.errno == errno.EINVAL and file.fs.exists(file.path):
                return False
            if e.errno in _UNSUPPORTED:
                break
            if e.errno != errno.EBUSY or attempt == _BUSY - 1:
                raise
    return False if file.fs.exists(file.path) else _put_and_look(file, data)


def snapshot(file: UPath) -> tuple[bytes, str]:
    """The file's bytes, and the version that they have or that they replaced; empty where there is none.

    Raises:
        ArtifactError: the store cannot be reached.
    """
    try:
        version = _version(file.fs.info(file.path))
        return bytes(file.fs.cat_file(file.path)), version
    except FileNotFoundError:
        return b"", ""
    except failures() as e:
        raise unreachable(file, e) from e


def swap(file: UPath, version: str, data: bytes) -> bool:
    """Replace ``file`` if it still has ``version`` (empty: if there is none); whether it was.

    Raises:
        ArtifactError: the store cannot be reached.
    """
    try:
        if not version:
            return create(file, data)
        if file.protocol in ("s3", "s3a"):
            try:
                file.fs.pipe_file(file.path, data, IfMatch=version)
                return True
            except OSError as e:
                if e.errno in (errno.EINVAL, errno.EBUSY, errno.ENOENT):
                    return False
                if e.errno not in _UNSUPPORTED:
                    raise
        return False if snapshot(file)[1] != version else _put_and_look(file, data)
    except failures() as e:
        raise unreachable(file, e) from e


def _put_and_look(file: UPath, data: bytes) -> bool:
    file.fs.pipe_file(file.path, data)
    return bool(file.fs.cat_file(file.path) == data)


def _remove(final: UPath, chosen: Callable[[str], bool]) -> None:
    """Remove files below ``final``; what cannot be removed now, `nemotron artifacts gc` finds."""
    prefix = final.path.rstrip("/") + "/"
    with suppress(*failures()):
        for _ in range(_BUSY):
            names = [n for n in final.fs.find(final.path) if chosen(n.removeprefix(prefix))]
            with suppress(FileNotFoundError):  # another publisher removes the same files: the rest is still there
                if names:
                    final.fs.rm(names)
                return


def remove(directory: UPath) -> None:
    """Remove a published artifact, its manifest first: what is left of a removal cut short is never loaded.

    Raises:
        ArtifactError: the store cannot be reached.
    """
    try:
        with suppress(FileNotFoundError):
            directory.fs.rm_file((directory / FILE).path)
        names = directory.fs.find(directory.path)
        if names:
            directory.fs.rm(names)
    except failures() as e:
        raise unreachable(directory, e) from e
