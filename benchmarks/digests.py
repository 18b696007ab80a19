"""How fast the files of an artifact are digested and published, beside the disk's own speed in the same run.

python benchmarks/digests.py [--gigabytes 2]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nemotron_dagster.artifacts import digests
from nemotron_dagster.artifacts.digests import tally
from nemotron_dagster.artifacts.manifest import Manifest
from nemotron_dagster.artifacts.store import publish, slot

Row = tuple[str, float, str]


def digest_rate(gigabytes: float = 2.0, small: int = 10_000) -> list[Row]:
    """Name, value and unit of each figure."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = folder / "large"
        large.mkdir()
        block = os.urandom(1 << 24)
        for i in range(8):
            with open(large / f"shard{i}", "wb") as out:
                for _ in range(int(gigabytes * 1e9 / 8 / len(block))):
                    out.write(block)
        size = sum(f.stat().st_size for f in large.iterdir()) / 1e9
        rows.append(
            ("read 8 files, one after the other, from the page cache", size / _seconds(lambda: _read(large)), "GB/s")
        )
        rows.append(("digest the same", size / _seconds(lambda: tally(large)), "GB/s"))
        one = folder / "one"
        one.mkdir()
        with open(one / "file", "wb") as out:
            for shard in sorted(large.iterdir()):
                with open(shard, "rb") as source:
                    shutil.copyfileobj(source, out)
        rows.append(("digest one file of that size", size / _seconds(lambda: tally(one)), "GB/s"))
        many = folder / "many"
        many.mkdir()
        for i in range(small):
            (many / f"f{i:06d}").write_bytes(block[i : i + 1000])
        rows.append((f"digest {small:,} files of 1 KB", small / _seconds(lambda: tally(many)), "files/s"))
        digests._SETTLED = 0  # what a resumed job finds is old; these are not
        time.sleep(0.1)
        tally(large, folder / "cache")
        rows.append(
            ("digest 8 unchanged files of a resumed job", 1e3 * _seconds(lambda: tally(large, folder / "cache")), "ms")
        )
        rows.append(("publish 20 files of 1 KB, on disk before it returns", 1e3 * _publish(folder, many), "ms"))
    return rows


def _publish(folder: Path, source: Path) -> float:
    spent = []
    for n in range(10):
        place = slot(folder / "root", ("bench",), f"{n:064d}", f"k{n}")
        place.output.mkdir(parents=True)
        for i in range(20):
            shutil.copy(source / f"f{i:06d}", place.output)
        began = time.perf_counter()
        table, content, size = tally(place.output, place.digests)
        publish(place, Manifest("raw_jsonl", "bench", ["bench"], f"k{n}", files=table, content=content, bytes=size))
        spent.append(time.perf_counter() - began)
    return min(spent)


def _read(directory: Path) -> None:
    buffer = bytearray(1 << 20)
    for file in sorted(directory.iterdir()):
        with open(file, "rb", buffering=0) as data:
            while data.readinto(buffer):
                pass


def _seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    for what, value, unit in digest_rate(parser.parse_args().gigabytes):
        print(f"{what:<60} {value:>12,.1f} {unit}")


if __name__ == "__main__":
    main()
