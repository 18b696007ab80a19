"""Files to and from where jobs run: many in one stream, each whole under its name or not there at all."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import shlex
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from nemotron_dagster.errors import TargetError

PARTIAL = ".nemotron-partial"
_LAST = ".nemotron-last"  # ends what is sent: tar itself takes a stream that ends between two files for a whole one
_BATCH = 32 << 20


def unpack_script(directory: str) -> str:
    """Shell: unpack the tar on stdin beside the files it replaces, in a folder of our own, and rename them one by one.

    The umask of the other side holds, as for files made by hand there.
    """
    return f"""\
set -e
mkdir -p -- {shlex.quote(directory)}
cd -- {shlex.quote(directory)}
t=$(mktemp -d "$PWD/.put.XXXXXXXX")
trap 'rm -rf -- "$t"' EXIT
trap 'exit 1' HUP INT TERM
tar -xf - --no-same-owner --no-same-permissions -C "$t"
cd -- "$t"
rm -- {_LAST}
find . -mindepth 1 -type d -exec sh -c 'for d; do mkdir -p -- "../$d" || exit 1; done' sh {{}} +
find . ! -type d -exec sh -c 'for f; do mv -fT -- "$f" "../$f" || exit 1; done' sh {{}} +
"""


def check(files: Mapping[str, bytes | Path]) -> None:
    """What can be seen before anything is sent.

    Raises:
        TargetError: a name leaves the directory, or a Path is not there.
    """
    for name, content in files.items():
        if name.startswith("/") or ".." in PurePosixPath(name).parts or name in ("", "."):
            raise TargetError(f"{name!r}: not a name within a directory. Name files relative to it.")
        if isinstance(content, Path) and not content.exists():
            raise TargetError(f"{content}: not there. Name what is to be sent.")


def pack(files: Mapping[str, bytes | Path], modes: Mapping[str, int], out: BinaryIO) -> None:
    """Write a tar of ``files``, by name; a Path may be a folder.

    Links stay links where they stay below their folder; others are sent as what they point to.

    Raises:
        TargetError: something is neither file nor folder, or gone.
    """
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, bufsize=1 << 18) as tar:
        for name, content in files.items():
            if isinstance(content, bytes):
                _add(tar, name, modes.get(name, 0o644), len(content), time.time(), io.BytesIO(content))
            else:
                for inner, path in _walk(content, name, content.resolve(), ()):
                    _add_path(tar, inner, path, content.resolve(), modes)
        _add(tar, _LAST, 0o600, 0, 0, io.BytesIO())


def _walk(path: Path, name: str, top: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """``(name, path)`` of a folder and all below it; links to folders elsewhere are entered, once on a way."""
    yield name, path
    real = path.resolve()
    if path.is_dir() and not (_stays(path, top) and path != top and path.is_symlink()) and real not in above:
        for child in sorted(path.iterdir()):
            yield from _walk(child, f"{name}/{child.name}", top, (*above, real))


def _stays(link: Path, top: Path) -> bool:
    """Whether a link is relative and leads to a place below ``top``: it is true on the other side as well."""
    return link.is_symlink() and not os.readlink(link).startswith("/") and link.resolve().is_relative_to(top)


def _add_path(tar: tarfile.TarFile, name: str, path: Path, top: Path, modes: Mapping[str, int]) -> None:
    if path.resolve() != top and _stays(path, top):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, os.readlink(path)
        tar.addfile(link)
    elif path.is_dir():
        folder = tarfile.TarInfo(name)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
    elif path.is_file():
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            _add(tar, name, modes.get(name, found.st_mode & 0o777), found.st_size, found.st_mtime, file)
    else:
        raise TargetError(f"{path}: neither a file nor a folder, or not there. Name what is to be sent.")


def _add(tar: tarfile.TarFile, name: str, mode: int, size: int, changed: float, content: BinaryIO | io.BytesIO) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.mtime = mode, size, int(changed)
    tar.addfile(info, content)


# From there to here


@dataclass(frozen=True)
class Entry:
    """Something in a directory tree: kind ``f``, ``d`` or ``l``, its path in the tree, and where a link leads."""

    kind: str
    size: int
    changed: float
    path: str
    link: str

    @property
    def digest(self) -> str:
        """A name for one state of a file."""
        return hashlib.sha256(os.fsencode(f"{self.path}\0{self.size}\0{self.changed}")).hexdigest()[:32]


def list_script(remote: str) -> str:
    """Shell: what is in the tree, in the form that ``entries`` reads. Links are not followed."""
    fields = r"%y %s %T@ %P\0%l\0"
    kinds = r"\( -type f -o -type d -o -type l \)"
    return f"cd -- {shlex.quote(remote)} && find . -mindepth 1 -name {PARTIAL} -prune -o {kinds} -printf '{fields}'"


def entries(listed: bytes, exclude: Sequence[str]) -> list[Entry]:
    """The tree, folders before what is in them, without what ``exclude`` names."""
    parts = os.fsdecode(listed).split("\0")[:-1]
    found = []
    for head, link in zip(parts[::2], parts[1::2], strict=True):
        kind, size, changed, path = head.split(" ", 3)
        if not excluded(path, exclude):
            found.append(Entry(kind, int(size), float(changed), path, link))
    return sorted(found, key=lambda e: e.path)


def excluded(path: str, patterns: Sequence[str]) -> bool:
    """Whether one of rsync's patterns leaves a path out: ``/a/b*`` counts from the top, ``*.tmp`` at any depth."""
    parts = path.split("/")
    for pattern in patterns:
        wanted = pattern.strip("/").split("/")
        starts = (0,) if pattern.startswith("/") else range(len(parts))
        for start in starts:
            window = parts[start : start + len(wanted)]
            if len(window) == len(wanted) and all(map(fnmatch.fnmatchcase, window, wanted)):
                return True
    return False


