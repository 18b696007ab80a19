"""megatron-core's builder, for benchmarks/artifacts.py: writes one shard per line of standard input.

    python megatron_builder.py TOKENS.npy LENGTH

A line names the prefix; the answer is the seconds of wall-clock and of processor time that it took.
"""

from __future__ import annotations

import os
import sys
import time

import numpy
import torch  # noqa: TID253
from _runtime import cpu_megatron_imports

cpu_megatron_imports.install()  # megatron.core imports Triton, which its builder does not need

from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder  # noqa: E402


def main() -> None:
    tokens, length = numpy.load(sys.argv[1]), int(sys.argv[2])
    documents = [torch.from_numpy(tokens[i : i + length]) for i in range(0, len(tokens), length)]
    for line in sys.stdin:
        begin, used = time.perf_counter(), sum(os.times()[:4])
        shard = IndexedDatasetBuilder(f"{line.strip()}.bin", dtype=numpy.int32)
        for document in documents:
            shard.add_item(document)
            shard.end_document()
        shard.finalize(f"{line.strip()}.idx")
        print(time.perf_counter() - begin, sum(os.times()[:4]) - used, flush=True)


if __name__ == "__main__":
    main()
