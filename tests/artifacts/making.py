"""Small artifacts, staged and published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest, now, tally
from nemotron_dagster.artifacts.store import Slot, publish, set_latest, slot

ASSET = ("demo", "a")


def staged(
    root: Any, key: str, text: str = "x", files: int = 3, asset: tuple[str, ...] = ASSET, digest: str = "d", **more: Any
) -> tuple[Slot, Manifest]:
    """An output of ``files`` files that tell ``text``, as a job leaves it, and its manifest."""
    place = slot(root, asset, digest * 64, key, partition=more.get("partition"))
    place.output.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        row = f'{{"messages": [{{"role": "user", "content": "{text} {i}"}}]}}\n'
        (place.output / f"rows{i}.jsonl").write_text(row * 5)
    table, content, size = tally(place.output)
    facts = {"rows": 5 * files, "files": files, "bytes": size}
    manifest = Manifest(
        "raw_jsonl", "/".join(asset), list(asset), key,
        files=table, content=content, bytes=size, facts=facts, created=now(), step="/".join(asset), config="tiny",
    )  # fmt: skip
    return place, replace(manifest, **more)


def made(
    root: Any, key: str, text: str = "x", asset: tuple[str, ...] = ASSET, inputs: Any = (), **more: Any
) -> ArtifactRef:
    """A published artifact that is the asset's current one; ``inputs`` are artifacts that it was made from."""
    rows = [
        {"port": f"in{i}", "type": r.type, "uri": r.uri, "content": r.manifest.content, "manifest": r.digest}
        | {"asset": r.manifest.asset}
        for i, r in enumerate(inputs)
    ]
    ref = publish(*staged(root, key, text, asset=asset, inputs=rows, **more))
    set_latest(root, asset, more.get("partition"), ref)
    return ref


def folder(ref: ArtifactRef) -> Path:
    assert isinstance(ref.folder, Path)
    return ref.folder
