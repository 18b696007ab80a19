"""Where artifacts live, and how one is published.

    <root>/<asset key>[/partition=<p>]/.staging/<spec digest>/output    what a job is writing
    <root>/<asset key>[/partition=<p>]/<job key>/                       a published artifact, artifact.json last
    <root>/<asset key>[/partition=<p>]/latest.json                      which of them is current

A job never writes to a published directory: its staging directory is validated, gets its manifest, and is renamed.
A crash at any instant leaves either a staging directory that nothing loads, or a whole artifact. Where the root is an
object store, the staging directory lies on this machine; see objects.py.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nemotron_dagster.artifacts import objects
from nemotron_dagster.artifacts.locks import held
from nemotron_dagster.artifacts.manifest import FILE, ArtifactRef, Manifest, read, write, write_bytes
from nemotron_dagster.artifacts.places import join, place, read_bytes, scratch
from nemotron_dagster.config.profiles import load_environment
from nemotron_dagster.errors import ArtifactError, PreflightError
from nemotron_dagster.project import Project

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.digests import Progress
    from nemotron_dagster.artifacts.places import Place

LATEST = "latest.json"
_AGAIN = 20  # attempts to switch a pointer that others are switching too


def artifact_root(project: Project) -> Place:
    """Where managed artifacts live: ``[artifacts] root`` of env.toml, else the project's state directory.

    Raises:
        ConfigError: it is a URL that cannot be used.
    """
    named = load_environment(project.root).section("artifacts").get("root")
    return place(str(named)) if named else project.state / "artifacts"


@dataclass(frozen=True)
class Slot:
    """One place to publish to: the staging directory of a spec, and the final directory of a job."""

    staging: Path
    final: Place

    @property
    def output(self) -> Path:
        """Where the payload writes."""
        return self.staging / "output"

    @property
    def messages(self) -> Path:
        """The payload's messages; kept across the jobs that resume one spec."""
        return self.staging / "messages.jsonl"

    @property
    def owner(self) -> Path:
        """Names the job that is writing here."""
        return self.staging / "owner.json"

    @property
    def digests(self) -> Path:
        """The digests of files that were read already."""
        return self.staging / "digests.json"

    @property
    def uploads(self) -> Path:
        """What lies on the object store already."""
        return self.staging / "uploads.jsonl"


def slot(
    root: Place, asset: Sequence[str], digest: str, key: str, explicit: Path | None = None, partition: str | None = None
) -> Slot:
    """The slot of a job; ``explicit`` is a directory that the user named as the output.

    Raises:
        PreflightError: that directory holds something already; nothing is ever overwritten.
    """
    if explicit is None:
        parts = _parts(asset, partition)
        return Slot(scratch(root).joinpath(*parts, ".staging", digest[:16]), join(root, *parts, key))
    if explicit.exists() and (not explicit.is_dir() or any(explicit.iterdir())):
        raise PreflightError(f"{explicit}: exists already and is not empty. Name another output directory or move it.")
    return Slot(explicit.parent / f".{explicit.name}.staging-{digest[:16]}", explicit)


def publish(place: Slot, manifest: Manifest, progress: Progress | None = None) -> ArtifactRef:
    """Publish the staged output: manifest last, then one switch. Of several publishers of one key, one wins.

    Returns what is published under the key: another's artifact, where that has the same content. ``progress`` is told
    the bytes that were uploaded.

    Raises:
        ArtifactError: the key is published already with other content, or the store cannot be reached; the staged
            output is still there.
    """
    with held(place.staging.with_name(f".{place.final.name}.publishing")):
        if (found := published(place)) is not None:
            ref = _same(place, found, manifest)
        elif isinstance(place.final, Path):
            ref = _switch(place, place.final, manifest)
        else:
            ref = objects.publish(place.output, place.uploads, place.final, manifest, progress)
        shutil.rmtree(place.staging, ignore_errors=True)
    return ref


