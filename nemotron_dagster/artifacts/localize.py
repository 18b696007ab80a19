"""A remote artifact as files of this machine, for payloads that need files.

    <cache>/<first two digits>/<content digest>/...    one copy per content, shared by all processes and projects

The cache is ``NEMOTRON_ARTIFACT_CACHE``, else ``$XDG_CACHE_HOME/nemotron/artifacts``, else
``~/.cache/nemotron/artifacts``; it may be removed whenever nothing runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts.digests import file_digest
from nemotron_dagster.artifacts.locks import held
from nemotron_dagster.artifacts.manifest import ArtifactRef, differing
from nemotron_dagster.artifacts.places import cache_home, failures, unreachable
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    from upath import UPath

    from nemotron_dagster.catalog import Port

_DOWNLOADS = 16


def bound_path(port: Port, ref: ArtifactRef) -> Path:
    """Where what ``port`` is given of an artifact lies, or will lie, on this machine."""
    path, facts = local_path(ref), ref.manifest.facts
    latest = facts.get("latest")
    if port.latest_iteration and facts.get("kind") == "parent" and isinstance(latest, str):
        return path / Path(latest).name  # the tracked one: whole, or the artifact would not have been published
    return path


def local_path(ref: ArtifactRef) -> Path:
    """Where the artifact proper lies, or will once it is downloaded; nothing is fetched."""
    path = ref.path
    return path if isinstance(path, Path) else _cached(ref) / ref.manifest.path


def localized(ref: ArtifactRef, progress: Callable[[int], None] | None = None) -> Path:
    """The artifact proper as a local path, downloaded and checked by digest where it is not there yet.

    ``progress`` is told the bytes that arrived.

    Raises:
        ArtifactError: the store cannot be reached, a file is not the one that was published, or there is no room.
    """
    folder = ref.folder
    if isinstance(folder, Path):
        return local_path(ref)
    home = _cached(ref)
    try:
        if not _whole(ref, home):
            with held(home.with_name(f".{home.name}.lock")):
                if not _whole(ref, home):  # another process may have been here meanwhile
                    _fetch(ref, folder, home, progress)
    except failures() as e:
        if isinstance(e, OSError) and e.filename and str(e.filename).startswith(str(cache_home())):
            raise ArtifactError(
                f"{e.filename}: cannot be written ({e.strerror}). Free space, or set NEMOTRON_ARTIFACT_CACHE."
            ) from e
        raise unreachable(folder, e) from e
    return local_path(ref)


def _cached(ref: ArtifactRef) -> Path:
    name = ref.manifest.content or ref.digest
    return cache_home() / name[:2] / name


def _whole(ref: ArtifactRef, home: Path) -> bool:
    """Whether every file is there with its size; the directory has its name only once all digests were right."""
    there = ArtifactRef(ref.type, str(home), replace(ref.manifest, data=""))
    return home.is_dir() and next(differing(there), None) is None


def _fetch(ref: ArtifactRef, folder: UPath, home: Path, progress: Callable[[int], None] | None) -> None:
    part = home.with_name(f".{home.name}.part")

    def get(item: tuple[str, list[Any]]) -> None:
        name, (size, digest) = item
        target = part / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if str(digest).startswith("-> "):
            target.unlink(missing_ok=True)
            os.symlink(digest[3:], target)
            return
        if not (target.is_file() and target.stat().st_size == size and file_digest(target) == digest):
            target.unlink(missing_ok=True)
            folder.fs.get_file(f"{folder.path}/{name}", str(target))
            if target.stat().st_size != size or file_digest(target) != digest:
                target.unlink()
                raise ArtifactError(
                    f"{folder / name}: is not the file that was published (its digest differs). "
                    f"Run {ref.manifest.producer} again."
                )
        target.chmod(0o444)  # shared: nothing that reads it may change it
        if progress:
            progress(size)

    part.mkdir(parents=True, exist_ok=True)
    links = {n: row for n, row in ref.manifest.files.items() if str(row[1]).startswith("-> ")}
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        for done in [pool.submit(get, f) for f in ref.manifest.files.items() if f[0] not in links]:
            done.result()
    for item in links.items():
        get(item)
    shutil.rmtree(home, ignore_errors=True)
    os.rename(part, home)
