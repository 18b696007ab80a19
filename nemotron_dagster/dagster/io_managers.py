"""One IO manager per artifact type. Bytes never move: assets pass ``ArtifactRef`` handles."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from nemotron_dagster.artifacts import describe
from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.artifacts.store import latest, set_latest
from nemotron_dagster.catalog import TypeGraph, load_catalog
from nemotron_dagster.errors import ArtifactError, NemotronError
from nemotron_dagster.project import find_project

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place


@dataclass(frozen=True)
class ArtifactIOManager(dg.IOManager):
    """Stores which artifact of ``type`` an asset's current one is, and loads it for consumers.

    Not a ``ConfigurableIOManager``: its fields would be in every Launchpad, and a root of one run's own would part it
    from its inputs. ``load_input`` returns None where the asset was never materialized: whether that matters is the
    step's to say.
    """

    type: str
    root: Place

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if not isinstance(obj, ArtifactRef) or not _types().accepts(self.type, obj.type):
            got = obj.type if isinstance(obj, ArtifactRef) else type(obj).__name__
            raise failure(ArtifactError(f"{context.asset_key.to_user_string()}: expected a {self.type}, got {got}."))
        partition = context.partition_key if context.has_partition_key else None
        set_latest(self.root, context.asset_key.path, partition, obj)
        context.add_output_metadata(metadata(obj))

    def load_input(self, context: dg.InputContext) -> ArtifactRef | None:
        partition = context.partition_key if context.has_partition_key else None
        try:
            ref = latest(self.root, context.asset_key.path, partition)
            wanted = (context.definition_metadata or {}).get("accepts", self.type)
            if ref is not None and not _types().accepts(wanted, ref.type):
                raise ArtifactError(
                    f"input accepts {wanted}, but {context.asset_key.to_user_string()} holds {ref.type} ({ref.uri}). "
                    "Materialize it with a step that makes the right type."
                )
        except ArtifactError as e:
            raise failure(e) from e
        return ref


def failure(error: NemotronError) -> dg.Failure:
    """A Dagster failure that shows the message alone and is not retried: running again would not mend it."""
    return dg.Failure(str(error), metadata={"exit_code": error.exit_code}, allow_retries=False)


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
    out["config"] = dg.MetadataValue.text(m.config)
    out["dagster/size_bytes"] = dg.MetadataValue.int(m.bytes)
    out["dagster/uri"] = dg.MetadataValue.text(ref.uri)
    out["path"] = dg.MetadataValue.path(str(ref.path))
    out["manifest"] = dg.MetadataValue.path(f"{ref.uri}/artifact.json")
    out["job_log"] = dg.MetadataValue.path(f"{m.job.get('directory', '')}/log")
    return out


def _types() -> TypeGraph:
    return load_catalog(find_project()).types
