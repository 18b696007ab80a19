"""Make one shard of RL data: rows as JSON lines, a file per split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import lru_cache
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from _runtime.data_prep import rows
from _runtime.data_prep.placeholders import Target, reference, resolved
from _runtime.data_prep.plan import Slice
from _runtime.data_prep.rejects import Rejects
from _runtime.data_prep.rl_messages import Fault
from _runtime.data_prep.rl_rows import PLACEHOLDER, asked, prepared
from _runtime.data_prep.rl_splits import MANIFEST, split_for
from _runtime.data_prep.shards import Job, Made

SUFFIX = {"none": ".jsonl", "zstd": ".jsonl.zst"}
#: What Python's parser takes and JSON does not have, half of a surrogate pair, or what some readers end a line at.
_DOUBTS = (b"NaN", b"Infinity", b"\\ud", b"\\uD", b"\r")


class _Split:
    """The files of one split of a shard; none is made before its first row."""

    def __init__(self, split: str, job: Job, open_files: ExitStack) -> None:
        stem = f"{MANIFEST[split]}_shard_{job.shard.index:06d}"
        self.names = {
            split: f"{stem}{SUFFIX[job.settings['compression']]}",
            f"{split}_rows": f"receipts/{stem}.rows.xxh3",
            f"{split}_prompts": f"receipts/{stem}.prompts.xxh3",
        }
        opened = (open(job.temporary(name), "wb") for name in self.names.values())  # noqa: SIM115 - the stack closes them
        files = [open_files.enter_context(file) for file in opened]
        self.out: Any = files[0]
        self.rows, self.prompts = files[1:]
        if job.settings["compression"] == "zstd":
            import pyarrow as pa

            stream = pa.CompressedOutputStream(pa.PythonFile(files[0], "w"), "zstd")
            self.out = open_files.enter_context(stream)
        self.count = self.bytes = 0

    def add(self, lines: list[tuple[bytes, int, int]]) -> None:
        texts, rows_, prompts = zip(*lines, strict=True)
        data = b"\n".join(texts) + b"\n"
        self.out.write(data)
        self.rows.write(np.array(rows_, "<u8").tobytes())
        self.prompts.write(np.array(prompts, "<u8").tobytes())
        self.count += len(lines)
        self.bytes += len(data)


def write_shard(job: Job) -> Made:
    """Write the rows of a shard, each into the file of its split, and two xxh3-64 hashes of each.

    Settings: ``split`` (or "all"), ``shares`` and ``least`` (see ``rl_splits.split_for``), ``split_seed``,
    ``compression``, those of ``rl_rows.prepared``; ``resolve``, ``placeholders`` and ``held_out`` name files of the
    parent process, or are None.

    Raises:
        PayloadError: a file that cannot be read, or a bad row where they are not skipped.
    """
    parts: dict[str, _Split] = {}
    stats: Counter[str] = Counter(rows=0, tokens=0, resolved=0, completions_left_out=0)
    with ExitStack() as open_files:
        for piece in job.shard.slices:
            for batch in rows.read(piece, job.rejects):
                lines: dict[str, list[tuple[bytes, int, int]]] = {}
                for number in range(len(batch.rows)):
                    try:
                        split, line = _line(batch, number, job.settings, stats)
                    except Fault as fault:
                        batch.reject(
                            job.rejects, number, fault.reason, fault.note, bad=fault.reason != "in_another_split"
                        )
                    else:
                        lines.setdefault(split, []).append(line)
                for split, some in lines.items():
                    if split not in parts:
                        parts[split] = _Split(split, job, open_files)
                    parts[split].add(some)
                job.tell(sum(map(len, lines.values())), 0, batch.bytes)
    for split, part in parts.items():
        stats["rows"] += part.count
        stats[f"{split}_rows"], stats[f"{split}_bytes"] = part.count, part.bytes
    return Made({kind: name for part in parts.values() for kind, name in part.names.items()}, stats)


def prompts(part: Slice, settings: Mapping[str, Any]) -> Iterator[int]:
    """The hash of the prompt of every row that a shard would use, by the same settings."""
    for batch in rows.read(part, Rejects()):
        for row in batch.rows:
            with suppress(Fault):
                made, _ = _made(row, settings)
                yield prompt_hash(asked(made, settings), settings["split_seed"])


def _line(
    batch: rows.Batch, number: int, settings: Mapping[str, Any], stats: Counter[str]
) -> tuple[str, tuple[bytes, int, int]]:
    """The split of one row; its JSON text, and the hashes of that and of its prompt.

    Raises:
        Fault: the row is not used.
    """
    row = batch.rows[number]
    made, left_out = _made(row, settings)
    line = _text(batch, number, made)
    prompt = prompt_hash(asked(made, settings), settings["split_seed"])
    split = settings["split"]
    if split in ("all", "train"):
        split = split_for(prompt, settings["shares"], settings["least"])
    if split != "test" and settings["held_out"]:
        other = _held_out(settings["held_out"]).get(prompt)
        if other and other != split:
            raise Fault("in_another_split", f"its prompt is in {MANIFEST[other]} too")
    stats["resolved"] += settings["resolve"] and row.get(PLACEHOLDER) is not None
    stats["completions_left_out"] += left_out
    return split, (line, xxh3_64_intdigest(line), prompt)


def _made(row: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """The row as it is written, and the completions that were left out.

    Raises:
        Fault: the row is not used.
    """
    held = row.get(PLACEHOLDER) is not None
    try:
        return prepared(_resolved(row, settings["placeholders"]) if held and settings["resolve"] else row, settings)
    except RecursionError:
        raise Fault("not_json", "is nested too deeply") from None
    except Fault as fault:
        if held and not settings["resolve"]:
            raise Fault("placeholder", f"{fault.note}; resolve_hf_placeholders is false") from None
        raise


def prompt_hash(prompt: Any, seed: int) -> int:
    """xxh3-64 of a prompt: its text, or the JSON of its messages with sorted keys and no nulls.

    Raises:
        Fault: it has half of a surrogate pair.
    """
    if isinstance(prompt, str):
        try:
            return xxh3_64_intdigest(prompt.encode(), seed)
        except UnicodeEncodeError as e:
            raise Fault("not_json", str(e)[:120]) from None
    import orjson

    try:
        options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
        return xxh3_64_intdigest(orjson.dumps(_without_nulls(prompt), option=options), seed)
    except orjson.JSONEncodeError as e:
        raise Fault("not_json", str(e)[:120]) from None


def _without_nulls(value: Any) -> Any:
    """Parquet fills what a message lacks with nulls."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _text(batch: rows.Batch, number: int, row: Mapping[str, Any]) -> bytes:
    """The row as one line of JSON; as it stands in the file, where it was not changed.

    Raises:
        Fault: JSON has no such value.
    """
    raw = batch.raw[number] if row is batch.rows[number] and batch.raw else None
    if raw is not None and not any(word in raw for word in _DOUBTS):
        return raw
    import orjson

    try:
        if raw is None:
            return orjson.dumps(row)
        again = orjson.loads(raw)
        return orjson.dumps(again) if b"\r" in raw else raw
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as e:
        raise Fault("not_json", f"{str(e)[:100]} (NaN, or half of a surrogate pair?)") from None


def _resolved(row: Mapping[str, Any], file: str | None) -> Mapping[str, Any]:
    name, number = reference(row)
    known = _placeholders(file)[name] if file else {"rows": {}, "why": "was not looked for"}
    found = known["rows"].get(str(number))
    if found is None:
        why = known["why"] or f"{known['target']['path']} has no question in row {number}"
        raise Fault("unresolved_placeholder", f"{name}: {why}"[:300])
    return resolved(row, Target(**known["target"]), *found)


@lru_cache(maxsize=1)
def _placeholders(file: str) -> dict[str, Any]:
    with open(file, encoding="utf-8") as stream:
        return dict(json.load(stream))


@lru_cache(maxsize=1)
def _held_out(file: str) -> dict[int, str]:
    """Prompt hash -> the last of the splits that the source itself has it in."""
    with np.load(file) as data:
        return {int(h): split for split in ("valid", "test") for h in data[split]}
