"""Python values as artifacts: published as one version of an asset, and read back as what the consumer wants.

What a value may be is its type's to say (``write`` and ``read`` of its module); here it is brought into the form that
they take, staged, validated and published. Rows are streamed: no value is held as a whole for it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts import describe, fingerprints
from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest, now, tally
from nemotron_dagster.artifacts.registry import artifact_type
from nemotron_dagster.artifacts.store import publish, slot
from nemotron_dagster.errors import ArtifactError, PreflightError

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place

_BATCH = 1000  # rows of Arrow data that are Python objects at a time


class ValueFailed(Exception):
    """The code that makes the value raised, half way; the cause is chained. Trying again may help."""


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: its asset, and what it was made of."""

    asset: tuple[str, ...]
    partition: str | None = None
    code: str = ""
    run: str = ""
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)

    @property
    def name(self) -> str:
        where = f" (partition {self.partition})" if self.partition else ""
        return "/".join(self.asset) + where


def publish_value(root: Place, type_name: str, value: Any, origin: Origin) -> ArtifactRef:
    """Write ``value`` as an artifact of the type, validate it, and publish it as a new version of the asset.

    Raises:
        ArtifactError: the value is none that the type takes, is empty, or is not valid; nothing is published.
        ValueFailed: an iterator raised; nothing is published.
        PreflightError: the artifact root cannot be written.
    """
    if value is None:
        raise ArtifactError(
            f"{origin.name}: returned None, so there is nothing to publish as {type_name}. Return an ArtifactRef, the "
            "path of files, or what the type is written from; annotate it `-> None` if it is not to be an artifact."
        )
    key = secrets.token_hex(10)
    place = slot(root, origin.asset, key, key, partition=origin.partition)
    try:
        place.output.mkdir(parents=True)
    except OSError as e:
        raise PreflightError(f"{root}: cannot be written ({e.strerror}). Choose another artifact root.") from e
    watched = _Watched(value)
    try:
        single = _write(type_name, value, watched, place.output)
        inner, facts = _validated(type_name, place.output, single)
        return publish(place, _manifest(type_name, place.output, inner, facts, key, origin))
    except Exception as e:
        if (cause := watched.error) is not None:
            kind = type(cause).__name__
            raise ValueFailed(
                f"{origin.name}: after {watched.count:,} items what it returned raised {kind}: {cause}\n"
                "Nothing was published. Mend it and materialize again."
            ) from cause
        if isinstance(e, ArtifactError):
            raise ArtifactError(f"{origin.name}: nothing was published as {type_name}.\n{e}") from e
        raise
    finally:
        shutil.rmtree(place.staging, ignore_errors=True)


def _validated(type_name: str, output: Path, single: str | None) -> tuple[str, dict[str, Any]]:
    """Where below ``output`` the artifact proper lies, and its facts: a directory, or the one file in it."""
    try:
        return ".", artifact_type(type_name).validate(output)
    except ArtifactError:
        if single is None:
            raise
    return single, artifact_type(type_name).validate(output / single)


def _manifest(type_name: str, output: Path, inner: str, facts: dict[str, Any], key: str, origin: Origin) -> Manifest:
    facts = {**facts, "pictures": describe.draw(type_name, output, facts, {}, [])}
    files, content, size = tally(output)
    made = Manifest(
        type=type_name,
        producer="/".join(origin.asset),
        partition=origin.partition,
        asset=list(origin.asset),
        key=key,
        path=inner,
        code_digest=origin.code,
        inputs=[
            {"port": n, "type": r.type, "uri": r.uri, "asset": r.manifest.asset}
            | {"content": r.manifest.content, "manifest": r.digest}
            for n, r in origin.inputs.items()
        ],
        facts=facts,
        files=files,
        content=content,
        bytes=size,
        created=now(),
        job={"run": origin.run} if origin.run else {},
        counts=fingerprints.counts(len(files), describe.headline(type_name, facts, {})),
    )
    return replace(made, **fingerprints.of(facts, {}, [vars(r.manifest) for r in origin.inputs.values()]))


