"""``artifact.json``: the commit marker and description of an artifact. Nothing without a valid one is ever loaded."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts.digests import tally
from nemotron_dagster.artifacts.places import failures, join, place, read_bytes, unreachable
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place

__all__ = ["FILE", "SCHEMA", "ArtifactRef", "Manifest", "now", "read", "tally", "write", "write_json"]

FILE = "artifact.json"
#: Rises only when a reader of the present one would misread what is written; keys that it does not know it ignores.
SCHEMA = 1


def _about(text: str) -> dict[str, str]:
    """What docs/artifact.schema.json says of a field."""
    return {"doc": text}


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and where it came from; each field says what it holds."""

    type: str = field(metadata=_about("Artifact type."))
    producer: str = field(metadata=_about("Who made it: a step's id, or the asset whose code returned the value."))
    asset: list[str] = field(metadata=_about("Asset key."))
    key: str = field(metadata=_about("Name of this version among those of the asset: the key of the job."))
    path: str = field(default=".", metadata=_about("Where, below the files' directory, the artifact proper lies."))
    config: str = field(default="", metadata=_about("Name or path of the step's config."))
    config_digest: str = field(default="", metadata=_about("sha256 of the compiled job."))
    code_digest: str = field(default="", metadata=_about("sha256 of the step's code, of what ran."))
    inputs: list[dict[str, Any]] = field(
        default_factory=list,
        metadata=_about(
            "One per input: port, type, uri, asset, content (digest of its files) and manifest (sha256 of its "
            "artifact.json); or port, uri and external: true."
        ),
    )
    facts: dict[str, Any] = field(
        default_factory=dict, metadata=_about("What the validation found: counts, shapes, scores, pictures.")
    )
    reported: dict[str, Any] = field(default_factory=dict, metadata=_about("What the payload said of its work."))
    files: dict[str, list[Any]] = field(
        default_factory=dict, metadata=_about('Relative path: [bytes, xxh3-64 hex], or [0, "-> target"] of a symlink.')
    )
    content: str = field(
        default="", metadata=_about("sha256 of `files` as JSON with sorted keys: equal content, equal digest.")
    )
    bytes: int = field(default=0, metadata=_about("Size of all files."))
    created: str = field(default="", metadata=_about("When it was published, ISO 8601, UTC."))
    job: dict[str, Any] = field(default_factory=dict, metadata=_about("Handle of the job: target, key, directory, id."))
    schema: int = field(default=SCHEMA, metadata=_about("Version of this format."))
    step: str = field(default="", metadata=_about("Id of the step; empty where no step made it."))
    partition: str | None = field(default=None, metadata=_about("Partition of the asset, or null."))
    settings: dict[str, Any] = field(
        default_factory=dict, metadata=_about("The compiled config that the payload got, secrets hidden.")
    )
    counts: dict[str, int] = field(
        default_factory=dict, metadata=_about("Files, and what the type counts: rows, tokens, parameters.")
    )
    tokenizer: str = field(default="", metadata=_about("Fingerprint of the tokenizer, or empty."))
    chat_template: str = field(default="", metadata=_about("Fingerprint of the chat template, or empty."))
    sequence_length: int | None = field(default=None, metadata=_about("Tokens of a packed sequence, or null."))
    git: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about("The project's repository when the job was submitted: commit, branch, dirty, changed, remote."),
    )
    data: str = field(
        default="", metadata=_about("Directory of the files below the manifest's: on object stores, else empty.")
    )


@dataclass(frozen=True)
class ArtifactRef:
    """A published artifact: what assets pass to each other.

    Attributes:
        uri: the directory that holds the manifest, a path or a URL.
        digest: sha256 of the bytes of ``artifact.json``.
    """

    type: str
    uri: str
    manifest: Manifest
    digest: str = ""

    @property
    def folder(self) -> Place:
        """The directory that the manifest's file names count from."""
        where = Path(self.uri) if "://" not in self.uri else place(self.uri)
        return where / self.manifest.data if self.manifest.data else where

    @property
    def path(self) -> Place:
        """Where the artifact proper lies; ``localized(ref)`` is that as a local path, downloaded where need be."""
        return self.folder / self.manifest.path if self.manifest.path != "." else self.folder


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def encoded(manifest: Manifest) -> bytes:
    """The bytes of ``artifact.json``."""
    return (json.dumps(asdict(manifest), indent=2, default=str) + "\n").encode()


def write(directory: Path, manifest: Manifest) -> None:
    """Write the manifest by atomic rename, after everything else is on disk."""
    write_bytes(directory / FILE, encoded(manifest))


