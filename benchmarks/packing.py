"""How fast and how full sequences are packed, beside the plain scan of all bins and the least number of bins possible.

    python benchmarks/packing.py [--largest 1000000] [--scan 20000]

Lengths are lognormal with a median of 490 tokens, as chats have, for packs of 4096. ``fill`` is the share of the packs
that tokens take, ``over`` how many packs there are beyond the bound, ``mix`` the share of the variance of lengths
that lies within packs. Each algorithm runs in a process of its own: MiB are what it took beyond the lengths. ``scan``
is first fit as anybody would write it, which is also how the reference does it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "steps"))

CAPACITY = 4096
ALGORITHMS = ("best_fit_decreasing", "stratified", "first_fit_shuffle", "first_fit_decreasing", "concatenative", "scan")


def scan(lengths: list[int]) -> int:
    """Bins of first fit in a shuffled order."""
    import random

    random.Random(1).shuffle(lengths)
    left: list[int] = []
    for size in lengths:
        for b, room in enumerate(left):
            if room >= size:
                left[b] -= size
                break
        else:
            left.append(CAPACITY - size)
    return len(left)


def measure(algorithm: str, count: int) -> None:
    """Print bins, the bound, processor seconds, MiB and mix as JSON."""
    import numpy as np
    from _runtime.data_prep import packing

    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(490), 0.9, count).astype(np.int64), 8, CAPACITY)
    packing.pack(lengths[:100], CAPACITY, "best_fit_decreasing")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    mix = float("nan")
    if algorithm == "scan":
        bins = scan(lengths.tolist())
        seconds = time.process_time() - began
    else:
        stratify = algorithm == "stratified"
        found = packing.pack(lengths, CAPACITY, "best_fit_decreasing" if stratify else algorithm, 1, stratify)
        seconds = time.process_time() - began
        bins = len(found)
        mix = packing.length_mix(lengths, found)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps([bins, int(lengths.sum()), seconds, grown, mix]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1_000_000, help="sequences; smaller numbers are measured too")
    parser.add_argument("--scan", type=int, default=20_000, help="the most sequences that the scan is asked to pack")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(given.one[0], int(given.one[1]))
        return
    counts = [n for n in (10_000, 20_000, 200_000, 1_000_000, 10_000_000) if n <= given.largest]
    print(f"{'sequences':>10}  {'algorithm':22} {'cpu s':>8} {'fill %':>8} {'over':>6} {'mix':>5} {'MiB':>6}")
    for count in counts:
        for algorithm in ALGORITHMS:
            if algorithm == "scan" and count > given.scan:
                continue
            command = [sys.executable, __file__, "--one", algorithm, str(count)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            bins, tokens, seconds, mebibytes, mix = json.loads(output)
            fill, over = tokens / bins / CAPACITY * 100, bins - -(-tokens // CAPACITY)
            line = f"{seconds:8.3f} {fill:8.3f} {over:6} {mix:5.2f} {mebibytes:6.0f}"
            print(f"{count:>10,}  {algorithm:22} {line}", flush=True)


if __name__ == "__main__":
    main()