def published(place: Slot) -> ArtifactRef | None:
    """What is published in the slot already, by whomever.

    Raises:
        ArtifactError: it is broken.
    """
    try:
        read_bytes(place.final / FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return read(place.final)


def _same(place: Slot, found: ArtifactRef, manifest: Manifest) -> ArtifactRef:
    if found.manifest.content != manifest.content:
        raise ArtifactError(
            f"{place.final}: is published already, with other content. Nothing was overwritten; what was to be "
            f"published lies in {place.output}."
        )
    return found


def _switch(place: Slot, final: Path, manifest: Manifest) -> ArtifactRef:
    """The staged directory becomes the published one, in one rename."""
    _sync_tree(place.output)
    write(place.output, manifest)
    _sync(place.output)
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(place.output, final)  # over an empty directory, too
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if (found := published(place)) is not None:  # on a file system without working locks
            return _same(place, found, manifest)
        raise ArtifactError(f"{final}: holds files that no manifest describes. Move it away and run again.") from e
    _sync(final.parent)
    return read(final)


def set_aside(place: Slot) -> Path:
    """Move a staged output that is no valid artifact out of the way; where it lies then."""
    aside = place.staging.with_name(f"{place.staging.name}.rejected")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(place.staging, aside)
    return aside / place.output.name


def set_latest(root: Place, asset: Sequence[str], partition: str | None, ref: ArtifactRef) -> None:
    """Make ``ref`` what consumers of the asset load: last writer wins, and each switch counts up ``generation``.

    Raises:
        ArtifactError: the store cannot be reached, or others switch without end.
    """
    folder = join(root, *_parts(asset, partition))
    file = folder / LATEST
    prefix = f"{folder}/"
    pointer: dict[str, Any] = {
        "type": ref.type,
        "uri": ref.uri.removeprefix(prefix),  # relative, so that a root can be moved as a whole
        "content": ref.manifest.content,
        "manifest": ref.digest,
    }
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        with held(scratch(root) / ".locks" / f"latest-{quote('/'.join(_parts(asset, partition)), safe='')[-200:]}"):
            old = file.read_bytes() if file.exists() else b""
            write_bytes(file, _pointer(pointer, old))
            _sync(file.parent)
        return
    for _ in range(_AGAIN):
        data, version = objects.snapshot(file)
        if objects.swap(file, version, _pointer(pointer, data)):
            return
    raise ArtifactError(f"{file}: others keep switching it. Run again.")


def latest(root: Place, asset: Sequence[str], partition: str | None = None) -> ArtifactRef | None:
    """The asset's current artifact, or None where it was never published.

    Raises:
        ArtifactError: the pointer or the artifact it names is broken, foreign, or was changed after publishing.
    """
    folder = join(root, *_parts(asset, partition))
    file, name = folder / LATEST, "/".join(asset)
    try:
        pointer = json.loads(read_bytes(file))
        uri = str(pointer["uri"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise ArtifactError(f"{file}: is broken ({e}). Materialize {name} again.") from e
    directory = pointed(folder, uri)
    ref = read(directory)
    for problem in misplaced(folder, uri, pointer, ref, asset, partition):
        raise ArtifactError(f"{directory}: {problem} Materialize {name} again, or put back what was published.")
    return ref


def pointed(folder: Place, uri: str) -> Place:
    """The directory that the ``uri`` of a ``latest.json`` in ``folder`` names."""
    return place(uri) if "://" in uri or uri.startswith("/") else folder / uri


def misplaced(
    folder: Place, uri: str, pointer: dict[str, Any], ref: ArtifactRef, asset: Sequence[str], partition: str | None
) -> Iterator[str]:
    """What is wrong with an artifact as the one that a pointer names."""
    manifest = ref.manifest
    directory = str(pointed(folder, uri))
    if directory.startswith(f"{folder}/"):  # else a directory that a user named, or another asset's artifact
        if list(manifest.asset) != list(asset):
            yield f"is an artifact of another asset, {'/'.join(manifest.asset)}."
        elif manifest.partition != partition:
            yield f"is an artifact of partition {manifest.partition}, not of {partition}."
        elif directory.rpartition("/")[2] != manifest.key:
            yield f"was moved here: it was published as {manifest.key}."
    if pointer.get("type") not in (None, ref.type):
        yield f"is a {ref.type}, but {LATEST} names a {pointer['type']}."
    if pointer.get("manifest") not in (None, "", ref.digest):
        yield f"its {FILE} is not the one that was published (sha256 {ref.digest[:12]}…)."


def _pointer(pointer: dict[str, Any], old: bytes) -> bytes:
    try:
        generation = int(json.loads(old).get("generation", 0))
    except (ValueError, TypeError, AttributeError):
        generation = 0
    return (json.dumps({**pointer, "generation": generation + 1}, indent=2) + "\n").encode()


def _parts(asset: Sequence[str], partition: str | None) -> list[str]:
    return [*asset, *([f"partition={quote(partition, safe='')}"] if partition else [])]


def _sync_tree(directory: Path) -> None:
    """Bring every file below ``directory`` to the disk: a manifest must not outlive what it describes."""
    files: list[Path] = []
    folders: list[Path] = []
    for parent, _, names in os.walk(directory):
        folders.append(Path(parent))
        files += [p for n in names if not (p := Path(parent, n)).is_symlink()]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(_sync, files))
    for folder in reversed(folders[1:]):
        _sync(folder)


def _sync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
