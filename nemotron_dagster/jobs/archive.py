"""The files that travel with a job, and the one archive they become: the same files always give the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nemotron_dagster.errors import PreflightError
from nemotron_dagster.files import printable

_HOPS = 40  # symlinks followed before it is a circle, as Linux has it
_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Entry:
    """One file or symlink of the archive.

    Attributes:
        source: where its bytes are read.
        link: a symlink's target, relative to where it lies.
        watched: the file on the submitter's disk that must not change meanwhile, and how it was when it was found.
    """

    source: Path
    size: int = 0
    executable: bool = False
    link: str | None = None
    watched: tuple[Path, _Stamp] | None = None


def entry(path: Path, base: Path) -> Entry:
    """A file or symlink as it lies on disk; an absolute link into ``base`` becomes a relative one.

    Raises:
        PreflightError: it is neither, or cannot be read.
    """
    try:
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            target = os.readlink(path)
            if target.startswith("/") and Path(target).is_relative_to(base):
                target = os.path.relpath(target, path.parent)
            return Entry(path, link=target, watched=(path, _stamp(about)))
    except OSError as e:
        raise _changed(path) from e
    if not stat.S_ISREG(about.st_mode):
        raise PreflightError(
            f"{printable(path)}: is a pipe, socket or device, which cannot travel with a job. Remove it."
        )
    if not os.access(path, os.R_OK):
        raise PreflightError(f"{printable(path)}: cannot be read. Check its permissions, or move it out of there.")
    return Entry(path, about.st_size, bool(about.st_mode & 0o100), watched=(path, _stamp(about)))


def walk(top: Path, enter: Callable[[str], bool]) -> Iterator[str]:
    """Every file and symlink below ``top``, relative to it; only into folders of which ``enter`` wants the name.

    Raises:
        PreflightError: a folder cannot be read.
    """
    folders = [""]
    while folders:
        inner = folders.pop()
        try:
            with os.scandir(top / inner) as found:
                for item in found:
                    name = f"{inner}/{item.name}" if inner else item.name
                    if not item.is_dir(follow_symlinks=False):
                        yield name
                    elif enter(item.name):
                        folders.append(name)
        except OSError as e:
            why = (e.strerror or type(e).__name__).lower()
            raise PreflightError(f"{printable(top / inner)}: cannot be read ({why}). Check its permissions.") from e


def extract(archive: Path, into: Path) -> dict[str, Entry]:
    """The files and symlinks of a tar archive, unpacked below ``into``.

    Raises:
        OSError, tarfile.TarError: the archive cannot be read or unpacked.
    """
    found: dict[str, Entry] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = os.path.normpath(member.name)
            if name.startswith(("/", "../")) or name in (".", ".."):
                continue
            if member.issym():
                found[name] = Entry(archive, link=member.linkname)
            elif member.isfile() and (data := tar.extractfile(member)) is not None:
                place = into / str(len(found))  # not by its name: a link on its way could lead out of here
                with open(place, "wb") as out:
                    while block := data.read(1 << 20):
                        out.write(block)
                found[name] = Entry(place, member.size, bool(member.mode & 0o100))
    return found


def check_links(entries: Mapping[str, Entry]) -> None:
    """Refuse symlinks that lead nowhere on the target.

    Raises:
        PreflightError: naming the links and the way out.
    """
    folders = {parent for name in entries for parent in parents(name)}
    lost = [(n, e.link) for n, e in sorted(entries.items()) if e.link is not None and not _lands(n, entries, folders)]
    if lost:
        listed = "\n".join(f"  {printable(n)} -> {printable(link)}" for n, link in lost[:10])
        more = f"\n  and {len(lost) - 10} more" if len(lost) > 10 else ""
        raise PreflightError(
            f"symlinks point to what does not travel with the job:\n{listed}{more}\n"
            "Put a copy in their place, or name the path on the target in the config instead."
        )


def check_size(entries: Mapping[str, int], limit_mb: int) -> None:
    """Refuse more than ``limit_mb`` MB before compression.

    Raises:
        PreflightError: naming the largest files.
    """
    total = sum(entries.values())
    if total > limit_mb * 1_000_000:
        largest = sorted(entries.items(), key=lambda item: (-item[1], item[0]))[:5]
        listed = "\n".join(f"  {size / 1e6:,.1f} MB  {printable(name)}" for name, size in largest)
        raise PreflightError(
            f"the code that travels with the job has {total / 1e6:,.1f} MB; packager_max_mb = {limit_mb}. "
            f"Its largest files:\n{listed}\n"
            "Keep data out of the code (a path on the target's storage in the config), or raise packager_max_mb."
        )


def write(entries: Mapping[str, Entry], into: Path) -> Path:
    """``<into>/<sha256[:16] of its bytes>.tar.gz``: sorted, without times and owners; an identical one is kept.

    Raises:
        PreflightError: a file changed meanwhile, or ``into`` cannot be written.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".packing-", dir=into)
    except OSError as e:
        raise PreflightError(f"{into}: cannot be written ({e.strerror}). Free space or set NEMOTRON_HOME.") from e
    try:
        with open(descriptor, "w+b") as file:
            with (
                gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for path in sorted(entries, key=os.fsencode):
                    _add(tar, path, entries[path])
            _check_unchanged(entries)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        final = into / f"{digest[:16]}.tar.gz"
        os.replace(name, final)
        return final
    except OSError as e:
        raise PreflightError(f"{into}: cannot be written ({e.strerror or e}). Free space or set NEMOTRON_HOME.") from e
    finally:
        Path(name).unlink(missing_ok=True)


def parents(name: str) -> Iterator[str]:
    """The folders above a name, the innermost first."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _add(tar: tarfile.TarFile, path: str, found: Entry) -> None:
    info = tarfile.TarInfo(path)
    if found.link is not None:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, found.link, 0o777
        tar.addfile(info)
        return
    info.size, info.mode = found.size, 0o755 if found.executable else 0o644
    try:
        source = os.open(found.source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # what was a file may be a pipe now
    except OSError as e:
        raise _changed(found.source) from e
    with open(source, "rb") as data:
        if os.fstat(source).st_size != found.size or not stat.S_ISREG(os.fstat(source).st_mode):
            raise _changed(found.source)
        try:
            tar.addfile(info, data)
        except OSError as e:
            if e.errno is not None:  # of the archive's disk
                raise
            raise _changed(found.source) from e  # it ended early


def _check_unchanged(entries: Mapping[str, Entry]) -> None:
    for found in entries.values():
        if found.watched is not None:
            path, stamp = found.watched
            try:
                same = _stamp(path.lstat()) == stamp
            except OSError:
                same = False
            if not same:
                raise _changed(path)


def _stamp(about: os.stat_result) -> _Stamp:
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _changed(path: Path) -> PreflightError:
    return PreflightError(
        f"{printable(path)}: changed while the code was packed; nothing was submitted. Run it again when it is at rest."
    )


def _lands(name: str, entries: Mapping[str, Entry], folders: set[str]) -> bool:
    """Whether following the symlink ends at a file or folder of the archive."""
    todo = deque(name.split("/"))
    done: list[str] = []
    hops = 0
    while todo:
        part = todo.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            if not done:
                return False
            done.pop()
            continue
        done.append(part)
        found = entries.get("/".join(done))
        if found is not None and found.link is not None:
            hops += 1
            if hops > _HOPS or found.link.startswith("/"):
                return False
            done.pop()
            todo.extendleft(reversed(found.link.split("/")))
    path = "/".join(done)
    return not path or path in entries or path in folders
