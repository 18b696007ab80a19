"""The rows of other datasets that placeholders of the input stand for, collected once, before shards are made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _runtime.data_prep import hub, rows, sources
from _runtime.data_prep.blend import Dataset
from _runtime.data_prep.placeholders import Target, reference
from _runtime.data_prep.plan import Slice, digest
from _runtime.data_prep.rejects import Rejects
from _runtime.data_prep.rl_messages import Fault
from _runtime.data_prep.rl_rows import PLACEHOLDER
from _runtime.data_prep.shards import write_whole
from _runtime.data_prep.sources import SourceFile
from _runtime.payload import PayloadError

_MARK = PLACEHOLDER.encode()
_BLOCK = 4 << 20


@dataclass(frozen=True)
class Found:
    """What the placeholders of one name stand for.

    Attributes:
        rows: row number -> [question, answer], as far as they could be had.
        files: identities of the files that they come from.
        why: why there are none, if so.
        wanted: how many different rows were asked for.
    """

    target: Target | None
    wanted: int
    rows: Mapping[int, list[Any]] = field(default_factory=dict)
    files: Sequence[SourceFile] = ()
    why: str | None = None

    def identity(self) -> dict[str, Any]:
        """What a shard's digest sees of it."""
        about = self.target.to_json() if self.target else None
        return {"target": about, "files": [f.identity for f in self.files], "why": self.why}


def collect(files: Sequence[SourceFile], ends: Mapping[str, int], targets: Mapping[str, Target]) -> dict[str, Found]:
    """Name -> the rows that placeholders in ``files`` mean; {} where there is no placeholder.

    Args:
        ends: path -> how much of the file is used, see ``plan.Slice.end``.

    Raises:
        PayloadError: an input file cannot be read. A dataset that is not to be had is told by ``Found.why``.
    """
    wanted: dict[str, set[int]] = {}
    for file in files:
        if ends.get(file.path, 1) and _mentions(file):
            _references(Slice(file, end=ends.get(file.path)), wanted)
    return {name: _found(name, numbers, targets.get(name)) for name, numbers in sorted(wanted.items())}


def save(found: Mapping[str, Found], folder: Path) -> str:
    """Write the rows where workers can read them; the file's path."""
    data = {
        name: {"target": f.target.to_json() if f.target else None, "rows": f.rows, "why": f.why}
        for name, f in found.items()
    }
    text = json.dumps(data, ensure_ascii=True)
    file = folder / f"placeholders-{digest(data)}.json"
    write_whole(file, text)
    return str(file)


def _mentions(file: SourceFile) -> bool:
    """Whether the word is in the file at all; reading bytes is many times faster than reading rows."""
    if file.format == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with sources.open_raw(file) as stream:
                return PLACEHOLDER in pq.ParquetFile(pa.PythonFile(stream, "r")).schema_arrow.names
        except (pa.ArrowException, OSError) as e:
            raise sources.unreadable(file, str(e).splitlines()[0]) from None
    before = b""
    try:
        with sources.open_rows(file) as stream:
            while block := stream.read(_BLOCK):
                if _MARK in before + block:
                    return True
                before = block[-len(_MARK) :]
    except (OSError, EOFError) as e:
        raise sources.unreadable(file, str(e)) from None
    return False


def _references(part: Slice, wanted: dict[str, set[int]]) -> None:
    for batch in rows.read(part, Rejects(), ["dataset", PLACEHOLDER]):
        for row in batch.rows:
            if row.get(PLACEHOLDER) is not None:
                try:
                    name, number = reference(row)
                except Fault:
                    continue  # the shard that reads the row counts it
                wanted.setdefault(name, set()).add(number)


def _found(name: str, numbers: set[int], target: Target | None) -> Found:
    if target is None:
        return Found(None, len(numbers), why=f"placeholder_datasets does not say what {name!r} is")
    try:
        files = _files(name, target)
        return Found(target, len(numbers), _pick(files, numbers, target), files)
    except PayloadError as e:
        return Found(target, len(numbers), why=e.message)


def _files(name: str, target: Target) -> list[SourceFile]:
    """The files of the target's split, or all where their names do not tell."""
    dataset = Dataset(name, target.path, revision=target.revision)
    every = sources.find_files(dataset)
    named = [f for f in every if hub.in_split(f.name, target.split)]
    return named or every


def _pick(files: Sequence[SourceFile], numbers: set[int], target: Target) -> dict[int, list[Any]]:
    """Question and answer of the rows with these numbers, counted through all files in order."""
    columns = [target.question.split(".")[0], target.answer.split(".")[0]]
    found: dict[int, list[Any]] = {}
    before = 0
    for file in files:
        count = _count(file)
        inside = sorted(n - before for n in numbers if before <= n < before + count)
        for number, row in _rows(file, inside, columns):
            question = _at(row, target.question)
            if isinstance(question, str):
                found[before + number] = [question, _at(row, target.answer)]
        before += count
    return found


def _count(file: SourceFile) -> int:
    if file.format == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with sources.open_raw(file) as stream:
                return int(pq.ParquetFile(pa.PythonFile(stream, "r")).metadata.num_rows)
        except (pa.ArrowException, OSError) as e:
            raise sources.unreadable(file, str(e).splitlines()[0]) from None
    if file.format == "json" and rows.is_array(file):
        return len(rows.array_rows(file))
    return sum(not blank for _, blank in rows.lengths(Slice(file)))


def _rows(file: SourceFile, numbers: Sequence[int], columns: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """Rows of one file by their numbers, from 0; of Parquet only the row groups that hold them are read."""
    if not numbers:
        return []
    found: list[tuple[int, dict[str, Any]]] = []
    if file.format == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        with sources.open_raw(file) as stream:
            parquet = pq.ParquetFile(pa.PythonFile(stream, "r"))
            have = [c for c in columns if c in parquet.schema_arrow.names]
            first = 0
            for group in range(parquet.num_row_groups):
                size = parquet.metadata.row_group(group).num_rows
                inside = [n for n in numbers if first <= n < first + size]
                if inside:
                    table = parquet.read_row_group(group, columns=have, use_threads=False)
                    picked = table.take([n - first for n in inside]).to_pylist()
                    found += zip(inside, picked, strict=True)
                first += size
        return found
    wanted, rejects, bad = set(numbers), Rejects(), "a broken line shifts the numbers of all rows after it"
    number = 0
    for batch in rows.read(Slice(file), rejects):
        if rejects.counts:
            raise PayloadError("input_not_json", f"{file.path}: {bad}", "Mend the file.")
        for row in batch.rows:
            if number in wanted:
                found.append((number, row))
            number += 1
    return found


def _at(row: Any, path: str) -> Any:
    value = row
    for key in path.split("."):
        if isinstance(value, list) and key.isdigit():
            value = value[int(key)] if int(key) < len(value) else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value