def write_json(file: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, also after a power cut."""
    write_bytes(file, json.dumps(data, indent=2, sort_keys=False, default=str).encode())


def write_bytes(file: Path, data: bytes) -> None:
    """Replace a file's content so that a reader sees the old one or the whole new one, also after a power cut."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def decode(raw: bytes, file: Place) -> Manifest:
    """The manifest in the bytes of ``file``.

    Raises:
        ArtifactError: it is none, or of a schema that is newer than ours.
    """
    try:
        data = json.loads(raw)
        schema = data.get("schema", SCHEMA)
        if isinstance(schema, int) and schema > SCHEMA:
            raise ArtifactError(
                f"{file}: has schema {schema}; this version reads up to {SCHEMA}. Upgrade nemotron-dagster."
            )
        manifest = Manifest(**{k: v for k, v in data.items() if k in _FIELDS})
        wrong = [name for name, kind in _SHAPES.items() if not isinstance(getattr(manifest, name), kind)]
        if wrong:
            raise ValueError(f"{wrong[0]} is of the wrong kind")
        if any(
            not isinstance(row, list) or len(row) != 2 or type(row[0]) is not int for row in manifest.files.values()
        ):
            raise ValueError("files must map names to [bytes, digest]")
        if any(name.startswith("/") or ".." in name.split("/") for name in (*manifest.files, manifest.path)):
            raise ValueError("a file name leads out of the artifact")
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise ArtifactError(f"{file}: is not a manifest ({e}). Run the step that makes this artifact again.") from e
    return manifest


_FIELDS = frozenset(f.name for f in fields(Manifest))
_SHAPES: dict[str, type] = {
    **dict.fromkeys(("type", "producer", "key", "path", "content", "created", "data"), str),
    **dict.fromkeys(("facts", "reported", "files", "job", "settings", "counts"), dict),
    **dict.fromkeys(("asset", "inputs"), list),
    "bytes": int,
}


def load(directory: Place) -> ArtifactRef:
    """What ``artifact.json`` in ``directory`` says; its files are not looked at.

    Raises:
        ArtifactError: no manifest, a broken one, one of a newer schema, or a store that cannot be reached.
    """
    file = directory / FILE
    try:
        raw = read_bytes(file)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise ArtifactError(
            f"{directory}: is no published artifact (no {FILE}). Run the step that makes it, or move it back to where "
            "it was published."
        ) from e
    except OSError as e:
        raise ArtifactError(f"{file}: cannot be read ({e.strerror or e}). Check its permissions.") from e
    manifest = decode(raw, file)
    return ArtifactRef(manifest.type, str(directory), manifest, hashlib.sha256(raw).hexdigest())


def read(directory: Place) -> ArtifactRef:
    """The artifact published in ``directory``, all of whose files are there and of the recorded size.

    Raises:
        ArtifactError: as ``load`` says, or a file is missing or of another size.
    """
    ref = load(directory)
    for name, what in differing(ref):
        raise ArtifactError(
            f"{join(ref.folder, name)}: {what}, so it was changed after publishing. "
            f"Run {ref.manifest.producer} again, or bring the file back."
        )
    return ref


def differing(ref: ArtifactRef) -> Iterator[tuple[str, str]]:
    """Name of each file that is missing or of another size than recorded, and what is wrong with it.

    Raises:
        ArtifactError: the store cannot be reached.
    """
    folder = ref.folder
    if not isinstance(folder, Path):
        yield from _differing_objects(folder, ref.manifest.files)
        return
    base = str(folder)
    for name, (size, digest) in ref.manifest.files.items():
        try:
            about = os.lstat(f"{base}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            yield name, "is missing"
            continue
        if str(digest).startswith("->"):
            if not stat.S_ISLNK(about.st_mode) or f"-> {os.readlink(f'{base}/{name}')}" != digest:
                yield name, f"is not the link {digest}"
        elif not stat.S_ISREG(about.st_mode):
            yield name, "is not a regular file"
        elif about.st_size != size:
            yield name, f"has {about.st_size:,} bytes, not {size:,}"


def _differing_objects(folder: Any, table: dict[str, list[Any]]) -> Iterator[tuple[str, str]]:
    try:
        found = folder.fs.find(folder.path, detail=True)
    except failures() as e:
        raise unreachable(folder, e) from e
    prefix = folder.path.rstrip("/") + "/"
    sizes = {name.removeprefix(prefix): about.get("size") for name, about in found.items()}
    for name, (size, digest) in table.items():
        if str(digest).startswith("->"):
            continue  # stores have no links: it is made anew where the artifact is copied to
        if name not in sizes:
            yield name, "is missing"
        elif sizes[name] != size:
            yield name, f"has {sizes[name]:,} bytes, not {size:,}"
