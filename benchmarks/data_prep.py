"""How fast data is prepared, beside what the tokenizer can do at most and how Megatron prepares it.

    python benchmarks/data_prep.py [--megabytes 50] [--rounds 3] [--largest 80000] [--megatron]
                                   [pretrain | rl | tiny | growth ...]

``pretrain``: million tokens per second of the whole step, start included, in one process and in two, beside the
tokenizer's own calls on texts in memory in as many: what two cores of this machine are worth shows there. ``rl``: rows
per second of rl_prep, beside a loop that only copies rows. ``tiny``: processor time of each step's tiny, beside
``import dagster``. ``growth``: of each step, seconds per row and memory of the largest process while the rows grow to
``--largest``: both stay what they are. Rounds alternate; medians count. The machine's other work counts against
wall-clock times: compare those of one run only, and trust processor times, which are those of all processes together.
``--megatron`` adds Megatron's way of preprocessing (environment ``train``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
LIMIT = Path(__file__).with_name("tokenizer_limit.py")
sys.path[:0] = [str(ROOT), str(ROOT / "tests/payload")]
from interpreters import STEPS, payload_python  # noqa: E402

TOKENIZER = STEPS / "_runtime/tiny_llama"
TINY = ("data_prep/pretrain_prep", "data_prep/sft_packing", "data_prep/rl_prep")


@dataclass(frozen=True)
class Took:
    """Seconds of wall-clock and processor time of a process with all its own, and MiB of the largest of them."""

    wall: float
    cpu: float
    mebibytes: float
    output: str


def timed(command: list[Any], **env: str) -> Took:
    """Run a command to its end; its own children count, even those of a process that this one never sees."""
    code = (
        "import json, resource, subprocess, sys, time\n"
        "t = time.perf_counter()\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "u = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([time.perf_counter() - t, u.ru_utime + u.ru_stime, u.ru_maxrss / 1024, done.stdout]))\n"
        "sys.exit(done.stderr[-2000:] if done.returncode else 0)"
    )
    env = {k: v for k, v in os.environ.items() if k != "NEMOTRON_MESSAGES"} | env
    done = subprocess.run([sys.executable, "-c", code, *map(str, command)], stdout=subprocess.PIPE, check=True, env=env)
    return Took(*json.loads(done.stdout))


def step(name: str, cfg: dict[str, Any], folder: Path) -> Took:
    """The whole payload of a step, into an output directory that is new."""
    shutil.rmtree(cfg["output_dir"], ignore_errors=True)
    (folder / "config.yaml").write_text(json.dumps(cfg))
    return timed([payload_python("data"), STEPS / name / "step.py", "--config", folder / "config.yaml"])


def prepare(folder: Path, workers: int, **cfg: Any) -> Took:
    base = {"blend_path": f"{folder}/text.jsonl", "output_dir": f"{folder}/out", "num_shards": 16, "workers": workers}
    return step("data_prep/pretrain_prep", {**base, "tokenizer": {"model": str(folder)}, **cfg}, folder)


def medians(rounds: int, works: dict[str, Callable[[], tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Median wall-clock and processor time of each work; rounds alternate, so that what else runs hits all alike."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(work())
    return {name: (median(t[0] for t in times), median(t[1] for t in times)) for name, times in found.items()}


def pretrain(folder: Path, given: argparse.Namespace) -> None:
    subprocess.run([payload_python("data"), LIMIT, "make", folder, str(given.megabytes)], check=True)
    size = (folder / "text.jsonl").stat().st_size / 1e6
    tokens = 0

    def reference(command: list[Any], family: str, **env: str) -> tuple[float, float]:
        nonlocal tokens
        found, wall, cpu = timed([payload_python(family), "-W", "ignore", LIMIT, *command], **env).output.split()
        tokens = max(tokens, int(found))
        return float(wall), float(cpu)

    def ours(workers: int) -> tuple[float, float]:
        took = prepare(folder, workers)
        return took.wall, took.cpu

    works: dict[str, Callable[[], tuple[float, float]]] = {
        "tokenizer alone, one process": lambda: reference(["limit", folder, "1"], "data"),
        "tokenizer alone, two processes": lambda: reference(["limit", folder, "2"], "data"),
        "pretrain_prep, one process": lambda: ours(1),
        "pretrain_prep, two processes": lambda: ours(2),
    }
    if given.megatron:
        extra = {"PYTHONPATH": str(STEPS), "OMP_NUM_THREADS": "1"}
        works["Megatron's way, pool of two"] = lambda: reference(["megatron", folder, "2"], "train", **extra)
    took = medians(given.rounds, works)
    print(f"pretrain_prep: {size:.0f} MB, {tokens / 1e6:.1f} M tokens, 32,000 entries")
    top = tokens / took["tokenizer alone, one process"][1]
    for name, (wall, cpu) in took.items():
        rate = tokens / cpu
        one = took.get(name.replace("two processes", "one process"), (wall, cpu))[0]
        share = f"{rate / top:5.2f} of the limit per core   {one / wall:4.2f}x one process"
        print(f"  {name:30} {tokens / wall / 1e6:6.3f} M/s wall   {rate / 1e6:6.3f} M/s cpu   {share}")


def tiny(folder: Path, given: argparse.Namespace) -> None:
    print("tiny: processor seconds of the whole process")
    base = medians(given.rounds, {"import dagster": lambda: (0.0, timed([sys.executable, "-c", "import dagster"]).cpu)})
    print(f"  import dagster                 {base['import dagster'][1]:5.2f}")
    for name in TINY:
        if 'payload = "ready"' not in (STEPS / name / "step.toml").read_text():
            continue

        def run(name: str = name) -> tuple[float, float]:
            return 0.0, step(name, tiny_config(name, folder), folder).cpu

        print(f"  {name:30} {medians(given.rounds, {name: run})[name][1]:5.2f}")


def tiny_config(name: str, folder: Path) -> dict[str, Any]:
    """A step's tiny with the file that it names under ``defaults`` below it, as the command line composes them."""
    home = STEPS / name / "config"
    cfg: dict[str, Any] = yaml.safe_load((home / "tiny.yaml").read_text())
    base: dict[str, Any] = yaml.safe_load((home / below).read_text()) if (below := cfg.pop("defaults", None)) else {}
    return {**base, **cfg, "output_dir": str(folder / "out")}


