"""The tokenizer alone, and Megatron's way of preprocessing, for benchmarks/data_prep.py; run in a payload environment.

    python tokenizer_limit.py make FOLDER MEGABYTES     a corpus of words with Zipf's frequencies, a BPE tokenizer of it
    python tokenizer_limit.py limit FOLDER PROCESSES    encode every text that is in memory already, one thread each
    python tokenizer_limit.py megatron FOLDER WORKERS   a pool that parses and encodes line by line, one that writes

The last one is what megatron-core's preprocess_data tool does, with its builder, in the environment ``train``. Prints
tokens, and seconds of wall-clock and processor time, without the start of Python.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_state: dict[str, Any] = {}


def words() -> tuple[list[str], list[float]]:
    rng = random.Random(0)
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ou", "al")]
    made = ["".join(rng.choices(syllables, k=1 + min(4, int(rng.expovariate(0.7))))) for _ in range(60_000)]
    total, sums = 0.0, []
    for i in range(len(made)):
        total += (i + 2.7) ** -1.05
        sums.append(total)
    return made, sums


def documents(size: int) -> Iterator[str]:
    """Texts of lognormal length, median about 245 words, until they have ``size`` bytes."""
    rng = random.Random(1)
    known, sums = words()
    while size > 0:
        count = min(5000, max(20, int(math.exp(rng.gauss(5.5, 0.8)))))
        chosen = rng.choices(known, cum_weights=sums, k=count)
        chosen[::13] = [w.capitalize() for w in chosen[::13]]
        text = " ".join(chosen)
        size -= len(text)
        yield text


def make(folder: Path, megabytes: int) -> None:
    with (folder / "text.jsonl").open("w") as out:
        for text in documents(megabytes << 20):
            out.write(json.dumps({"text": text}) + "\n")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=32_000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(documents(4 << 20), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


def part(first: int, every: int) -> int:
    """Tokens of each ``every``-th batch of the texts from ``first`` on."""
    tokenizer, texts = _state["tokenizer"], _state["texts"]
    starts = range(256 * first, len(texts), 256 * every)
    return sum(len(e) for i in starts for e in tokenizer.encode_batch_fast(texts[i : i + 256]))


def limit(processes: int) -> int:
    if processes == 1:
        return part(0, 1)
    with multiprocessing.get_context("fork").Pool(processes) as pool:  # which have tokenizer and texts in memory, too
        tokens = sum(pool.starmap(part, [(i, processes) for i in range(processes)]))
        pool.close()
        pool.join()
    return tokens


def begin(file: str) -> None:
    _state["tokenizer"] = Tokenizer.from_file(file)


def encode(line: str) -> list[int]:
    ids: list[int] = _state["tokenizer"].encode(json.loads(line)["text"]).ids
    ids.append(2)
    return ids


def megatron(folder: Path, workers: int) -> int:
    import numpy
    import torch
    from _runtime import cpu_megatron_imports

    cpu_megatron_imports.install()  # megatron.core imports Triton, which its builder does not need
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    tokens = 0
    _state["started"] = time.perf_counter()  # the libraries are there: only the work counts
    builder = IndexedDatasetBuilder(str(folder / "megatron.bin"), dtype=numpy.int32)
    with (
        multiprocessing.Pool(workers, begin, (str(folder / "tokenizer.json"),)) as pool,
        (folder / "text.jsonl").open() as lines,
    ):
        for ids in pool.imap(encode, lines, 32):
            builder.add_document(torch.IntTensor(ids), [len(ids)])
            tokens += len(ids)
        pool.close()
        pool.join()
    builder.finalize(str(folder / "megatron.idx"))
    return tokens


def main() -> None:
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        make(folder, int(sys.argv[3]))
        return
    if command == "limit":
        begin(str(folder / "tokenizer.json"))
        _state["texts"] = [json.loads(line)["text"] for line in (folder / "text.jsonl").open()]
    used = sum(os.times()[:4])
    _state["started"] = time.perf_counter()
    tokens = limit(int(sys.argv[3])) if command == "limit" else megatron(folder, int(sys.argv[3]))
    print(tokens, time.perf_counter() - _state["started"], sum(os.times()[:4]) - used)


if __name__ == "__main__":
    main()
