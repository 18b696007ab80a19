"""Which files an artifact's path holds, and which of them cannot be what anybody meant to hand over."""

from __future__ import annotations

import errno
import glob
import os
from pathlib import Path

from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.errors import ArtifactError

#: What downloads and copies are called until they are whole.
UNFINISHED = (".part", ".partial", ".crdownload", ".incomplete", ".download", ".filepart")


def data_files(path: Path | str, suffixes: tuple[str, ...], problems: Problems) -> list[Path]:
    """The data files of a file, a directory (searched through symbolic links) or a glob, in name order.

    Dangling and looping links, empty and unreadable files, and unfinished downloads are added to ``problems``.

    Raises:
        ArtifactError: there is no data file at all.
    """
    text, kind = str(path), " or ".join(f"*{s}" for s in suffixes[:2] if not s.endswith((".gz", ".zst")))
    path = Path(text)
    if glob.has_magic(text) and not os.path.lexists(path):
        found = sorted(Path(p) for p in glob.glob(text, recursive=True) if os.path.isfile(p))
        if not found:
            raise ArtifactError(f"{text}: matches no file. Check the pattern.")
    elif _stat(path) is None:
        raise ArtifactError(why(path))
    elif path.is_dir():
        everything = _walk(path, problems)
        found = [p for p in everything if p.name.endswith(suffixes)]
        _unfinished(everything, suffixes, problems)
        if not found:
            problems.check("Complete or delete these.")
            raise ArtifactError(f"{path}: is a directory without {kind} files. Name the file or the right directory.")
    else:
        found = [path]
        _unfinished([p for s in (*UNFINISHED, ".tmp") if os.path.lexists(p := Path(text + s))], suffixes, problems)
    whole = []
    for file in found:
        found_out = _stat(file)
        if found_out is None:
            problems.add(why(file))
        elif not os.access(file, os.R_OK):
            problems.add(f"{file}: may not be read. Change its permissions (chmod u+r).")
        elif found_out.st_size == 0:
            problems.add(f"{file}: is empty (0 bytes), so it has no rows. Make it again, or delete it.")
        else:
            whole.append(file)
    return whole


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def why(path: Path) -> str:
    """Why ``path`` cannot be looked at."""
    try:
        path.stat()
    except OSError as e:
        if e.errno == errno.ELOOP:
            return f"{path}: is a symbolic link that leads back to itself. Point it at the file."
        if path.is_symlink():
            return (
                f"{path}: is a symbolic link to {os.readlink(path)}, which is not there. Restore it or remove the link."
            )
        if e.errno == errno.EACCES:
            return f"{path}: may not be read. Change the permissions of its directory."
        return f"{path}: no such file or directory. Check the path."
    except ValueError as e:
        return f"{path!r}: is no path ({e}). Check the path."
    return f"{path}: cannot be read. Check the path."


def _walk(root: Path, problems: Problems) -> list[Path]:
    """Every file below ``root``; a directory that links lead to twice is entered once."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def refuse(e: OSError) -> None:
        problems.add(f"{e.filename}: cannot be listed ({e.strerror}). Change the permissions of the directory.")

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        about = _stat(Path(folder))
        if about is None or (about.st_dev, about.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        found += [Path(folder, name) for name in names]
    return sorted(found)


def _unfinished(files: list[Path], suffixes: tuple[str, ...], problems: Problems) -> None:
    for file in files:
        data = any(s in file.name for s in suffixes)
        if file.name.endswith(UNFINISHED) or (data and file.name.endswith((".tmp", ".aria2"))):
            problems.add(f"{file}: looks like a download or copy that has not ended. Let it end, or delete it.")
