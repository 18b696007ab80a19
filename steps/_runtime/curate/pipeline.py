"""Curation from options to shards and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nemo_curator
from nemo_curator.tasks import DocumentBatch

from _runtime import payload
from _runtime.curate import dedup, executors, filters, output, rows
from _runtime.curate.options import Options
from _runtime.curate.stages import EXAMPLES


def curate(options: Options) -> None:
    """Read, filter, deduplicate and write; nothing is written before all rows were read and checked."""
    stages = filters.build(options)
    if options.dataset:
        _download(options.dataset)
    files = rows.find_files(options.input_glob, options.output_dir)
    units = rows.cut(files)
    executor = executors.choose(options, files)
    batches = executors.run(executor, stages, units, options, _Progress(len(units)))
    rows_in = sum(batch._metadata["rows"] for batch in batches)
    if not rows_in:
        shown = ", ".join(map(str, files[:3])) + (" ..." if len(files) > 3 else "")
        raise payload.PayloadError("empty_input", f"no row in {shown}", "Point input_glob at JSONL that holds rows.")
    removed = _merge(batches) + _deduplicate(options, batches, units)
    rows_out = sum(len(batch.data) for batch in batches)
    if not rows_out:
        raise _nothing_left(rows_in, removed)
    report = {
        "engine": f"nemo-curator {nemo_curator.__version__}",
        "executor": executor,
        "inputs": [str(f) for f in files],
        "rows_in": rows_in,
        "rows_out": rows_out,
        "filters": removed,
    }
    output.write(Path(options.output_dir), output.kept_lines(units, batches), options.rows_per_shard, report)
    counts = {f["name"]: f["removed"] for f in removed}
    payload.result(rows_in=rows_in, rows_out=rows_out, removed=counts, executor=executor, files=len(files))


class _Progress:
    """Tells rows read and kept after each unit."""

    def __init__(self, units: int) -> None:
        self.units, self.done, self.rows, self.kept = units, 0, 0, 0

    def __call__(self, batch: DocumentBatch) -> None:
        self.done += 1
        self.rows += batch._metadata["rows"]
        self.kept += len(batch.data)
        payload.progress(self.done, self.units, rows=self.rows, rows_kept=self.kept)


def _merge(batches: list[DocumentBatch]) -> list[dict[str, Any]]:
    """The units' notes summed per filter; the examples are the first ones in the units' order."""
    total: dict[str, dict[str, Any]] = {}
    for batch in batches:
        for note in batch._metadata["removed"]:
            entry = total.setdefault(note["name"], {"name": note["name"], "removed": 0, "examples": []})
            entry["removed"] += note["removed"]
            entry["examples"] = (entry["examples"] + note["examples"])[:EXAMPLES]
    return list(total.values())


def _deduplicate(options: Options, batches: list[DocumentBatch], units: list[rows.Unit]) -> list[dict[str, Any]]:
    removed = []
    if options.exact:
        removed.append(("exact_duplicate", dedup.drop_exact(batches)))
    if options.fuzzy:
        removed.append(("near_duplicate", dedup.drop_near(batches, options.fuzzy)))
    return [
        {
            "name": name,
            "removed": len(gone),
            "examples": output.texts(units, gone[:EXAMPLES], options.text_field),
        }
        for name, gone in removed
    ]


def _nothing_left(rows_in: int, removed: list[dict[str, Any]]) -> payload.PayloadError:
    most = max(removed, key=lambda f: f["removed"])
    counts = ", ".join(f"{f['name']} {f['removed']}" for f in removed if f["removed"])
    example = "".join(f"; for instance {e['row']}: {e['text']!r}" for e in most["examples"][:1])
    return payload.PayloadError(
        "empty_or_tiny_output",
        f"no row of {rows_in} is left; {most['name']} removed most ({counts}){example}",
        f"Relax or drop the {most['name']} filter.",
    )


def _download(settings: dict[str, Any]) -> None:
    """Take a snapshot of a Hugging Face data set, as ``dataset`` describes it."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(**settings)
    except TypeError as e:
        raise payload.PayloadError("config_invalid", f"dataset: {e}", "Its keys are snapshot_download's.") from None
    except (OSError, ValueError) as e:
        first = str(e).splitlines()[0] if str(e) else type(e).__name__
        message = f"dataset: {settings.get('repo_id')} cannot be downloaded: {first}"
        recovery = "Set dataset to null and input_glob to local files where there is no network."
        raise payload.PayloadError("dataset_unavailable", message, recovery) from None
