"""``${art:NAME,FIELD}``: a field of an artifact that was made before, looked up on disk.

NAME is a key of ``run`` that holds a reference, or the reference itself: ``name``, ``name:v3``, ``name:3``,
``name:latest``, ``name:alias``. First the folder of ``[artifacts.manifest] root`` is asked, which the reference CLI
writes (``<root>/<name>/v<N>/{manifest,metadata}.json`` and ``<root>/<name>/latest``), then our own store.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.config.interpolation import Path as KeyPath
from nemotron_dagster.config.interpolation import Resolution, Resolver, Unresolved, Unset
from nemotron_dagster.errors import ArtifactError, did_you_mean

_NAME = re.compile(r"[\w-][\w.+-]*(?:/[\w-][\w.+-]*)*")
_ITERATION = re.compile(r"iter_(\d+)")


@dataclass(frozen=True)
class Found:
    """An artifact of either store. ``fields`` are its own, ``metadata`` what its maker said of it."""

    fields: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """A field of the artifact.

        Raises:
            KeyError: it has none of that name.
        """
        nested = self.metadata.get("metadata")
        said = {**(nested if isinstance(nested, dict) else {}), **self.metadata}
        if name.startswith("metadata."):
            return said[name.removeprefix("metadata.")]
        return self.fields[name] if self.fields.get(name) is not None else said[name]

    def names(self) -> list[str]:
        nested = self.metadata.get("metadata")
        return list(dict.fromkeys([*self.fields, *self.metadata, *(nested if isinstance(nested, dict) else {})]))


def is_reference(value: Any) -> bool:
    """Whether a value of ``run`` looks like a reference to an artifact; an image's name does not."""
    if not isinstance(value, str) or "/" in value or "nvcr" in value.lower() or "docker" in value.lower():
        return False
    name, colon, version = value.rpartition(":")
    return "Artifact" in value or bool(
        colon and "." not in name and (version.startswith("v") or version == "latest" or version.isdigit())
    )


def art(store: Callable[[], Path | None]) -> Resolver:
    """The resolver; ``store`` names the folder of our own artifacts."""

    def resolve(resolution: Resolution, path: KeyPath, args: tuple[Any, ...]) -> Any:
        if not 1 <= len(args) <= 2 or not all(isinstance(a, str) for a in args):
            raise Unresolved("art takes a name and a field", "Write ${art:NAME,path}.")
        key, wanted = args[0], args[1] if len(args) == 2 else "path"
        try:
            named = resolution.select(("run", key))
        except Unset:
            named = None
        reference = named if isinstance(named, str) and named else key
        found = _look_up(resolution, key, reference, store())
        try:
            return found.get(wanted)
        except KeyError:
            near = did_you_mean(wanted, found.names()).strip() or f"It has: {', '.join(found.names())}."
            raise Unresolved(f"artifact {reference} has no field {wanted!r}", near) from None

    return resolve


def _look_up(resolution: Resolution, key: str, reference: str, store: Path | None) -> Found:
    name, _, version = reference.partition(":")
    if not _NAME.fullmatch(name) or ".." in name.split("/"):
        raise Unresolved(f"{reference!r} is no reference to an artifact", "Write run.NAME=artifact:latest.")
    looked = []
    try:
        root = str(resolution.select(("artifacts", "manifest", "root")))
    except Unset:
        root = ""
    if "://" in root:
        looked.append(f"{root} (remote: not asked while compiling)")
    elif root:
        folder = Path(root).expanduser()
        found = _tracked(folder, name, version)
        if found is not None:
            return found
        looked.append(f"{folder} (has {_listed(_tracked_names(folder))})")
    if store is not None:
        found, others = _stored(store, name, version)
        if found is not None:
            return found
        looked.append(f"{store} (has {_listed(others)})")
    what = reference if reference == key else f"{reference} (run.{key})"
    raise Unresolved(
        f"there is no artifact {what}; looked in {' and '.join(looked) or 'no store: none is set'}",
        "Run the step that makes it, give {key}=PATH, or name another artifact.",
    )


