"""Whether a published artifact still is what was published: every byte of it, and what refers to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts.digests import content_digest, tally
from nemotron_dagster.artifacts.inventory import Inventory, Version
from nemotron_dagster.artifacts.localize import localized
from nemotron_dagster.artifacts.manifest import ArtifactRef, differing
from nemotron_dagster.artifacts.places import failures, unreachable
from nemotron_dagster.artifacts.store import misplaced
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    from upath import UPath

_READS = 16
_CHUNK = 8 << 20

Progress = Callable[[int], None]


def problems(
    version: Version, inventory: Inventory, deep: bool = False, progress: Progress | None = None
) -> Iterator[str]:
    """Everything wrong with a version; ``deep`` also validates the content as its type.

    Raises:
        ArtifactError: the store cannot be reached.
    """
    ref = version.ref
    if ref is None:
        yield version.problem
        return
    yield from _place(version, ref, inventory)
    if content_digest(ref.manifest.files) != ref.manifest.content:
        yield "artifact.json: its table of files was changed after publishing"
    wrong = list(_bytes(ref, progress))
    yield from wrong
    for entry in ref.manifest.inputs:
        there = inventory.by_uri.get(str(entry.get("uri")))
        if there is not None and there.ref and entry.get("manifest") not in (None, "", there.ref.digest):
            yield f"input {entry.get('port')}: {there.label} is not what this was made from; it was published anew"
    if deep and not wrong:
        from nemotron_dagster import artifacts

        try:
            artifacts.validate(ref.type, localized(ref))
        except ArtifactError as e:
            yield f"is no valid {ref.type}: {e}"


def _place(version: Version, ref: ArtifactRef, inventory: Inventory) -> Iterator[str]:
    manifest = ref.manifest
    if str(version.uri).startswith(f"{inventory.root}/"):
        if version.asset != tuple(manifest.asset):
            yield f"is an artifact of another asset, {'/'.join(manifest.asset)}; move it back or remove it"
        elif version.name != manifest.key:
            yield f"was moved here: it was published as {manifest.key}; move it back or remove it"
    pointer = inventory.pointers.get((version.asset, version.partition))
    if version.current and pointer is not None:
        folder, told = pointer
        yield from misplaced(folder, told["uri"], {**told, "type": ref.type}, ref, manifest.asset, manifest.partition)
        if told.get("type") not in (None, ref.type):
            yield f"is a {ref.type}, but latest.json names a {told['type']}"


def _bytes(ref: ArtifactRef, progress: Progress | None) -> Iterator[str]:
    table, folder = ref.manifest.files, ref.folder
    if isinstance(folder, Path):
        try:
            found, _, _ = tally(folder, progress=progress)
        except OSError as e:
            yield f"{e.filename}: cannot be read ({e.strerror})"
            return
    else:
        gone = dict(differing(ref))
        found = {n: row for n, row in table.items() if n not in gone}
        found |= _remote(folder, {n: row for n, row in found.items() if not str(row[1]).startswith("->")}, progress)
        yield from (f"{name}: {what}" for name, what in gone.items())
        table = {n: row for n, row in table.items() if n not in gone}
    for name, row in table.items():
        now = found.get(name)
        if now is None:
            yield f"{name}: is missing"
        elif now[0] != row[0]:
            yield f"{name}: has {now[0]:,} bytes, not {row[0]:,}"
        elif now[1] != row[1]:
            yield f"{name}: was changed after publishing (its digest is {now[1]}, not {row[1]})"
    yield from (f"{name}: is not in the manifest" for name in found if name not in table)


def _remote(folder: UPath, table: dict[str, list[Any]], progress: Progress | None) -> dict[str, list[Any]]:
    """The same table with the digests of what the store holds now, streamed."""
    import xxhash

    def digest(name: str) -> str:
        state = xxhash.xxh3_64()
        with folder.fs.open(f"{folder.path}/{name}", "rb", block_size=_CHUNK, cache_type="readahead") as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
                if progress:
                    progress(len(chunk))
        return state.hexdigest()

    try:
        with ThreadPoolExecutor(_READS) as pool:
            return {n: [table[n][0], d] for n, d in zip(table, pool.map(digest, table), strict=True)}
    except failures() as e:
        raise unreachable(folder, e) from e
