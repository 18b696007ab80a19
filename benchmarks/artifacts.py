"""How fast artifacts are checked and written, beside reading the same bytes, parsing them, and megatron-core's builder.

    python benchmarks/artifacts.py [--megabytes 200] [--megatron]

Prints GB (or million tokens) per second of wall-clock time, best of three, and per second of processor time, all
processes and their start together, and the latter as a share of the reference above it. The machine's other work counts
against all of them, and the rounds of a reference and of what is measured alternate: compare lines of one run only.
``--megatron`` times megatron-core's builder too, in the payload environment ``train``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson  # noqa: TID253
import pyarrow.parquet as pq  # noqa: TID253

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


#: What is measured; one that has measured itself returns its seconds of wall-clock and of processor time.
Work = Callable[[], object]


def compare(amount: float, unit: str, works: list[tuple[str, float, Work]], runs: int = 3) -> None:
    """Print the best of each of some works, (name, its share of the amount, work); the first is the reference."""
    seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in works]
    for _ in range(runs):
        for (_, _, work), (wall, cpu) in zip(works, seconds, strict=True):
            begin, used = time.perf_counter(), sum(os.times()[:4])
            told = work()
            here = time.perf_counter() - begin, sum(os.times()[:4]) - used
            taken = told if isinstance(told, tuple) else here
            wall.append(taken[0])
            cpu.append(taken[1])
    reference = 0.0
    for (name, share, _), (wall, cpu) in zip(works, seconds, strict=True):
        fast, cheap = amount * share / min(wall), amount * share / max(min(cpu), 1e-2)
        ratio = f"{cheap / reference:8.2f} of it" if reference else "  reference"
        reference = reference or cheap
        print(f"{name:36} {fast:9.2f} {unit}/s {cheap:9.2f} {unit} per CPU s {ratio}", flush=True)


def jsonl(folder: Path, size: int) -> None:
    import msgspec

    for kind in ("chat", "chat, not ASCII", "tools", "preference", "text"):
        file = folder / "d.jsonl"
        with open(file, "wb") as out:
            for row in rows(kind):
                out.write(orjson.dumps(row) + b"\n")
                if out.tell() > size:
                    break
        part = file.read_bytes()[: size // 8]
        part = part[: part.rfind(b"\n") + 1]
        lines, decode = part.splitlines(), msgspec.json.Decoder().decode_lines
        type_ = artifact_type("raw_jsonl" if kind == "text" else "training_jsonl")
        whole = file.stat().st_size
        works: list[tuple[str, float, Work]] = [
            (f"orjson, one process: {kind}", len(part) / whole, lambda x=lines: [orjson.loads(y) for y in x]),
            (f"msgspec, one process: {kind}", len(part) / whole, lambda d=decode, x=part: d(x)),
            (f"validate: {kind}", 1, lambda t=type_, f=file: t.validate(f)),
        ]
        if kind == "chat":
            works.append(("cat", 1, lambda f=file: subprocess.run(["cat", f], stdout=subprocess.DEVNULL, check=True)))
        compare(whole / 1e9, "GB", works)
        file.unlink()
    some = [row for row, _ in zip(rows("chat"), range(50_000), strict=False)]
    amount = sum(len(orjson.dumps(row)) + 1 for row in some) / 1e9
    with tempfile.TemporaryDirectory() as other:
        write = artifact_type("raw_jsonl").write
        works = [
            ("stdlib json", 1, lambda: plain_json(some, folder / "plain")),
            ("write: raw_jsonl", 1, lambda: write(some, Path(other))),
        ]
        compare(amount, "GB", works, 1)


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
    type_ = artifact_type("packed_parquet")
    works: list[tuple[str, float, Work]] = [
        ("pyarrow, one process: packed_parquet", 1, lambda: read_packs(folder / "shard_000000.parquet")),
        ("validate: packed_parquet", 1, lambda: type_.validate(folder)),
    ]
    compare(n * length / 1e6, "M tokens", works)


def read_packs(file: Path) -> None:
    with pq.ParquetFile(file) as parquet:
        for _ in parquet.iter_batches(1000, use_threads=False):
            pass


def binidx(folder: Path, size: int, with_megatron: bool) -> None:
    rng = np.random.default_rng(0)
    documents = list(rng.integers(0, 131_072, (size // 4000, 1000), dtype=np.int32))
    tokens, together = len(documents) / 1e3, np.concatenate(documents)

    def one_by_one() -> None:
        with BinIdxWriter(clean(folder) / "one", vocab_size=131_072) as shard:
            for document in documents:
                shard.add(document)

    def batched() -> None:
        with BinIdxWriter(clean(folder) / "many", vocab_size=131_072) as shard:
            shard.add_batch(together, np.full(len(documents), 1000))

    works: list[tuple[str, float, Work]] = [
        ("numpy tofile", 1, lambda: together.tofile(clean(folder) / "plain")),
        ("write: binidx, add per document", 1, one_by_one),
        ("write: binidx, add_batch", 1, batched),
    ]
    if with_megatron:
        with megatron(together, 1000) as write:
            theirs: Work = lambda: write(clean(folder) / "theirs")  # noqa: E731
            compare(tokens, "M tokens", [("megatron-core's builder, add_item", 1, theirs), *works])
    else:
        compare(tokens, "M tokens", works)
    batched()
    works = [
        ("cat", 1, lambda: subprocess.run(["cat", folder / "many.bin"], stdout=subprocess.DEVNULL, check=True)),
        ("validate: binidx", 1, lambda: artifact_type("binidx").validate(folder / "many.idx")),
    ]
    compare(together.nbytes / 1e9, "GB", works)


def clean(folder: Path) -> Path:
    """The folder, emptied: what earlier rounds left would have to be written to the disk meanwhile."""
    for file in folder.iterdir():
        file.unlink()
    return folder


@contextmanager
def megatron(tokens: Any, length: int) -> Iterator[Callable[[Path], tuple[float, float]]]:
    """What writes the tokens with megatron-core's builder, in its own process, and returns the seconds it took."""
    here = Path(__file__).resolve().parent
    sys.path.append(str(here.parent / "tests/payload"))
    from interpreters import STEPS, payload_python

    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/tokens.npy", tokens)
        command = [payload_python("train"), "-W", "ignore", here / "megatron_builder.py", f"{folder}/tokens.npy"]
        env = os.environ | {"PYTHONPATH": str(STEPS)}
        pipe = subprocess.PIPE
        with subprocess.Popen([*command, str(length)], stdin=pipe, stdout=pipe, text=True, env=env) as process:
            assert process.stdin and process.stdout
            told, asked = process.stdout, process.stdin

            def write(prefix: Path) -> tuple[float, float]:
                print(prefix, file=asked, flush=True)
                wall, cpu = map(float, told.readline().split())
                return wall, cpu

            yield write
            asked.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="of data per type")
    parser.add_argument("--megatron", action="store_true", help="time megatron-core's builder as well")
    given = parser.parse_args()
    size = given.megabytes << 20
    print(f"{size >> 20} MB per type, {_parallel.processors()} processes")
    for part in (jsonl, packed, lambda folder, size: binidx(folder, size, given.megatron)):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder), size)


if __name__ == "__main__":
    main()
