"""One IO manager per artifact type. Bytes never move: assets pass ``ArtifactRef`` handles."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import dagster as dg

from nemotron_dagster.artifacts import describe
from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.artifacts.store import latest, set_latest
from nemotron_dagster.catalog import TypeGraph, load_catalog
from nemotron_dagster.errors import ArtifactError, NemotronError
from nemotron_dagster.project import find_project


class ArtifactIOManager(dg.ConfigurableIOManager):
    """Stores which artifact of ``type`` an asset's current one is, and loads it for consumers.

    ``load_input`` returns None where the asset was never materialized: whether that matters is the step's to say.
    """

    type: str
    root: str

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if not isinstance(obj, ArtifactRef) or not _types().accepts(self.type, obj.type):
            got = obj.type if isinstance(obj, ArtifactRef) else type(obj).__name__
            raise failure(ArtifactError(f"{context.asset_key.to_user_string()}: expected a {self.type}, got {got}."))
        partition = context.partition_key if context.has_partition_key else None
        set_latest(Path(self.root), context.asset_key.path, partition, obj)
        context.add_output_metadata(metadata(obj))

    def load_input(self, context: dg.InputContext) -> ArtifactRef | None:
        partition = context.partition_key if context.has_partition_key else None
        try:
            ref = latest(Path(self.root), context.asset_key.path, partition)
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
    """What the asset's page shows: where it is, its figures, pictures, samples and provenance."""
    m, facts = ref.manifest, ref.manifest.facts
    out: dict[str, dg.MetadataValue[Any]] = {
        "dagster/uri": dg.MetadataValue.text(ref.uri),
        "path": dg.MetadataValue.path(str(ref.path)),
        "type": dg.MetadataValue.text(ref.type),
        "bytes": dg.MetadataValue.int(m.bytes),
    }
    for key, value in describe.summary(ref).items():
        name = "dagster/row_count" if key == "rows" else key
        if isinstance(value, int):
            out[name] = dg.MetadataValue.int(value)
        else:
            out[name] = dg.MetadataValue.float(value) if isinstance(value, float) else dg.MetadataValue.text(value)
    if text := describe.table(facts, m.reported):
        out["table"] = dg.MetadataValue.md(text)
    for picture in facts.get("pictures", []):
        data = base64.b64encode((Path(ref.uri) / picture).read_bytes()).decode()
        out[Path(picture).stem] = dg.MetadataValue.md(f"![{Path(picture).stem}](data:image/png;base64,{data})")
    if text := describe.samples(facts):
        out["samples"] = dg.MetadataValue.md(text)
    out["config"] = dg.MetadataValue.text(m.config)
    out["job_log"] = dg.MetadataValue.path(f"{m.job.get('directory', '')}/log")
    out["manifest"] = dg.MetadataValue.path(f"{ref.uri}/artifact.json")
    return out


def _types() -> TypeGraph:
    return load_catalog(find_project()).types
