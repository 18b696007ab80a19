"""What the ``*_jsonl`` types share: where the rows lie, how they are checked, shown, read and written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.markdown import json_block, table
from nemotron_dagster.artifacts.types import _check, _files, _parallel, _scan, _tally
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.errors import ArtifactError

LAYOUT = "One .jsonl file, a directory of *.jsonl files (also .gz, .zst), or a glob of them; one JSON object per line."
PARQUET = f"{LAYOUT[:-1]}. Or the same rows as *.parquet."
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SHARD = 1 << 30
_ALONE = 32 << 20  # so many bytes are checked sooner than a process starts


def validate(path: Path | str, rules: _check.Rules, parquet: bool = False) -> dict[str, Any]:
    """Read every row, in as many processes as are worth it.

    Blank lines, carriage returns before line feeds, a last line without line feed, numbers of any size and keys that
    stand twice (the last counts) pass. A byte order mark, other encodings than UTF-8, NaN and half surrogates do not.

    Returns:
        Facts: rows, files, bytes, kinds (rows per kind), for conversations roles, turns, rows_with_tools and
        rows_without_assistant; languages, lengths (characters per line), columns (of the rows parsed whole), samples.

    Raises:
        ArtifactError: naming file and line of each bad row, up to 20, and how many there are.
    """
    problems = Problems()
    found = _files.data_files(path, (*SUFFIXES, ".parquet") if parquet else SUFFIXES, problems)
    lines = [f for f in found if f.suffix != ".parquet" or not parquet]
    size = sum(f.stat().st_size * (5 if f.name.endswith((".gz", ".zst")) else 1) for f in lines)
    workers = _parallel.processors() if size > _ALONE else 1
    pieces = _scan.pieces(lines, min(max(size // (4 * workers), 8 << 20), 64 << 20))
    tallies = _parallel.each(_check.check_piece, [(p, rules) for p in pieces], workers)
    total = _tally.Tally()
    for file, group in groupby(zip(pieces, tallies, strict=True), key=lambda pair: pair[0].file):
        before = 0
        for _, tally in group:
            problems.merge([f"{file}:{before + n}: {text}" for n, text in tally.shown], tally.wrong)
            if tally.damage:
                problems.add(tally.damage)
            before += tally.lines
            total.merge(tally)
    packed = [f for f in found if f not in lines]
    if packed:
        from nemotron_dagster.artifacts.types import _rows_parquet

        tallies = _parallel.each(_rows_parquet.check, [(f, rules) for f in packed], 1, apart=True)
        for file, tally in zip(packed, tallies, strict=True):
            problems.merge([f"{file}: row {n}: {text}" for n, text in tally.shown], tally.wrong)
            if tally.damage:
                problems.add(tally.damage)
            total.merge(tally)
    problems.check(f"{total.wrong:,} of {total.rows:,} rows are wrong. Mend or remove them." if total.wrong else "")
    if not total.rows:
        raise ArtifactError(f"{path}: has no rows. Check what wrote it.")
    facts = total.facts()
    head = {"rows": facts.pop("rows"), "files": len(found), "bytes": sum(f.stat().st_size for f in found)}
    return {**head, **facts}


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Rows, files, and what the conversations have."""
    out: dict[str, int | float | str] = {"rows": facts["rows"], "files": facts["files"]}
    if facts.get("roles"):
        out["messages"] = sum(facts["roles"].values())
    for key in ("rows_with_tools", "rows_without_assistant"):
        if facts.get(key):
            out[key] = facts[key]
    return out


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """Kinds of rows and languages where there are several, and the roles."""
    out = {}
    for title, key, least in (("kinds", "kinds", 2), ("roles", "roles", 1), ("languages", "languages", 2)):
        if len(facts.get(key) or ()) >= least:
            out[title] = table((title[:-1], "messages" if key == "roles" else "rows"), facts[key].items())
    return out


def samples(facts: Mapping[str, Any]) -> str:
    """A few rows."""
    return json_block(facts.get("samples") or [])


def columns(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The keys that rows have, with the types of their values."""
    return [(name, type_, "") for name, type_ in facts.get("columns", [])]


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """The lengths of rows; roles and languages where there are several."""
    from nemotron_dagster.artifacts import pictures

    drawn = [pictures.histogram(facts["lengths"], "characters per row", "rows", folder / "lengths.png")]
    for key, unit in (("roles", "messages"), ("languages", "rows")):
        if len(facts.get(key) or ()) > 1:
            drawn.append(pictures.bars(facts[key], unit, folder / f"{key}.png"))
    return drawn


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows, one after the other.

    Raises:
        ArtifactError: no data there, or a line that is no JSON object.
    """
    problems = Problems()
    found = _files.data_files(path, (*SUFFIXES, ".parquet"), problems)
    problems.check()
    for file in found:
        yield from _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file)


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    from nemotron_dagster.artifacts.types import _rows

    number = 0
    for block in _scan.read(_scan.Piece(file, 0, None)):
        if block.too_long:
            raise ArtifactError(f"{file}:{number + 1}: is a line of {block.too_long:,} bytes. Split it.")
        for i, line in enumerate(block.lines):
            number += 1
            if line.strip():
                try:
                    yield _rows.mapping(_check.parse(line, block.cut and i == len(block.lines) - 1))
                except _rows.Fault as e:
                    raise ArtifactError(f"{file}:{number}: {e}.") from e


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(1000):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as e:
        raise ArtifactError(f"{file}: cannot be read ({_scan.first_line(e)}). Make it again.") from e


def write(value: Iterable[Mapping[str, Any]], folder: Path, shard_bytes: int = SHARD) -> None:
    """Write rows as ``part-00000.jsonl``, ``part-00001.jsonl`` ... of up to ``shard_bytes`` each.

    Each shard gets its name when it is whole. NaN becomes null, as JSON has no such number.

    Raises:
        ArtifactError: no rows, a row that is no mapping or cannot be JSON, or a folder that has shards already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("part-*.jsonl*")):
        raise ArtifactError(f"{folder}: has shards already. Name another directory.")
    shards = 0
    lines = _encoded(value)
    line = next(lines, None)
    if line is None:
        raise ArtifactError(f"{folder}: there are no rows to write. Check what makes them.")
    while line is not None:
        file = folder / f"part-{shards:05d}.jsonl"
        partial = file.with_name(f".{file.name}.tmp")
        written = 0
        try:
            with open(partial, "wb", buffering=1 << 20) as out:
                while line is not None and (not written or written + len(line) <= shard_bytes):
                    written += out.write(line)
                    line = next(lines, None)
            os.replace(partial, file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        shards += 1


def _encoded(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    import orjson

    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ArtifactError(f"row {number} is a {type(row).__name__}, not a mapping. Write one mapping per row.")
        try:
            yield orjson.dumps(row if isinstance(row, dict) else dict(row), option=options)
        except orjson.JSONEncodeError as e:
            raise ArtifactError(f"row {number} cannot be written as JSON ({e}). Write plain values.") from e
