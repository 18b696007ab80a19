"""The IO manager of artifacts, one per artifact type.

What our own steps hand over is an ``ArtifactRef``: its bytes do not move. Any other value that an asset returns is
written, validated and published as a new version of the asset. Consumers get the handle, or what their annotation says.
"""

from __future__ import annotations

import base64
import time
import typing
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any

import dagster as dg
import pydantic

from nemotron_dagster.artifacts import describe
from nemotron_dagster.artifacts.loading import load_value
from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.artifacts.markdown import cell
from nemotron_dagster.artifacts.places import place
from nemotron_dagster.artifacts.store import latest, set_latest
from nemotron_dagster.artifacts.values import Origin, ValueFailed, publish_value
from nemotron_dagster.catalog import TypeGraph, load_catalog
from nemotron_dagster.dagster.internals import set_data_version
from nemotron_dagster.dagster.live import ADOPT
from nemotron_dagster.errors import ArtifactError, NemotronError
from nemotron_dagster.project import find_project

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place

_CLOCKS = 5.0  # seconds that an artifact may seem older than the record of its own materialization
_DIGEST = 64  # digits: only data versions of that length are digests of content
_AGAIN = (0.0, 0.2, 1.0)  # seconds: another run may be between the two records of what is current
#: What each step of this process has loaded, for the lineage of what it makes.
_loaded: dict[tuple[str, str], dict[str, ArtifactRef]] = {}


class ArtifactIOManager(dg.ConfigurableIOManager):
    """Publishes what an asset returns as an artifact of one type, and loads it for consumers.

    A value may be an ``ArtifactRef``, the path of existing files, or what the type is written from: an iterable of
    mappings for JSONL types, numpy arrays for ``binidx``, a pyarrow Table, RecordBatchReader or a DataFrame for Parquet
    types. A consumer's annotation says what it gets; without one it is the ``ArtifactRef``. See
    ``nemotron_dagster.artifacts.loading``.
    """

    type: str = pydantic.Field(description="Artifact type that is published, and that inputs must be.")
    root: str = pydantic.Field(description="Where artifacts lie: a directory, or a URL like s3://bucket/artifacts.")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        root, partition = place(self.root), _partition(context)
        step = (context.run_id, context.step_key)
        if isinstance(obj, ArtifactRef):
            ref = obj
            if not _types().accepts(self.type, obj.type):
                raise failure(ArtifactError(f"{_key(context)}: expected a {self.type}, got {obj.type}."))
        else:
            asset = tuple(context.asset_key.path)
            version = context.asset_spec.code_version or ""
            origin = Origin(asset, partition, version, context.run_id, dict(_loaded.get(step, {})))
            try:
                ref = publish_value(root, self.type, obj, origin)
            except ValueFailed as e:
                raise dg.Failure(str(e), allow_retries=True) from e.__cause__
            except NemotronError as e:
                raise failure(e) from e
            set_data_version(context, ref.manifest.content)
        try:
            set_latest(root, context.asset_key.path, partition, ref)
        except ArtifactError as e:
            raise failure(e) from e
        if "dagster/uri" not in (context.output_metadata or {}):
            context.add_output_metadata(metadata(ref))

    def load_input(self, context: dg.InputContext) -> Any:
        given = context.definition_metadata or {}
        wanted, optional = _annotation(context)
        optional = optional or "accepts" in given  # our own steps say themselves what they cannot do without
        accepts = str(given.get("accepts", self.type))
        if "accepts" in given and context.step_context.run_tags.get(ADOPT):
            return None  # the job of that run has read its inputs long ago
        try:
            if not context.has_asset_partitions:
                return _value(self._current(context, None, accepts), wanted, optional, context, None)
            keys = list(context.asset_partition_keys)
            origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
            by_key = origin in (dict, Mapping) and inner[:1] == (str,)
            as_list = origin is list and inner[:1] != (dict,) and typing.get_origin((inner or (None,))[0]) is not dict
            if len(keys) == 1 and context.has_partition_key and not by_key and not as_list:
                return _value(self._current(context, keys[0], accepts), wanted, optional, context, keys[0])
            each = inner[-1] if inner and (by_key or as_list) else Any
            values = {k: _value(self._current(context, k, accepts), each, optional, context, k) for k in keys}
            return list(values.values()) if as_list else values
        except ArtifactError as e:
            raise failure(e) from e

    def _current(self, context: dg.InputContext, partition: str | None, accepts: str) -> ArtifactRef | None:
        """The artifact that the upstream asset has now.

        Raises:
            ArtifactError: it is damaged, foreign, of a wrong type, or not the one that Dagster recorded last.
        """
        root = place(self.root)
        ref = latest(root, context.asset_key.path, partition)
        if ref is None:
            return None
        if not _types().accepts(accepts, ref.type):
            raise ArtifactError(
                f"input accepts {accepts}, but {_key(context)} holds {ref.type} ({ref.uri}). "
                "Materialize it with a step that makes the right type."
            )
        for pause in _AGAIN:
            time.sleep(pause)
            ref = (latest(root, context.asset_key.path, partition) if pause else ref) or ref
            problem = _stale(context, partition, ref)
            if problem is None:
                _remember(context, ref)
                return ref
        raise ArtifactError(f"{_key(context)}: {problem} ({ref.uri}). Materialize it again.")


def io_managers(types: TypeGraph, root: Place) -> dict[str, dg.IOManagerDefinition]:
    """An IO manager per artifact type, by the type's name, with a fixed root.

    Their fields are in no Launchpad: a root of one run's own would part that run from its inputs.
    """
    managers = {name: ArtifactIOManager(type=name, root=str(root)) for name in types.parents}
    return {name: dg.IOManagerDefinition.hardcoded_io_manager(m) for name, m in managers.items()}