def rl(folder: Path, given: argparse.Namespace) -> None:
    """Preference pairs, beside reading, hashing and writing the same rows in one loop."""
    count = given.megabytes * 1500
    size = write_rows(folder / "rows.jsonl", pair, count)
    loop = (
        "import sys, time, orjson, xxhash\n"
        "t, c = time.perf_counter(), time.process_time()\n"
        "with open(sys.argv[1], 'rb') as rows, open(sys.argv[2], 'wb') as out:\n"
        "    for line in rows:\n"
        "        row = orjson.loads(line)\n"
        "        xxhash.xxh3_64_intdigest(row['prompt'].encode())\n"
        "        out.write(orjson.dumps(row) + b'\\n')\n"
        "print(time.perf_counter() - t, time.process_time() - c)\n"
    )

    def limit() -> tuple[float, float]:
        took = timed([payload_python("data"), "-c", loop, folder / "rows.jsonl", folder / "copy.jsonl"])
        wall, cpu = took.output.split()
        return float(wall), float(cpu)

    def ours(workers: int, shards: int) -> tuple[float, float]:
        cfg = {"blend_path": f"{folder}/rows.jsonl", "output_dir": f"{folder}/out", "workers": workers}
        took = step("data_prep/rl_prep", {**cfg, "num_shards_per_split": shards}, folder)
        return took.wall, took.cpu

    took = medians(
        given.rounds,
        {
            "one loop, no checks": limit,
            "rl_prep, one process": lambda: ours(1, 1),
            "rl_prep, two processes": lambda: ours(2, 8),
        },
    )
    print(f"rl_prep: {size / 1e6:.0f} MB, {count:,} preference pairs")
    for name, (wall, cpu) in took.items():
        print(f"  {name:30} {count / wall:9,.0f} rows/s wall   {count / cpu:9,.0f} rows/s cpu")


def pair(i: int) -> dict[str, Any]:
    return {
        "prompt": f"Write {i} as a Roman numeral.",
        "chosen": "M" * (i % 3) + "XIV " * 60,
        "rejected": "XIIII " * 40,
    }


def chat(i: int) -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"{i} is " + "a number " * (i % 20)}
    return {"messages": [{"role": "user", "content": f"What is {i}?"}, answer]}


def write_rows(file: Path, row: Callable[[int], dict[str, Any]], count: int) -> int:
    with file.open("w") as out:
        for i in range(count):
            out.write(json.dumps(row(i)) + "\n")
    return file.stat().st_size


#: Step -> its rows, its settings, and the key that says how many shards there are.
GROWTH: dict[str, tuple[Callable[[int], dict[str, Any]], dict[str, Any], str]] = {
    "pretrain_prep": (lambda i: {"text": str(i)}, {"tokenizer": {"model": str(TOKENIZER)}}, "num_shards"),
    "sft_packing": (
        chat,
        {"tokenizer": {"model": str(TOKENIZER)}, "algorithm": "best_fit_decreasing", "template_date": "2026-01-01"},
        "num_shards",
    ),
    "rl_prep": (pair, {}, "num_shards_per_split"),
}
PER_SHARD = 5000  # rows


def growth(folder: Path, given: argparse.Namespace) -> None:
    """Rows that cost next to nothing to tokenize, so that what is beside the tokenizer shows; shards of one size."""
    for name, (row, settings, key) in GROWTH.items():
        print(f"growth of {name}: rows, processor seconds per million rows, MiB of the largest process")
        for count in (given.largest // 8, given.largest // 4, given.largest // 2, given.largest):
            write_rows(folder / "rows.jsonl", row, count)
            shards = {key: max(4, count // PER_SHARD)}
            cfg = {"blend_path": f"{folder}/rows.jsonl", "output_dir": f"{folder}/out", "workers": 1}
            took = step(f"data_prep/{name}", {**cfg, **settings, **shards}, folder)
            print(f"  {count:>10,}   {took.cpu / count * 1e6:6.1f}   {took.mebibytes:6.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50, help="of text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--largest", type=int, default=80_000, help="rows that growth goes to; tried up to 10000000")
    parser.add_argument("--megatron", action="store_true", help="time Megatron's way as well")
    parts: dict[str, Callable[[Path, argparse.Namespace], None]] = {
        "pretrain": pretrain,
        "rl": rl,
        "tiny": tiny,
        "growth": growth,
    }
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="by default all")
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores", flush=True)
    for name in given.parts or parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](Path(folder), given)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
