"""An artifact as the Python value that a consumer asks for by its annotation."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from nemotron_dagster.artifacts.localize import localized
from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.artifacts.registry import artifact_type
from nemotron_dagster.errors import ArtifactError

P = ParamSpec("P")
_STREAMS = (Iterator, Iterable, Generator)


class Rows(Iterator[dict[str, Any]]):
    """Rows, one after the other, made as they are asked for.

    For assets: Dagster takes what a generator yields for events, and refuses the annotation ``Iterator[dict]``. So
    ``return Rows(generate())`` hands rows over, and ``rows: Rows`` asks for them.
    """

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows = iter(rows)

    def __next__(self) -> dict[str, Any]:
        return next(self._rows)


def rows(function: Callable[P, Iterable[Any]]) -> Callable[P, Rows]:
    """A generator function as one that returns ``Rows``; goes below ``@dg.asset``."""

    @functools.wraps(function)
    def streamed(*args: P.args, **kwargs: P.kwargs) -> Rows:
        return Rows(function(*args, **kwargs))

    annotations = {**getattr(function, "__annotations__", {}), "return": Rows}
    streamed.__annotations__ = annotations
    signature = inspect.signature(function, eval_str=True)
    vars(streamed)["__signature__"] = signature.replace(return_annotation=Rows)
    return streamed


def load_value(ref: ArtifactRef, wanted: Any) -> Any:
    """The artifact as ``wanted``: a type annotation.

    ``ArtifactRef`` and ``Any`` give the handle; ``Path`` and ``str`` the path on this machine; ``Rows``, ``Iterator``
    and ``list`` the rows; ``pyarrow.Table``, ``pyarrow.dataset.Dataset``, ``pandas.DataFrame`` and ``numpy.ndarray``
    the data; any other class what the type's own ``read`` returns, if it is that.

    Raises:
        ArtifactError: it is not in the store any more, is damaged, or cannot be had as ``wanted``.
    """
    origin = typing.get_origin(wanted) or wanted
    if origin in (Any, ArtifactRef, object) or not isinstance(origin, type):
        return ref
    path = localized(ref)
    if origin is str or issubclass(origin, Path):
        return str(path) if origin is str else path
    value = artifact_type(ref.type).read(path)
    if origin in (Rows, *_STREAMS):
        return Rows(_rows(ref, value))
    if origin in (list, Sequence):
        return list(_rows(ref, value))
    if isinstance(value, origin) and not isinstance(value, Iterator):
        return value
    converted = _converted(ref, value, f"{origin.__module__.partition('.')[0]}.{origin.__name__}", origin)
    if converted is None:
        raise _refused(ref, origin.__name__)
    return converted


def _converted(ref: ArtifactRef, value: Any, name: str, origin: type) -> Any:
    if name in ("pyarrow.Table", "pandas.DataFrame"):
        table = _table(ref, value)
        return table if name == "pyarrow.Table" else table.to_pandas()
    if name == "pyarrow.Dataset":
        import pyarrow.dataset as ds

        return ds.dataset(_table(ref, value))
    if name == "pyarrow.RecordBatchReader":
        return value.scanner().to_reader() if hasattr(value, "scanner") else _table(ref, value).to_reader()
    if isinstance(value, Mapping) and (name == "numpy.ndarray" or origin.__name__ == "BinIdx"):
        shards = [shard for entries in value.values() for _, shard in entries]
        if len(shards) != 1:
            raise ArtifactError(
                f"{_name(ref)}: has {len(shards)} shards, not the one that a single {origin.__name__} could be. "
                "Annotate the input `dict`: split -> (weight, shard) of each."
            )
        return shards[0] if origin.__name__ == "BinIdx" else shards[0].tokens
    return None


def _rows(ref: ArtifactRef, value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, Iterator):
        yield from value
    elif hasattr(value, "to_batches"):
        for batch in value.to_batches():
            yield from batch.to_pylist()
    else:
        raise _refused(ref, "rows")


def _table(ref: ArtifactRef, value: Any) -> Any:
    import pyarrow as pa

    if isinstance(value, pa.Table):
        return value
    return value.to_table() if hasattr(value, "to_table") else pa.Table.from_pylist(list(_rows(ref, value)))


def _refused(ref: ArtifactRef, wanted: str) -> ArtifactError:
    return ArtifactError(
        f"{_name(ref)}: a {ref.type} cannot be had as {wanted}. Annotate the input ArtifactRef, or Path for its files."
    )


def _name(ref: ArtifactRef) -> str:
    return "/".join(ref.manifest.asset)