def _value(
    ref: ArtifactRef | None, wanted: Any, optional: bool, context: dg.InputContext, partition: str | None
) -> Any:
    if ref is not None:
        return load_value(ref, wanted)
    if optional:
        return None
    where = f", partition {partition}" if partition else ""
    raise ArtifactError(f"{_key(context)}{where}: was never materialized. Materialize it first.")


def _annotation(context: dg.InputContext) -> tuple[Any, bool]:
    """What the consumer's annotation asks for, and whether None will do."""
    found = context.dagster_type.typing_type
    if typing.get_origin(found) in (typing.Union, UnionType):
        kept = [a for a in typing.get_args(found) if a is not type(None)]
        return (kept[0] if len(kept) == 1 else Any), len(kept) < len(typing.get_args(found))
    return found, False


def _partition(context: dg.OutputContext) -> str | None:
    """The partition that is being made, or None.

    Raises:
        dg.Failure: several at once.
    """
    if not context.has_asset_partitions:
        return None
    keys = list(context.asset_partition_keys)
    if len(keys) != 1:
        raise failure(
            ArtifactError(
                f"{_key(context)}: one run makes {len(keys)} partitions, and one value cannot be all of them. Run a "
                "partition at a time: drop BackfillPolicy.single_run()."
            )
        )
    return keys[0]


def _stale(context: dg.InputContext, partition: str | None, ref: ArtifactRef) -> str | None:
    """Why the store's artifact is not the one to load, by what Dagster last recorded of the asset.

    Newer than that is right where several Dagster instances share a root; older, or another than this very run has
    made, is not.
    """
    if partition is None:
        event = context.instance.get_latest_materialization_event(context.asset_key)
    else:
        wanted = dg.AssetRecordsFilter(asset_key=context.asset_key, asset_partitions=[partition])
        found = context.instance.fetch_materializations(wanted, limit=1).records
        event = found[0].event_log_entry if found else None
    made = event.asset_materialization if event is not None else None
    version = (made.tags or {}).get("dagster/data_version") if made is not None else None
    if event is None or version is None or len(version) != _DIGEST or version == ref.manifest.content:
        return None
    if event.run_id == context.step_context.run_id:
        return "another run has replaced what this run made of it"
    published = datetime.fromisoformat(ref.manifest.created).timestamp() if ref.manifest.created else 0.0
    if event.timestamp > published + _CLOCKS:
        return f"the artifact is of {ref.manifest.created}, older than its last materialization, which is gone"
    return None


def _remember(context: dg.InputContext, ref: ArtifactRef) -> None:
    step = context.step_context
    if len(_loaded) > 50:
        _loaded.pop(next(iter(_loaded)))
    _loaded.setdefault((step.run_id, step.step.key), {})[context.name] = ref


def _key(context: dg.InputContext | dg.OutputContext) -> str:
    return str(context.asset_key.to_user_string())


def failure(error: NemotronError, known: Mapping[str, dg.MetadataValue[Any]] | None = None) -> dg.Failure:
    """A Dagster failure that shows the message alone and is not retried: running again would not mend it.

    ``known`` is what is known of the job that failed.
    """
    return dg.Failure(str(error), metadata={"exit_code": error.exit_code, **(known or {})}, allow_retries=False)


def metadata(ref: ArtifactRef) -> dict[str, dg.MetadataValue[Any]]:
    """What the asset's page shows, in this order: figures, pictures, samples, then where everything lies."""
    m = ref.manifest
    out: dict[str, dg.MetadataValue[Any]] = {}
    for key, value in describe.summary(ref).items():
        name = "dagster/row_count" if key == "rows" else key
        if isinstance(value, int):
            out[name] = dg.MetadataValue.int(value)
        else:
            out[name] = dg.MetadataValue.float(value) if isinstance(value, float) else dg.MetadataValue.text(value)
    for title, text in describe.tables(ref).items():
        out[title] = dg.MetadataValue.md(text)
    if warnings := describe.warnings(ref):
        out["warnings"] = dg.MetadataValue.md("\n".join(f"- {cell(w)}" for w in warnings))
    for picture in m.facts.get("pictures", []):
        stem = Path(picture).stem
        data = base64.b64encode((ref.folder / picture).read_bytes()).decode()
        out[f"{stem} picture"] = dg.MetadataValue.md(f"![{stem}](data:image/png;base64,{data})")
    if text := describe.samples(ref):
        out["samples"] = dg.MetadataValue.md(text)
    if columns := describe.columns(ref):
        schema = [dg.TableColumn(name, type_, description) for name, type_, description in columns]
        out["dagster/column_schema"] = dg.MetadataValue.table_schema(dg.TableSchema(schema))
    out["type"] = dg.MetadataValue.text(ref.type)
    if m.config:
        out["config"] = dg.MetadataValue.text(m.config)
    out["dagster/size_bytes"] = dg.MetadataValue.int(m.bytes)
    out["dagster/uri"] = dg.MetadataValue.text(ref.uri)
    out["path"] = dg.MetadataValue.path(str(ref.path))
    out["manifest"] = dg.MetadataValue.path(f"{ref.uri}/artifact.json")
    if m.job.get("directory"):
        out["job_log"] = dg.MetadataValue.path(f"{m.job['directory']}/log")
    return out


def _types() -> TypeGraph:
    return load_catalog(find_project()).types
