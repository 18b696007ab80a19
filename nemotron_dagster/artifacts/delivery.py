"""Copy a published file to where the user wants it: whole or not at all, and over nothing unless told to."""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import stat
import tempfile
from pathlib import Path

from nemotron_dagster.artifacts.localize import localized
from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.config.delivery import Delivery
from nemotron_dagster.errors import PreflightError


def check(delivery: Delivery) -> None:
    """Refuse a delivery that cannot succeed, before anything runs; touches nothing.

    Raises:
        PreflightError: the file exists and ``force`` is not set, is no regular file, or its directory cannot be
            written.
    """
    path = _target(delivery)
    folder = path.parent
    try:
        while not (folder.is_symlink() or folder.exists()):
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=folder):  # asks the file system itself; permission bits do not tell root
            pass
    except OSError as e:
        raise PreflightError(_unwritable(delivery, folder, e)) from e


def deliver(delivery: Delivery, ref: ArtifactRef) -> Path:
    """Copy the artifact's file to ``delivery.path``; where it lies.

    Raises:
        PreflightError: somebody put a file there meanwhile, or it cannot be written. The artifact stays published.
    """
    kept = f"\nThe artifact itself lies at {ref.path}."
    try:
        path = _target(delivery)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _switch(localized(ref), path, delivery.force):
            raise PreflightError(_exists(delivery))
    except PreflightError as e:
        raise PreflightError(f"{e}{kept}") from e
    except OSError as e:
        raise PreflightError(_unwritable(delivery, delivery.path.parent, e) + kept) from e
    return path


def delivered(delivery: Delivery, ref: ArtifactRef) -> bool:
    """Whether the very file lies there already: whoever delivered it was killed, or another watches the same job."""
    try:
        mode = delivery.path.lstat().st_mode
        return stat.S_ISREG(mode) and filecmp.cmp(localized(ref), delivery.path, shallow=False)
    except OSError:
        return False


def said(path: Path, ref: ArtifactRef) -> str:
    """One line on what was written, the path as short as it is seen from here."""
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    profiles = ref.manifest.facts.get("profiles")
    return f"Wrote {shown}" + (f" with {profiles} profile section(s)" if isinstance(profiles, int) else "")


def _target(delivery: Delivery) -> Path:
    """The real path to write. A link is written through only with ``force``.

    Raises:
        PreflightError: something is there that may not be replaced.
    """
    path = delivery.path
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) and delivery.force:
            path = path.resolve()
            mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError) as e:  # a name too long, a loop of links, a directory that may not be searched
        reason = getattr(e, "strerror", None) or str(e)
        raise PreflightError(f"{delivery.key}: {path}: {reason}. Name another file.") from e
    if stat.S_ISLNK(mode):
        raise PreflightError(
            f"{delivery.key}: {path}: is a symbolic link to {os.readlink(path)}. Set force=true to write there, or "
            "name another file."
        )
    if stat.S_ISDIR(mode):
        raise PreflightError(f"{delivery.key}: {path}: is a directory. Name a file in it.")
    if not stat.S_ISREG(mode):
        raise PreflightError(f"{delivery.key}: {path}: is no regular file. Name another file.")
    if not delivery.force:
        raise PreflightError(_exists(delivery))
    return path


def _switch(source: Path, path: Path, force: bool) -> bool:
    """Make ``path`` a copy of ``source`` in one step; False where something is there and ``force`` is not set."""
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    try:
        with open(source, "rb") as read, open(temporary, "wb") as out:
            shutil.copyfileobj(read, out)
            out.flush()
            os.fsync(out.fileno())
        if force:
            if path.exists():
                shutil.copymode(path, temporary)
            os.replace(temporary, path)
            return True
        try:
            os.link(temporary, path)  # fails where anything is, a dangling link too
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return _copy_new(source, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _copy_new(source: Path, path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with open(descriptor, "wb") as out, open(source, "rb") as read:
            shutil.copyfileobj(read, out)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _exists(delivery: Delivery) -> str:
    return (
        f"{delivery.key}: {delivery.path}: exists already. Set force=true to replace it, or {delivery.key}=PATH to "
        "write another file."
    )


def _unwritable(delivery: Delivery, folder: Path, error: OSError) -> str:
    return (
        f"{delivery.key}: {delivery.path}: cannot be written: {folder}: {error.strerror or error}. "
        f"Set {delivery.key}=PATH to a place you can write."
    )