def safe_link(entry: Entry) -> bool:
    """Whether a link stays within its tree, by its text alone."""
    if entry.link.startswith("/"):
        return False
    depth = len(PurePosixPath(entry.path).parts) - 1
    for part in PurePosixPath(entry.link).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True


def batches(files: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Files in groups that fit into memory; one that does not is a group of its own."""
    batch: list[Entry] = []
    for file in files:
        if batch and sum(f.size for f in batch) + file.size > _BATCH:
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def is_large(batch: Sequence[Entry]) -> bool:
    """Whether it has to be had piece by piece."""
    return len(batch) == 1 and batch[0].size > _BATCH


def tar_script(remote: str) -> str:
    """Shell: a tar of the files whose names are on stdin."""
    return f"cd -- {shlex.quote(remote)} && exec tar --null --no-recursion -T - -cf -"


def piece_script(remote: str, path: str, offset: int) -> str:
    """Shell: the next bytes of a large file."""
    file = shlex.quote(f"./{path}")
    return f"cd -- {shlex.quote(remote)} && tail -c +{offset + 1} {file} | head -c {_BATCH}"


def have(local: Path, entry: Entry) -> bool:
    """Whether a file is here already, by size and time."""
    path = local / entry.path
    try:
        found = path.lstat()
    except OSError:
        return False
    regular = path.is_file() and not path.is_symlink()
    return regular and found.st_size == entry.size and int(found.st_mtime) == int(entry.changed)


def place(local: Path, entry: Entry, mode: int, content: Path) -> None:
    """Give a whole file its name and time.

    Raises:
        TargetError: a link here would lead it out of the tree.
    """
    target = local / entry.path
    if not target.parent.resolve().is_relative_to(local.resolve()):
        raise TargetError(f"{target.parent}: a link that leads out of {local}. Remove it, and run again.")
    content.chmod(mode & 0o777 | 0o600)
    os.utime(content, (entry.changed, entry.changed))
    os.replace(content, target)


def make_folders_and_links(local: Path, tree: Sequence[Entry]) -> None:
    """The parts of a tree that hold no bytes; links that leave it are left out."""
    for entry in tree:
        path = local / entry.path
        if entry.kind == "d":
            if path.is_symlink():
                path.unlink()
            path.mkdir(exist_ok=True)
        elif entry.kind == "l" and safe_link(entry):
            if path.is_symlink() and os.readlink(path) == entry.link:
                continue
            new = path.with_name(f"{PARTIAL}-link")
            new.unlink(missing_ok=True)
            new.symlink_to(entry.link)
            os.replace(new, path)


def unpack(local: Path, batch: Sequence[Entry], packed: bytes) -> None:
    """Take a tar of ``batch`` apart.

    Raises:
        TargetError: one of them is not in it as it was listed: it is being written.
    """
    wanted = {f.path: f for f in batch}
    part = local / PARTIAL
    part.mkdir(exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:", errors="surrogateescape") as tar:
        for member in tar:
            entry = wanted.get(member.name)
            content = tar.extractfile(member) if entry and member.isreg() else None
            if entry is None or content is None:
                continue
            temporary = part / "file"
            temporary.write_bytes(content.read())
            place(local, entry, member.mode, temporary)
            del wanted[member.name]
    if wanted:
        raise TargetError(f"{', '.join(sorted(wanted)[:3])}: changed while copied. Run again when nobody writes there.")
