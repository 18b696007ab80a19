"""Every version below a root, from one pass over its manifests; nothing is validated and no other file is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from nemotron_dagster.artifacts.manifest import FILE, ArtifactRef, decode, load
from nemotron_dagster.artifacts.places import failures, join, place, unreachable
from nemotron_dagster.artifacts.store import LATEST, latest, pointed
from nemotron_dagster.errors import ArtifactError, UsageError, did_you_mean

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place

_PARTITION = "partition="


@dataclass(frozen=True)
class Version:
    """One published artifact, or what should be one.

    Attributes:
        asset: the asset key that it lies under; of a directory outside the root, the one that its manifest tells.
        name: the name of its directory.
        ref: None where its manifest cannot be read; ``problem`` says why.
    """

    asset: tuple[str, ...]
    partition: str | None
    name: str
    uri: str
    ref: ArtifactRef | None
    problem: str = ""
    current: bool = False

    @property
    def label(self) -> str:
        """The name by which a person can ask for it."""
        partition = f"/{_PARTITION}{self.partition}" if self.partition else ""
        return f"{'/'.join(self.asset)}{partition}@{self.name}"

    @property
    def created(self) -> str:
        return self.ref.manifest.created if self.ref else ""

    @property
    def bytes(self) -> int:
        return self.ref.manifest.bytes if self.ref else 0


@dataclass(frozen=True)
class Inventory:
    """What lies below a root; ``versions`` by asset, partition and time.

    Attributes:
        pointers: asset and partition -> the folder of its ``latest.json`` and what that says.
        problems: label of a pointer, and what is wrong with it.
        strays: of an object store, directories with files but no manifest -> their names, sizes and newest time.
    """

    root: Place
    versions: tuple[Version, ...]
    pointers: dict[tuple[tuple[str, ...], str | None], tuple[Place, dict[str, Any]]] = field(default_factory=dict)
    problems: tuple[tuple[str, str], ...] = ()
    strays: dict[str, tuple[list[str], int, float]] = field(default_factory=dict)

    @cached_property
    def by_digest(self) -> dict[str, Version]:
        return {v.ref.digest: v for v in self.versions if v.ref}

    @cached_property
    def by_uri(self) -> dict[str, Version]:
        return {v.uri: v for v in self.versions}

    @cached_property
    def by_content(self) -> dict[str, Version]:
        return {v.ref.manifest.content: v for v in self.versions if v.ref}

    def source(self, entry: dict[str, Any]) -> Version | None:
        """The version that an entry of a manifest's ``inputs`` means: by the manifest's digest, else as best it can."""
        if entry.get("manifest"):
            return self.by_digest.get(entry["manifest"])
        return self.by_uri.get(str(entry.get("uri"))) or self.by_content.get(str(entry.get("content") or "-"))

    def matching(self, pattern: str | None) -> list[Version]:
        """The versions of assets that a glob or the beginning of a name fits."""
        if not pattern:
            return list(self.versions)
        from fnmatch import fnmatchcase

        fits = {v.asset: _fits("/".join(v.asset), pattern, fnmatchcase) for v in self.versions}
        return [v for v in self.versions if fits[v.asset] or fnmatchcase(v.label, pattern)]


def _fits(name: str, pattern: str, glob: Any) -> bool:
    return bool(glob(name, pattern)) or name == pattern or name.startswith(f"{pattern.rstrip('/')}/")


def scan(root: Place) -> Inventory:
    """Every version below ``root``, and those elsewhere that its pointers name.

    Raises:
        ArtifactError: the store cannot be reached.
    """
    found: list[Version] = []
    pointers: dict[tuple[tuple[str, ...], str | None], tuple[Place, dict[str, Any]]] = {}
    problems: list[tuple[str, str]] = []
    strays: dict[str, tuple[list[str], int, float]] = {}
    files = _local_files(str(root)) if isinstance(root, Path) else _objects(root, strays)
    for parts, name, raw in files:
        if name == LATEST:
            key = _asset(parts)
            try:
                pointer = json.loads(raw)
                pointer["uri"] = str(pointer["uri"])
                pointers[key] = (join(root, *parts), pointer)
            except (ValueError, KeyError, TypeError):
                problems.append((f"{'/'.join(parts)}/{LATEST}", "is broken. Materialize the asset again."))
        else:
            found.append(_version(root, parts, raw))
    current = {str(pointed(folder, p["uri"])): key for key, (folder, p) in pointers.items()}
    versions = [replace(v, current=True) if v.uri in current else v for v in found]
    here = {v.uri for v in found}
    for uri, (asset, partition) in current.items():
        if uri in here:
            continue
        try:
            ref = load(place(uri))
            versions.append(Version(asset, partition, uri.rpartition("/")[2], uri, ref, current=True))
        except ArtifactError as e:
            problems.append(("/".join(asset), f"its {LATEST} names what is not there: {e}"))
    versions.sort(key=lambda v: (v.asset, v.partition or "", v.created, v.name))
    return Inventory(root, tuple(versions), pointers, tuple(problems), strays)


def _version(root: Place, parts: tuple[str, ...], raw: bytes) -> Version:
    asset, partition = _asset(parts[:-1])
    where = join(root, *parts) if not isinstance(root, Path) else f"{root}/{'/'.join(parts)}"
    uri = str(where)
    try:
        manifest = decode(raw, Path(uri, FILE) if isinstance(root, Path) else join(root, *parts, FILE))
    except ArtifactError as e:
        return Version(asset, partition, parts[-1], uri, None, str(e))
    ref = ArtifactRef(manifest.type, uri, manifest, hashlib.sha256(raw).hexdigest())
    return Version(asset, partition, parts[-1], uri, ref)


def _asset(parts: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    if parts and parts[-1].startswith(_PARTITION):
        return parts[:-1], unquote(parts[-1].removeprefix(_PARTITION))
    return parts, None


def _local_files(
    folder: str, parts: tuple[str, ...] = (), manifests: bool = True
) -> Iterator[tuple[tuple[str, ...], str, bytes]]:
    """Folder, name and bytes of every manifest and pointer; what a manifest describes is not descended into."""
    try:
        with os.scandir(folder) as found:
            entries = [e for e in found if not e.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name == LATEST:
            raw = _bytes(entry.path)
            if raw is not None:
                yield parts, LATEST, raw
        elif entry.is_dir(follow_symlinks=False):
            manifest = f"{entry.path}/{FILE}"
            raw = _bytes(manifest) if manifests else b"" if os.path.exists(manifest) else None
            if raw is None:
                yield from _local_files(entry.path, (*parts, entry.name), manifests)
            else:
                yield (*parts, entry.name), FILE, raw


def _bytes(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise ArtifactError(f"{path}: cannot be read ({e.strerror}). Check its permissions.") from e
    with open(descriptor, "rb", buffering=0) as file:
        return file.readall()


def _objects(
    root: Any, strays: dict[str, tuple[list[str], int, float]]
) -> Iterator[tuple[tuple[str, ...], str, bytes]]:
    """The same of an object store: one listing, then the manifests, many at a time."""
    prefix = root.path.rstrip("/") + "/"
    try:
        listed = root.fs.find(root.path, detail=True)
        wanted = [n for n in listed if n.endswith((f"/{FILE}", f"/{LATEST}")) and "/data-" not in n[len(prefix) :]]
        texts = root.fs.cat(wanted, on_error="omit") if wanted else {}
    except FileNotFoundError:
        return
    except failures() as e:
        raise unreachable(root, e) from e
    whole = {n.removesuffix(FILE) for n in wanted if n.endswith(f"/{FILE}")}
    for name, about in listed.items():
        base, found, _ = name.partition("/data-")
        if found and f"{base}/" not in whole:
            names, size, newest = strays.get(base, ([], 0, 0.0))
            strays[base] = ([*names, name], size + int(about.get("size") or 0), max(newest, _time(about)))
    for name, raw in texts.items():
        *parts, last = name.removeprefix(prefix).split("/")
        yield tuple(parts), last, raw


def _time(about: dict[str, Any]) -> float:
    value = about.get("LastModified") or about.get("updated") or about.get("created") or 0.0
    if hasattr(value, "timestamp"):
        return float(value.timestamp())
    if isinstance(value, str):
        from datetime import datetime

        return datetime.fromisoformat(value).timestamp()
    return float(value)


def asset_names(root: Path) -> list[str]:
    """The assets below a local root, by their pointers; no manifest is read."""
    return sorted("/".join(parts) for parts, name, _ in _local_files(str(root), manifests=False) if name == LATEST)


def find(root: Place, text: str, inventory: Inventory | None = None) -> Version:
    """The version that a person means: ``asset`` (its current one), ``asset@version``, a directory or a URL.

    Raises:
        UsageError: there is none.
        ArtifactError: it is broken, or the store cannot be reached.
    """
    asset, _, wanted = text.rstrip("/").partition("@")
    if (found := _directory(root, text)) is not None:
        return found
    if not wanted and inventory is None and (found := _current(root, asset)) is not None:
        return found
    inventory = inventory or scan(root)
    same = [v for v in inventory.versions if v.label.rpartition("@")[0] == asset]
    if wanted:
        chosen = [v for v in same if v.name == wanted] or [v for v in same if v.name.startswith(wanted)]
        if len(chosen) > 1:
            raise UsageError(f"{text}: fits {len(chosen)} versions: {_names(chosen)}. Write more of the name.")
    else:
        chosen = [v for v in same if v.current] or same[-1:]
    if chosen:
        return chosen[0]
    if same:
        raise UsageError(f"{asset} has no version {wanted!r}. It has {_names(same)}.")
    known = sorted({v.label.rpartition("@")[0] for v in inventory.versions})
    hint = did_you_mean(asset, known) or " `nemotron artifacts ls` lists what is there."
    raise UsageError(f"{text}: no artifact of that name in {root}, and no directory with an {FILE}.{hint}")


def _names(versions: Iterable[Version]) -> str:
    names = [v.name for v in versions]
    return ", ".join(names[-5:]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _directory(root: Place, text: str) -> Version | None:
    text = text.removesuffix(f"/{FILE}")
    if "://" not in text and not Path(text).expanduser().joinpath(FILE).is_file():
        return None
    where = place(text)
    ref = load(where)
    manifest = ref.manifest
    pointer = join(root, *manifest.asset, *([f"{_PARTITION}{manifest.partition}"] if manifest.partition else []))
    try:
        now = latest(root, manifest.asset, manifest.partition)
    except ArtifactError:
        now = None
    inside = str(where).startswith(f"{pointer}/")
    name = where.name if inside else manifest.key
    current = now is not None and now.uri == ref.uri
    return Version(tuple(manifest.asset), manifest.partition, name, ref.uri, ref, current=current)


def _current(root: Place, asset: str) -> Version | None:
    parts, partition = _asset(tuple(asset.split("/")))
    if any(p in ("", ".", "..") for p in parts):
        return None
    ref = latest(root, parts, partition)
    if ref is None:
        return None
    return Version(parts, partition, ref.uri.rpartition("/")[2], ref.uri, ref, current=True)