@dataclass
class _Watched:
    """Counts what an iterable yields, and keeps what it raised: that is its author's, not ours."""

    value: Any
    count: int = 0
    error: Exception | None = None

    def items(self) -> Iterator[Any]:
        try:
            for item in self.value:
                yield item
                self.count += 1
        except Exception as e:
            self.error = e
            raise


def _write(type_name: str, value: Any, watched: _Watched, output: Path) -> str | None:
    """Write the value into ``output``; the name of the file, where a single one was copied."""
    if isinstance(value, str | os.PathLike) or hasattr(value, "fs"):
        return _copy(value, output)
    artifact_type(type_name).write(_natural(type_name, value, watched), output)
    return None


def _copy(value: Any, output: Path) -> str | None:
    """Copy existing files; links into the directory stay links, others become files."""
    if isinstance(value, str) and ("\n" in value or not value):
        raise ArtifactError("It is a text, and a text must be the path of existing files. Return rows, or a path.")
    if hasattr(value, "fs"):  # a UPath
        single = None if value.is_dir() else str(value.name)
        value.fs.get(value.path, f"{output}/{single or ''}", recursive=single is None)
        return single
    source = Path(value).expanduser()
    if source.is_file():
        shutil.copyfile(source, output / source.name)
        return source.name
    if not source.is_dir():
        raise ArtifactError(f"{source}: no such file or directory. Return the path of existing files, or a value.")
    inside = source.resolve()

    def copy(origin: str, target: str) -> None:
        real = Path(origin).resolve()
        if os.path.islink(origin) and real.is_relative_to(inside):
            os.symlink(os.path.relpath(real, Path(origin).parent.resolve()), target)
        else:
            shutil.copyfile(origin, target)

    _tree(source, output, copy)
    return None


def _tree(source: Path, target: Path, copy: Callable[[str, str], None]) -> None:
    for folder, _, names in os.walk(source, followlinks=True):
        below = target / os.path.relpath(folder, source)
        below.mkdir(parents=True, exist_ok=True)
        for name in names:
            copy(os.path.join(folder, name), str(below / name))


def _natural(type_name: str, value: Any, watched: _Watched) -> Any:
    """The value in the form that the type's ``write`` takes: rows as mappings, tokens as arrays, tables as tables."""
    module = type(value).__module__.partition(".")[0]
    if module == "pandas":
        import pyarrow as pa

        value = pa.Table.from_pandas(value, preserve_index=False)
        module = "pyarrow"
    if type_name.endswith("_jsonl"):
        if module == "pyarrow":
            watched.value = _rows(value)
        elif isinstance(value, Mapping) or not isinstance(value, Iterable):
            raise ArtifactError(f"it is a {type(value).__name__}. Return or yield one mapping per row.")
        return watched.items()
    if type_name == "packed_parquet" and module == "pyarrow" and not hasattr(value, "num_rows"):
        watched.value = _packs(value)
        return watched.items()
    if module == "pyarrow" and not hasattr(value, "num_rows"):
        return value.read_all() if hasattr(value, "read_all") else value.to_table()
    if type_name == "binidx" and module == "numpy" and getattr(value, "ndim", 0) == 1 and value.dtype != object:
        return [value]  # one document
    streams = isinstance(value, Iterator) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))
    return watched.items() if streams else value


def _batches(value: Any) -> Iterator[Any]:
    """The record batches of a table, a reader, a dataset, or one batch."""
    if hasattr(value, "to_batches"):
        yield from value.to_batches()
    elif hasattr(value, "to_pylist"):
        yield value
    else:
        yield from value


def _rows(value: Any) -> Iterator[dict[str, Any]]:
    for batch in _batches(value):
        for start in range(0, batch.num_rows, _BATCH):
            yield from batch.slice(start, _BATCH).to_pylist()


def _packs(value: Any) -> Iterator[tuple[Any, ...]]:
    names = ("input_ids", "loss_mask", "seq_start_id")
    for batch in _batches(value):
        missing = [n for n in names if n not in batch.schema.names]
        if missing:
            raise ArtifactError(f"the batches have no column {', '.join(missing)}. Name their columns {names}.")
        columns = [batch.column(n) for n in names]
        for i in range(batch.num_rows):
            yield tuple(c[i].values.to_numpy(zero_copy_only=False) for c in columns)
