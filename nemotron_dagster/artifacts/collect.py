"""Removing versions that nobody needs, and what jobs and uploads that never finished left behind.

Never removed: a current version, one that a kept version was made from, an input of a live job, a live job's staging
directory, and anything outside the root.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts import objects
from nemotron_dagster.artifacts.inventory import Inventory, Version
from nemotron_dagster.artifacts.locks import held
from nemotron_dagster.artifacts.manifest import FILE
from nemotron_dagster.artifacts.places import place, scratch
from nemotron_dagster.artifacts.store import latest
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place

#: Seconds that a staging directory or half an upload is left alone, unless the caller says how long.
PATIENCE = 7 * 86400.0
_TRASH = ".trash-"


@dataclass(frozen=True)
class Leftover:
    """A directory that is no artifact: of a job that ended or of a removal cut short, or half an upload."""

    uri: str
    bytes: int
    what: str


@dataclass(frozen=True)
class Plan:
    """What would be removed, and how many versions stay for which reason."""

    versions: tuple[Version, ...]
    leftovers: tuple[Leftover, ...]
    kept: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(v.bytes for v in self.versions) + sum(x.bytes for x in self.leftovers)


def plan(inventory: Inventory, keep: int, older_than: float | None, now: float | None = None) -> Plan:
    """What may go: all but the ``keep`` newest versions of each asset and partition, if older than so many seconds.

    What only a removed version was made from goes with it, under the same conditions.
    """
    now = time.time() if now is None else now
    inside = [v for v in inventory.versions if v.uri.startswith(f"{inventory.root}/")]
    reasons: dict[str, str] = {v.uri: "current" for v in inventory.versions if v.current}
    newest: dict[Any, list[Version]] = {}
    for version in inside:
        newest.setdefault((version.asset, version.partition), []).append(version)
    for versions in newest.values():
        for version in versions[-keep:] if keep else ():
            reasons.setdefault(version.uri, "among the newest")
    if older_than is not None:
        for version in inside:
            if (age := _age(version, now)) is not None and age < older_than:
                reasons.setdefault(version.uri, "too young")
    for version in inside:
        if version.ref is None:
            reasons.setdefault(version.uri, "its manifest cannot be read")
    leftovers = list(_staging(scratch(inventory.root), older_than, now))
    for uri in _inputs_of_live(scratch(inventory.root)):
        reasons.setdefault(uri, "an input of a live job")
    _keep_sources(inventory, reasons)
    for base, (_, size, newest_time) in inventory.strays.items():
        if now - newest_time >= (PATIENCE if older_than is None else older_than):
            leftovers.append(Leftover(_url(inventory.root, base), size, "half an upload"))
    kept: dict[str, int] = {}
    for version in inside:
        if version.uri in reasons:
            kept[reasons[version.uri]] = kept.get(reasons[version.uri], 0) + 1
    return Plan(tuple(v for v in inside if v.uri not in reasons), tuple(leftovers), kept)


def _keep_sources(inventory: Inventory, reasons: dict[str, str]) -> None:
    pending = [inventory.by_uri[uri] for uri in reasons if uri in inventory.by_uri]
    while pending:
        version = pending.pop()
        for entry in version.ref.manifest.inputs if version.ref else ():
            source = inventory.source(entry)
            if source is not None and source.uri not in reasons:
                reasons[source.uri] = "in the lineage of a kept one"
                pending.append(source)


def execute(planned: Plan, inventory: Inventory) -> Iterator[Version | Leftover]:
    """Remove what was planned; yields each thing once it is gone. One that became current meanwhile stays.

    Raises:
        ArtifactError: something cannot be removed; what was yielded before is gone.
    """
    for version in planned.versions:
        try:
            now = latest(inventory.root, version.asset, version.partition)
        except ArtifactError:
            now = None
        if now is not None and now.uri == version.uri:
            continue
        _remove(place(version.uri))
        yield version
    for leftover in planned.leftovers:
        where = place(leftover.uri)
        if not isinstance(where, Path):
            objects.remove(where)
        elif where.name.startswith(_TRASH):
            shutil.rmtree(where, ignore_errors=True)
        else:
            locks = scratch(inventory.root) / ".locks"
            with held(locks / f"gc-{where.name}"), _claimed(locks / where.name) as ours:
                if not ours or _live(where):
                    continue
                shutil.rmtree(where, ignore_errors=True)
        yield leftover


def _remove(where: Place) -> None:
    """A renamed directory is no artifact any more, so nobody meets half of one."""
    if not isinstance(where, Path):
        objects.remove(where)
        return
    trash = where.parent / ".staging" / f"{_TRASH}{where.name}-{secrets.token_hex(4)}"
    try:
        trash.parent.mkdir(exist_ok=True)
        os.rename(where, trash)
        shutil.rmtree(trash)
    except OSError as e:
        raise ArtifactError(f"{where}: cannot be removed ({e.strerror}). Check its permissions.") from e


def _staging(root: Path, older_than: float | None, now: float) -> Iterator[Leftover]:
    wait = PATIENCE if older_than is None else older_than
    for directory in _stagings(root):
        if directory.name.startswith(_TRASH):
            yield Leftover(str(directory), _size(directory)[0], "of a removal cut short")
            continue
        size, touched = _size(directory)
        if now - touched >= wait and not _live(directory):
            rejected = directory.name.endswith(".rejected")
            yield Leftover(str(directory), size, "no valid artifact" if rejected else "of a job that ended")


def _stagings(root: Path) -> Iterator[Path]:
    for folder, folders, _ in os.walk(root):
        if ".staging" in folders:
            yield from (p for p in sorted(Path(folder, ".staging").iterdir()) if p.is_dir())
        folders[:] = [f for f in folders if not f.startswith(".") and not os.path.exists(f"{folder}/{f}/{FILE}")]


def _inputs_of_live(root: Path) -> Iterator[str]:
    for directory in _stagings(root):
        if _live(directory):
            yield from map(str, _json(directory / "owner.json").get("inputs") or ())


def _live(staging: Path) -> bool:
    """Whether a job may still write here: its submission is open in the ledger."""
    record = _json(staging / "owner.json").get("record")
    return bool(record) and Path(str(record)).exists()


class _claimed:
    """The lock under which jobs are submitted to a staging directory, if nobody has it; its file stays."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> bool:
        self.descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *error: object) -> None:
        os.close(self.descriptor)


def _size(directory: Path) -> tuple[int, float]:
    """Bytes below a directory, and when anything there was last written."""
    size, newest = 0, 0.0
    for folder, _, names in os.walk(directory):
        for path in (folder, *(f"{folder}/{name}" for name in names)):
            try:
                about = os.lstat(path)
            except FileNotFoundError:
                continue
            newest = max(newest, about.st_mtime)
            size += about.st_size if path != folder else 0
    return size, newest


def _age(version: Version, now: float) -> float | None:
    try:
        created = datetime.fromisoformat(version.created)
    except ValueError:
        return None
    return now - (created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp()


def _url(root: Place, base: str) -> str:
    assert not isinstance(root, Path)
    return f"{root}/{base.removeprefix(root.path.rstrip('/') + '/')}"


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
