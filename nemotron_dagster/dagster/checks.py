"""Asset checks of artifacts: the locks of a step's inputs, and that what was published is whole.

They run in the op that makes the artifact, so they cost no step of their own, and block what lies downstream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from nemotron_dagster.artifacts.digests import tally
from nemotron_dagster.artifacts.localize import localized
from nemotron_dagster.artifacts.manifest import ArtifactRef, read
from nemotron_dagster.artifacts.places import place
from nemotron_dagster.artifacts.port_locks import Result
from nemotron_dagster.artifacts.store import latest
from nemotron_dagster.catalog import Step
from nemotron_dagster.catalog.locks import LOCKS
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place

WHOLE, UNCHANGED = "manifest_and_files", "inputs_unchanged"
_DEEP = 1 << 30  # so many bytes are read once more after publishing: a second or so
_WHOLE = "The manifest is valid, and every file is there as it was when its digest was taken."
_UNCHANGED = "No input was changed, replaced or removed while the job read it."


def check_specs(key: dg.AssetKey, step: Step) -> list[dg.AssetCheckSpec]:
    """The checks of a step's asset."""
    locks = [
        dg.AssetCheckSpec(_name(port.name, lock), asset=key, description=LOCKS[lock], blocking=True)
        for port in step.consumes
        for lock in port.locks
    ]
    if step.consumes:
        locks.append(dg.AssetCheckSpec(UNCHANGED, asset=key, description=_UNCHANGED, blocking=True))
    return [*locks, dg.AssetCheckSpec(WHOLE, asset=key, description=_WHOLE, blocking=True)]


def lock_results(key: dg.AssetKey, results: Iterable[Result]) -> Iterator[dg.AssetCheckResult]:
    """What the locks said before the job was submitted."""
    for r in results:
        yield dg.AssetCheckResult(
            passed=r.passed,
            asset_key=key,
            check_name=_name(r.port, r.name),
            severity=dg.AssetCheckSeverity.ERROR if r.severity == "error" else dg.AssetCheckSeverity.WARN,
            description=r.message,
        )


def publication_results(
    key: dg.AssetKey, step: Step, ref: ArtifactRef, inputs: Mapping[str, ArtifactRef], gone: Sequence[str] = ()
) -> Iterator[dg.AssetCheckResult]:
    """What is to be said once the artifact is published; ``gone`` says which inputs can no longer be looked at."""
    if gone:
        text, warn = f"Cannot be told any more: {'; '.join(gone)}", dg.AssetCheckSeverity.WARN
        yield dg.AssetCheckResult(passed=False, asset_key=key, check_name=UNCHANGED, severity=warn, description=text)
    elif step.consumes:
        passed, text = unchanged(inputs)
        yield dg.AssetCheckResult(passed=passed, asset_key=key, check_name=UNCHANGED, description=text)
    passed, text = whole(ref, deep=ref.manifest.bytes <= _DEEP)
    yield dg.AssetCheckResult(passed=passed, asset_key=key, check_name=WHOLE, description=text)


def unpublished_results(
    key: dg.AssetKey,
    step: Step,
    locked: Sequence[Result],
    inputs: Mapping[str, object],
    root: Place,
    partition: str | None,
    error: Exception,
) -> Iterator[dg.AssetCheckResult]:
    """What is to be said when a run ends without an artifact: a check without a result is shown as one that failed."""
    yield from lock_results(key, locked)
    known = {(r.port, r.name) for r in locked}
    why = next(iter(str(error).splitlines()), type(error).__name__)
    for port in step.consumes:
        for lock in port.locks:
            if (port.name, lock) not in known:
                yield dg.AssetCheckResult(
                    passed=False,
                    asset_key=key,
                    check_name=_name(port.name, lock),
                    severity=dg.AssetCheckSeverity.WARN,
                    description=f"Not looked at, because the run ended before: {why}",
                )
    if step.consumes:
        passed, text = unchanged({n: r for n, r in inputs.items() if isinstance(r, ArtifactRef)})
        yield dg.AssetCheckResult(passed=passed, asset_key=key, check_name=UNCHANGED, description=text)
    try:
        ref = latest(root, key.path, partition)
        passed, text = whole(ref, deep=False) if ref else (True, "")
    except ArtifactError as e:
        passed, text = False, str(e)
    about = f"This run published nothing. {'What was published before: ' if text else ''}{text}".strip()
    yield dg.AssetCheckResult(passed=passed, asset_key=key, check_name=WHOLE, description=about)


def verify_check(asset: dg.AssetsDefinition, root: Place | str) -> dg.AssetChecksDefinition:
    """A check of the current artifact of any asset below ``root``, for assets of your own: every byte is read again."""
    where = place(root) if isinstance(root, str) else root

    @dg.asset_check(asset=asset, name=WHOLE, description=_WHOLE, blocking=True)
    def manifest_and_files() -> dg.AssetCheckResult:
        try:
            ref = latest(where, asset.key.path)
        except ArtifactError as e:
            return dg.AssetCheckResult(passed=False, description=str(e))
        if ref is None:
            return dg.AssetCheckResult(passed=False, description="Nothing is published. Materialize the asset.")
        passed, text = whole(ref, deep=True)
        return dg.AssetCheckResult(passed=passed, description=text)

    return manifest_and_files


def whole(ref: ArtifactRef, deep: bool) -> tuple[bool, str]:
    """Whether manifest and files are what was published, and a sentence; ``deep`` reads every byte."""
    try:
        found = read(place(ref.uri))
        if ref.digest and found.digest != ref.digest:
            return (
                False,
                f"{ref.uri}: its artifact.json is not what was published. Materialize the asset again.",
            )
        if deep and isinstance(found.folder, Path):
            table, content, _ = tally(found.folder)
            if content != found.manifest.content:
                names = table.keys() | found.manifest.files.keys()
                wrong = sorted(n for n in names if table.get(n) != found.manifest.files.get(n))
                return False, f"{ref.uri}: {', '.join(wrong[:5])}: not what was published. Materialize the asset again."
        elif deep:
            localized(found)  # compares the digest of whatever it fetches
    except (ArtifactError, OSError) as e:
        return False, str(e)
    files = f"{len(ref.manifest.files):,} files, {ref.manifest.bytes:,} bytes"
    return True, f"{files}: {'every digest' if deep else 'every size'} is as the manifest says."


def unchanged(inputs: Mapping[str, ArtifactRef]) -> tuple[bool, str]:
    """Whether the artifacts that a job read are still what they were when it began, and a sentence."""
    for port, ref in inputs.items():
        passed, text = whole(ref, deep=False)
        if not passed:
            return False, f"input {port} is not what it was when the job began. {text}"
    names = ", ".join("/".join(r.manifest.asset) for r in inputs.values())
    return True, f"{names}: as when the job began." if names else "No upstream artifact was read."


def _name(port: str, lock: str) -> str:
    return f"{port}__{lock}".replace("-", "_").replace(".", "_")
