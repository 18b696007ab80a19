"""How fast artifacts are checked and written, beside reading the same bytes, parsing them, and megatron-core's builder.

    python benchmarks/artifacts.py [--megabytes 400]

Prints GB (or million tokens) per second of wall-clock time, best of three, and per second of processor time, all
processes together. The machine's other work counts against the first, so compare lines of one run only.
megatron-core's line is there where it can be imported.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson  # noqa: TID253

from nemotron_dagster.artifacts import artifact_type
from nemotron_dagster.artifacts.types import _packs, _parallel
from nemotron_dagster.artifacts.types._indexed import BinIdxWriter

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def text(rng: random.Random, words: list[str], characters: int) -> str:
    """Words, with a line break here and a quotation mark there."""
    return " ".join(rng.choices(words, k=characters // 6)).replace(" q", ' "q').replace(" z", "\n")


def rows(kind: str) -> Iterator[dict[str, Any]]:
    """Endless rows of 1 to 4 kB; the same ones come round after some thousands."""
    rng = random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(5000)]
    if kind == "chat, not ASCII":
        words += ["größe", "naïve", "日本語", "привет"] * 300
    made = []
    for _ in range(5000):
        said = text(rng, words, rng.randint(800, 3000))
        if kind == "text":
            made.append({"text": said})
        elif kind == "preference":
            made.append({"prompt": said[:300], "chosen": said[300:900], "rejected": said[900:] or "x"})
        else:
            messages: list[dict[str, Any]] = [{"role": "user", "content": said[:200]}]
            if kind == "tools":
                call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
                messages += [
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "1", "content": said[200:500]},
                ]
            made.append({"messages": [*messages, {"role": "assistant", "content": said[500:]}]})
    while True:
        yield from made


def best(function: Callable[[], object], runs: int = 3) -> tuple[float, float]:
    """The least wall-clock and the least processor seconds, children included."""
    wall, cpu = [], []
    for _ in range(runs):
        begin, used = time.perf_counter(), sum(os.times()[:4])
        function()
        wall.append(time.perf_counter() - begin)
        cpu.append(sum(os.times()[:4]) - used)
    return min(wall), max(min(cpu), 1e-3)


def say(name: str, amount: float, seconds: tuple[float, float], unit: str) -> None:
    wall, cpu = seconds
    print(f"{name:40} {amount / wall:8.2f} {unit}/s {amount / cpu:8.2f} {unit} per CPU s", flush=True)


def jsonl(folder: Path, size: int) -> None:
    for kind in ("chat", "chat, not ASCII", "tools", "preference", "text"):
        file = folder / "d.jsonl"
        with open(file, "wb") as out:
            for row in rows(kind):
                out.write(orjson.dumps(row) + b"\n")
                if out.tell() > size:
                    break
        gigabytes = file.stat().st_size / 1e9
        if kind == "chat":
            say("cat", gigabytes, best(lambda f=file: subprocess.run(["cat", f], stdout=-3, check=True)), "GB")
        part = file.read_bytes()[: size // 8]
        lines = part[: part.rfind(b"\n")].split(b"\n")
        say(f"orjson, one process: {kind}", len(part) / 1e9, best(lambda x=lines: [orjson.loads(y) for y in x]), "GB")
        type_ = artifact_type("raw_jsonl" if kind == "text" else "training_jsonl")
        say(f"validate: {kind}", gigabytes, best(lambda t=type_, f=file: t.validate(f)), "GB")
        file.unlink()
    some = [row for row, _ in zip(rows("chat"), range(50_000), strict=False)]
    amount = sum(len(orjson.dumps(row)) + 1 for row in some) / 1e9
    for name, write in (("stdlib json", plain_json), ("write: raw_jsonl", artifact_type("raw_jsonl").write)):
        target = folder / name.replace(" ", "_").replace(":", "")
        say(name, amount, best(lambda w=write, t=target: w(some, t), 1), "GB")


def plain_json(some: list[dict[str, Any]], file: Path) -> None:
    with open(file, "w") as out:
        for row in some:
            out.write(json.dumps(row) + "\n")


def packed(folder: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    length, n = 4096, max(100, size // 8 // 4096)
    starts = np.arange(0, length, 512)
    mask = np.ones(length, np.uint8)
    mask[starts - 1] = 0
    packs = ((rng.integers(0, 131_072, length, dtype=np.int32), mask, starts) for _ in range(n))
    _packs.write(_packs.batches(packs, 1000), folder / "shard_000000.parquet", _packs.schema())
    tokens = n * length / 1e6
    type_ = artifact_type("packed_parquet")
    say("validate: packed_parquet", tokens, best(lambda: type_.validate(folder)), "M tokens")


def binidx(folder: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    documents = list(rng.integers(0, 131_072, (size // 4000, 1000), dtype=np.int32))
    tokens, together = len(documents) / 1e3, np.concatenate(documents)
    number = iter(range(1000))

    def numpy_file() -> None:
        together.tofile(folder / f"plain{next(number)}")

    def one_by_one() -> None:
        with BinIdxWriter(folder / f"one{next(number)}", vocab_size=131_072) as shard:
            for document in documents:
                shard.add(document)

    def batched() -> None:
        with BinIdxWriter(folder / f"many{next(number)}", vocab_size=131_072) as shard:
            shard.add_batch(together, np.full(len(documents), 1000))

    say("numpy tofile", tokens, best(numpy_file), "M tokens")
    say("write: binidx, add per document", tokens, best(one_by_one), "M tokens")
    say("write: binidx, add_batch", tokens, best(batched), "M tokens")
    megatron = builder()
    if megatron:

        def theirs() -> None:
            prefix = str(folder / f"theirs{next(number)}")
            shard = megatron[0](prefix + ".bin", dtype=np.int32)
            for document in documents:
                shard.add_item(megatron[1](document))
                shard.end_document()
            shard.finalize(prefix + ".idx")

        say("megatron-core's builder, add_item", tokens, best(theirs), "M tokens")
    shard = next(folder.glob("one*.idx"))
    gigabytes = together.nbytes / 1e9
    say("validate: binidx", gigabytes, best(lambda: artifact_type("binidx").validate(shard)), "GB")


def builder() -> tuple[Any, Any] | None:
    """megatron-core's builder and torch's from_numpy, where they are installed."""
    try:
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
        from torch import from_numpy
    except ImportError:
        return None
    return IndexedDatasetBuilder, from_numpy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="of data per type")
    size = parser.parse_args().megabytes << 20
    print(f"{size >> 20} MB per type, {_parallel.processors()} processes")
    for part in (jsonl, packed, binidx):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder), size)


if __name__ == "__main__":
    main()
