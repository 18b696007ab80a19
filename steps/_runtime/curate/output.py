"""The second pass: write the kept rows as shards, then the report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_curator.tasks import DocumentBatch

from _runtime.curate.dedup import Row
from _runtime.curate.rows import Unit, lines, parse, text_of
from _runtime.curate.stages import language_columns, shown

REPORT = "curation.json"
PARTIAL = ".partial"


def notes_of(batch: DocumentBatch) -> list[dict[str, Any]]:
    """Per kept row what the filters found out about it; empty where none ran that annotates."""
    data = batch.to_pandas()
    columns: dict[str, list[Any]] = {}
    if "langid" in data:
        columns |= language_columns(data["langid"])
    if "domain" in data:
        columns["domain"] = list(data["domain"])
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def kept_lines(units: list[Unit], batches: list[DocumentBatch]) -> Iterator[bytes]:
    """The kept rows as JSON lines: byte for byte as they were read, unless there is something to add."""
    for unit, batch in zip(units, batches, strict=True):
        numbers = [int(n) for n in batch.to_pandas()["line"]]
        notes = notes_of(batch) or [{} for _ in numbers]
        wanted = dict(zip(numbers, notes, strict=True))
        if not wanted:
            continue
        for number, line in lines(unit):
            if number not in wanted:
                continue
            if note := wanted[number]:
                row = {**parse(line, unit.path, number), **note}
                line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
            yield line


def texts(units: list[Unit], rows: list[Row], text_field: str) -> list[dict[str, str]]:
    """Examples for the report of rows that were removed after their text was let go."""
    examples = []
    for index, wanted in rows:
        unit = units[index]
        for number, line in lines(unit):
            if number == wanted:
                text = text_of(parse(line, unit.path, number), text_field, unit.path, number)
                examples.append({"row": f"{unit.path}:{number}", "text": shown(text)})
                break
    return examples


def write(output_dir: Path, rows: Iterator[bytes], rows_per_shard: int, report: dict[str, Any]) -> None:
    """Write shards beside their place, move them there, and write the report last."""
    output_dir.mkdir(parents=True, exist_ok=True)
    partial = output_dir / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    for stale in [*output_dir.glob("shard_*.jsonl"), output_dir / REPORT]:
        stale.unlink(missing_ok=True)
    partial.mkdir()
    try:
        report["shards"] = _write_shards(partial, rows, rows_per_shard)
        (partial / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        for shard in report["shards"]:
            os.replace(partial / shard["file"], output_dir / shard["file"])
        os.replace(partial / REPORT, output_dir / REPORT)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_shards(folder: Path, rows: Iterator[bytes], rows_per_shard: int) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = []
    row = next(rows, None)
    while row is not None:
        name, count = f"shard_{len(shards):06d}.jsonl", 0
        with (folder / name).open("wb") as out:
            while row is not None and count < rows_per_shard:
                out.write(row + b"\n")
                count += 1
                row = next(rows, None)
        shards.append({"file": name, "rows": count})
    return shards