def _tracked(root: Path, name: str, version: str) -> Found | None:
    folder = root / name
    if version in ("", "latest"):
        pointed = _text(folder / "latest")
        wanted = pointed or next(iter(sorted(_versions(folder), key=lambda v: -int(v[1:]))), "")
    else:
        wanted = f"v{version}" if version.isdigit() else version
        if not re.fullmatch(r"v\d+", wanted):
            wanted = _alias(root, name, wanted)
    if not re.fullmatch(r"v\d+", wanted):
        return None
    manifest = _json(folder / wanted / "manifest.json")
    if manifest is None or "path" not in manifest:
        return None
    own = manifest.get("metadata")
    iteration = own.get("iteration") if isinstance(own, dict) else None
    fields = {
        "path": str(manifest["path"]),
        "version": wanted,
        "name": name,
        "type": manifest.get("type"),
        "iteration": _iteration(str(manifest["path"])) if iteration is None else iteration,
    }
    metadata = _json(folder / wanted / "metadata.json") or {}
    return Found(fields, {"metadata": own, **metadata} if isinstance(own, dict) else metadata)


def _alias(root: Path, name: str, alias: str) -> str:
    """The version behind an alias: a pointer file beside ``latest``, or the registry's index."""
    if not re.fullmatch(r"[\w.-]+", alias) or alias in (".", ".."):
        return ""
    pointed = _text(root / name / alias)
    if pointed:
        return pointed
    entry = (_json(root / ".art_index.json") or {}).get(name)
    version = (entry.get("aliases") or {}).get(alias) if isinstance(entry, dict) else None
    return f"v{str(version).removeprefix('v')}" if version is not None else ""


def _versions(folder: Path) -> list[str]:
    try:
        return [n for n in os.listdir(folder) if re.fullmatch(r"v\d+", n)]
    except OSError:
        return []


def _tracked_names(root: Path) -> list[str]:
    try:
        return sorted(p.name for p in root.iterdir() if _versions(p))
    except OSError:
        return []


def _stored(root: Path, name: str, version: str) -> tuple[Found | None, list[str]]:
    """Our own artifact of that asset, and what there is instead."""
    from nemotron_dagster.artifacts.manifest import ArtifactRef, read
    from nemotron_dagster.artifacts.store import LATEST, latest

    assets = sorted(_assets(root, LATEST))
    same = [a for a in assets if a == name] or [a for a in assets if a.rpartition("/")[2] == name]
    if len(same) != 1:
        return None, [f"{name} in {a.rpartition('/')[0]}" for a in same] or assets
    ref: ArtifactRef | None = None
    try:
        if version in ("", "latest"):
            ref = latest(root, same[0].split("/"))
        elif re.fullmatch(r"[0-9a-f]{8,64}", version) and (root / same[0] / version).is_dir():
            ref = read(root / same[0] / version)
    except ArtifactError as e:
        raise Unresolved(str(e).rstrip("."), "Run that step again.") from e
    if ref is None:
        return None, [f"{same[0]}:{n}" for n in ["latest", *_jobs(root / same[0])]]
    fields = {
        "path": str(ref.path),
        "version": ref.manifest.key,
        "name": same[0],
        "type": ref.type,
        "iteration": _iteration(str(ref.path)),
    }
    return Found(fields, {**ref.manifest.facts, **ref.manifest.reported}), []


def _assets(root: Path, pointer: str, below: str = "", depth: int = 5) -> list[str]:
    """Asset keys with a current artifact. A folder that has one holds artifacts, not further assets."""
    try:
        entries = [e for e in os.scandir(root / below) if not e.name.startswith(".")]
    except OSError:
        return []
    if below and any(e.name == pointer for e in entries):
        return [below]
    folders = [e.name for e in entries if e.is_dir()] if depth else []
    return [a for n in folders for a in _assets(root, pointer, f"{below}/{n}" if below else n, depth - 1)]


def _jobs(folder: Path) -> list[str]:
    return sorted(p.parent.name for p in folder.glob("*/artifact.json"))


def _iteration(path: str) -> int | None:
    """Of a Megatron checkpoint: the folder's own number, or the highest below it."""
    own = _ITERATION.fullmatch(Path(path).name)
    if own:
        return int(own[1])
    try:
        found = [int(m[1]) for n in os.listdir(path) if (m := _ITERATION.fullmatch(n))]
    except OSError:
        return None
    return max(found, default=None)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "nothing"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")[:200].strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _json(file: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise Unresolved(f"{file}: is no JSON ({e})", "Mend or remove it.") from e
    return data if isinstance(data, dict) else None
