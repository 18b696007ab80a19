"""Finds chat rows on disk and checks them before a trainer is started.

A dataset is named by a file, a directory of JSONL shards, a glob, a list of those, or a Hugging Face Hub id.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _runtime.payload import PayloadError

ROLES = {"system", "user", "assistant", "tool"}
LINES = {".jsonl", ".ndjson"}
MISSING = "Give a .jsonl file, a directory that holds some, or a glob; each row needs a `messages` list."
# Line ends to str.splitlines(), which trainers read JSONL with, but legal inside a JSON string.
LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def given(value: Any) -> bool:
    """Is the value a real one, not a mandatory-value mark or an example path left in a config?"""
    return value not in (None, "", "???", []) and not str(value).startswith("/path/to/")


def is_hub_id(value: str) -> bool:
    """Could the value be ``organization/dataset`` rather than a path?"""
    looks_local = value.startswith(("/", ".", "~")) or any(c in value for c in "*?[\\") or Path(value).suffix in LINES
    return value.count("/") == 1 and not looks_local and not Path(value).exists()


def find(value: Any, key: str) -> list[Path] | str:
    """Resolve a dataset setting to its files in a fixed order, or to the Hub id it is.

    Raises:
        PayloadError: nothing there, or packed Parquet, which this trainer cannot read.
    """
    if isinstance(value, (list, tuple)):
        parts = [find(v, key) for v in value]
        if any(isinstance(p, str) for p in parts):
            raise PayloadError("dataset_missing", f"{key}: a list must name files, not Hub ids", MISSING)
        return [path for part in parts for path in part if isinstance(path, Path)]
    if is_hub_id(str(value)):
        return str(value)
    path = Path(str(value)).expanduser()
    if path.is_dir():
        shards = [p for p in path.rglob("*") if p.is_file() and not any(s[0] == "." for s in p.relative_to(path).parts)]
        found = sorted(p for p in shards if p.suffix in LINES) or sorted(p for p in shards if p.suffix == ".parquet")
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not found:
        what = "holds no .jsonl file" if path.is_dir() else "no such file, directory or match"
        raise PayloadError("dataset_missing", f"{key}={value}: {what}", MISSING)
    for parquet in (p for p in found if p.suffix == ".parquet"):
        _refuse_packed(parquet, key)
    return found


def _refuse_packed(path: Path, key: str) -> None:
    import pyarrow.parquet as pq

    try:
        columns = set(pq.read_schema(path).names)
    except (OSError, ValueError) as e:
        raise PayloadError("dataset_invalid", f"{key}: {path}: not readable as Parquet ({e})", MISSING) from None
    if {"input_ids", "loss_mask"} & columns:
        raise PayloadError(
            "packed_parquet_used_with_automodel",
            f"{key}: {path}: packed token sequences (columns {', '.join(sorted(columns))})",
            "Give the JSONL that was packed: AutoModel tokenizes chat rows itself. Or train with sft/megatron_bridge.",
        )
    if not {"messages", "conversations"} & columns:
        raise PayloadError("dataset_invalid", f"{key}: {path}: has no `messages` column", MISSING)


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) of a JSON or JSON Lines file.

    Raises:
        PayloadError: a line that is not JSON.
    """
    with path.open(encoding="utf-8") as lines:
        if path.suffix not in LINES:
            try:
                whole = json.load(lines)
            except ValueError as e:
                raise PayloadError("dataset_invalid", f"{path}: not JSON ({e})", "Write one row a line.") from None
            listed = whole if isinstance(whole, list) else [whole]
            yield from ((f"{path}, row {n}", row) for n, row in enumerate(listed, 1))
            return
        n = 0
        try:
            for n, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}, line {n}", json.loads(line)
        except ValueError as e:  # UnicodeDecodeError too
            place = f"{path}, line {n}" if isinstance(e, json.JSONDecodeError) else f"{path}, after line {n}"
            raise PayloadError("dataset_invalid", f"{place}: not JSON ({e})", "Mend or drop the line.") from None


def fault(row: Any) -> str | None:
    """What is wrong with a chat row, or None."""
    if not isinstance(row, dict):
        return f"a {type(row).__name__}, not an object"
    turns = row.get("messages")
    if turns is None and isinstance(row.get("conversations"), list):
        return None if row["conversations"] else "`conversations` is empty"  # ShareGPT; the trainer converts it
    if turns is None:
        return f"no `messages`; its keys are {', '.join(map(str, row)) or 'none'}"
    if not isinstance(turns, list) or not turns:
        return "`messages` must be a list of at least one turn"
    for n, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            role = turn.get("role") if isinstance(turn, dict) else turn
            return f"messages[{n}].role is {role!r}; it must be one of {', '.join(sorted(ROLES))}"
    if not any(turn["role"] == "assistant" for turn in turns):
        return "no assistant turn, so there is nothing to learn"
    return None


def check(files: list[Path], key: str) -> int:
    """Check every row of the files; returns how many there are.

    Raises:
        PayloadError: the first row that cannot be trained on, or no rows at all.
    """
    count = 0
    for path in (p for p in files if p.suffix != ".parquet"):
        for place, row in rows(path):
            wrong = fault(row)
            if wrong:
                raise PayloadError("dataset_invalid", f"{key}: {place}: {wrong}", "Mend or drop the row.")
            count += 1
    for path in (p for p in files if p.suffix == ".parquet"):
        import pyarrow.parquet as pq

        count += pq.read_metadata(path).num_rows
    if not count:
        raise PayloadError("dataset_empty", f"{key}: {', '.join(map(str, files[:3]))}: no rows", MISSING)
    return count


def readable(files: list[Path], scratch: Path) -> list[str]:
    """The files as str.splitlines() can read them: one that holds a Unicode line end in a string is copied, escaped."""
    out = []
    for n, path in enumerate(files):
        data = path.read_bytes() if path.suffix in LINES else b""
        if any(end.encode() in data for end in LINE_ENDS):
            text = data.decode()
            for end, escape in LINE_ENDS.items():
                text = text.replace(end, escape)
            scratch.mkdir(parents=True, exist_ok=True)
            partial = scratch / f".{n:05d}.{os.getpid()}"  # every rank writes the same
            partial.write_text(text, encoding="utf-8")
            path = partial.replace(scratch / f"{n:05d}.jsonl")
        out.append(str(path))
    return out
