"""Where artifacts live, and how one is published.

    <root>/<asset key>/.staging/<spec digest>/output     what a job is writing
    <root>/<asset key>/<job key>/                        a published artifact, artifact.json written last
    <root>/<asset key>/latest.json                       which of them is current

A job never writes to a published directory: its staging directory is validated, gets its manifest, and is renamed.
A crash at any instant leaves either a staging directory that nothing loads, or a whole artifact.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest, read, write, write_json
from nemotron_dagster.config.profiles import load_environment
from nemotron_dagster.errors import ArtifactError, PreflightError
from nemotron_dagster.project import Project

LATEST = "latest.json"


def artifact_root(project: Project) -> Path:
    """Where managed artifacts live: ``[artifacts] root`` of env.toml, else the project's state directory."""
    named = load_environment(project.root).section("artifacts").get("root")
    return Path(str(named)).expanduser().resolve() if named else project.state / "artifacts"


@dataclass(frozen=True)
class Slot:
    """One place to publish to: the staging directory of a spec, and the final directory of a job."""

    staging: Path
    final: Path

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


def slot(root: Path, asset: Sequence[str], digest: str, key: str, explicit: Path | None = None) -> Slot:
    """The slot of a job; ``explicit`` is a directory that the user named as the output.

    Raises:
        PreflightError: that directory holds something already; nothing is ever overwritten.
    """
    if explicit is None:
        base = root.joinpath(*asset)
        return Slot(base / ".staging" / digest[:16], base / key)
    if explicit.exists() and (not explicit.is_dir() or any(explicit.iterdir())):
        raise PreflightError(f"{explicit}: exists already and is not empty. Name another output directory or move it.")
    return Slot(explicit.parent / f".{explicit.name}.staging-{digest[:16]}", explicit)


def publish(place: Slot, manifest: Manifest) -> ArtifactRef:
    """Write the manifest and switch the staged output to its final place in one rename."""
    write(place.output, manifest)
    _sync(place.output)
    if place.final.is_dir() and not any(place.final.iterdir()):
        place.final.rmdir()
    place.final.parent.mkdir(parents=True, exist_ok=True)
    os.rename(place.output, place.final)
    _sync(place.final.parent)
    shutil.rmtree(place.staging, ignore_errors=True)
    return read(place.final)


def set_aside(place: Slot) -> Path:
    """Move a staged output that is no valid artifact out of the way; where it lies then."""
    aside = place.staging.with_name(f"{place.staging.name}.rejected")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(place.staging, aside)
    return aside / place.output.name


def set_latest(root: Path, asset: Sequence[str], partition: str | None, ref: ArtifactRef) -> None:
    """Make ``ref`` what consumers of the asset load."""
    folder = _pointers(root, asset, partition)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / LATEST, {"type": ref.type, "uri": ref.uri, "content": ref.manifest.content})


def latest(root: Path, asset: Sequence[str], partition: str | None = None) -> ArtifactRef | None:
    """The asset's current artifact, or None where it was never published.

    Raises:
        ArtifactError: the pointer or the artifact it names is broken.
    """
    file = _pointers(root, asset, partition) / LATEST
    try:
        uri = json.loads(file.read_text(encoding="utf-8"))["uri"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, OSError) as e:
        raise ArtifactError(f"{file}: is broken ({e}). Materialize {'/'.join(asset)} again.") from e
    return read(Path(uri))


def _pointers(root: Path, asset: Sequence[str], partition: str | None) -> Path:
    return root.joinpath(*asset, *([f"partition={partition}"] if partition else []))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
