"""``artifact.json``: the commit marker and description of an artifact. Nothing without a valid one is ever loaded."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemotron_dagster.errors import ArtifactError

FILE = "artifact.json"
SCHEMA = 1


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and where it came from.

    Attributes:
        path: where, below the directory of the manifest, the artifact proper lies.
        files: relative path -> [bytes, xxh3-64 hex]; symlinks are recorded as [0, "-> target"].
        content: sha256 over ``files``: two artifacts with equal content have equal digests.
        inputs: one mapping per input: port, type, uri, content.
        facts: what the validation found: counts, shapes, scores, pictures.
        reported: what the payload said of its work.
    """

    type: str
    producer: str
    asset: list[str]
    key: str
    path: str = "."
    config: str = ""
    config_digest: str = ""
    code_digest: str = ""
    inputs: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[Any]] = field(default_factory=dict)
    content: str = ""
    bytes: int = 0
    created: str = ""
    job: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True)
class ArtifactRef:
    """A published artifact: what assets pass to each other. ``uri`` is the directory that holds the manifest."""

    type: str
    uri: str
    manifest: Manifest

    @property
    def path(self) -> Path:
        """Where the artifact proper lies."""
        return Path(self.uri) / self.manifest.path


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def tally(directory: Path) -> tuple[dict[str, list[Any]], str, int]:
    """Digest every file below ``directory`` (in threads): the files table, its digest, and the total bytes."""
    import xxhash

    def digest(path: Path) -> list[Any]:
        if path.is_symlink():
            return [0, f"-> {os.readlink(path)}"]
        state = xxhash.xxh3_64()
        with open(path, "rb") as f:
            while chunk := f.read(1 << 20):
                state.update(chunk)
        return [path.stat().st_size, state.hexdigest()]

    names = []
    for folder, subfolders, files in os.walk(directory):
        links = [d for d in subfolders if os.path.islink(os.path.join(folder, d))]
        names += [Path(folder, n) for n in (*files, *links)]
    paths = sorted(p for p in names if p.relative_to(directory).as_posix() != FILE)
    with ThreadPoolExecutor() as pool:
        table = {
            p.relative_to(directory).as_posix(): row for p, row in zip(paths, pool.map(digest, paths), strict=True)
        }
    content = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
    return table, content, sum(row[0] for row in table.values())


def write(directory: Path, manifest: Manifest) -> None:
    """Write the manifest by atomic rename, after everything else is on disk."""
    write_json(directory / FILE, asdict(manifest))


def write_json(file: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, also after a power cut."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as out:
        json.dump(data, out, indent=2, sort_keys=False, default=str)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)


def read(directory: Path) -> ArtifactRef:
    """The artifact published in ``directory``.

    Raises:
        ArtifactError: no manifest, a broken one, or files that are missing or of another size.
    """
    file = directory / FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        manifest = Manifest(**data)
    except FileNotFoundError as e:
        raise ArtifactError(f"{directory}: is no published artifact (no {FILE}). Run the step that makes it.") from e
    except (OSError, ValueError, TypeError) as e:
        raise ArtifactError(f"{file}: is not a manifest ({e}). Run the step that makes this artifact again.") from e
    if manifest.schema > SCHEMA:
        raise ArtifactError(f"{file}: schema {manifest.schema} is newer than this version reads. Upgrade.")
    for name, (size, _) in manifest.files.items():
        path = directory / name
        if not path.is_symlink() and (not path.is_file() or path.stat().st_size != size):
            raise ArtifactError(f"{path}: is missing or was changed after publishing. Run {manifest.producer} again.")
    return ArtifactRef(manifest.type, str(directory), manifest)
