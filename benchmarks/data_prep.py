"""How fast data is prepared, beside what the tokenizer can do at most and how Megatron prepares it.

    python benchmarks/data_prep.py [--megabytes 50] [--rounds 3] [--megatron] [pretrain | tiny | growth ...]

``pretrain``: million tokens per second of the whole step, start included, in one process and in two, beside the
tokenizer's own calls on texts in memory. ``tiny``: processor time of each step's tiny, beside ``import dagster``.
``growth``: seconds and memory of the largest process while the input grows. Rounds alternate; the least of each counts.
The machine's other work counts against wall-clock times, so compare those of one run only, and trust processor times.
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
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
LIMIT = Path(__file__).with_name("tokenizer_limit.py")
sys.path[:0] = [str(ROOT), str(ROOT / "tests/payload")]
from interpreters import STEPS, payload_python  # noqa: E402

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


def least(rounds: int, works: dict[str, Callable[[], tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """The least wall-clock and processor time of each work; rounds alternate, so that what else runs hits all."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(work())
    return {name: (min(t[0] for t in times), min(t[1] for t in times)) for name, times in found.items()}


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
        "tokenizer alone, one thread": lambda: reference(["limit", folder], "data"),
        "pretrain_prep, one process": lambda: ours(1),
        "pretrain_prep, two processes": lambda: ours(2),
    }
    if given.megatron:
        extra = {"PYTHONPATH": str(STEPS), "OMP_NUM_THREADS": "1"}
        works["Megatron's way, pool of two"] = lambda: reference(["megatron", folder, "2"], "train", **extra)
    took = least(given.rounds, works)
    print(f"pretrain_prep: {size:.0f} MB, {tokens / 1e6:.1f} M tokens, 32,000 entries")
    top = tokens / took["tokenizer alone, one thread"][1]
    one = took["pretrain_prep, one process"][0]
    for name, (wall, cpu) in took.items():
        rate = tokens / cpu
        share = f"{rate / top:5.2f} of the limit per core   {one / wall:4.2f}x one process"
        print(f"  {name:30} {tokens / wall / 1e6:6.3f} M/s wall   {rate / 1e6:6.3f} M/s cpu   {share}")


def tiny(folder: Path, given: argparse.Namespace) -> None:
    print("tiny: processor seconds of the whole process")
    base = least(given.rounds, {"import dagster": lambda: (0.0, timed([sys.executable, "-c", "import dagster"]).cpu)})
    print(f"  import dagster                 {base['import dagster'][1]:5.2f}")
    for name in TINY:
        if 'payload = "ready"' not in (STEPS / name / "step.toml").read_text():
            continue

        def run(name: str = name) -> tuple[float, float]:
            return 0.0, step(name, tiny_config(name, folder), folder).cpu

        print(f"  {name:30} {least(given.rounds, {name: run})[name][1]:5.2f}")


def tiny_config(name: str, folder: Path) -> dict[str, Any]:
    """A step's tiny with the file that it names under ``defaults`` below it, as the command line composes them."""
    home = STEPS / name / "config"
    cfg: dict[str, Any] = yaml.safe_load((home / "tiny.yaml").read_text())
    base: dict[str, Any] = yaml.safe_load((home / below).read_text()) if (below := cfg.pop("defaults", None)) else {}
    return {**base, **cfg, "output_dir": str(folder / "out")}


def growth(folder: Path, given: argparse.Namespace) -> None:
    """Rows that cost next to nothing to tokenize, so that what is beside the tokenizer shows."""
    print("growth of pretrain_prep: rows, processor seconds per million rows, MiB of the largest process")
    shutil.copy(STEPS / "_runtime/tiny_llama/tokenizer.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    rows = given.megabytes * 2000
    for factor in (1, 2, 4, 8):
        with (folder / "text.jsonl").open("w") as out:
            for i in range(rows * factor):
                out.write(f'{{"text": "{i}"}}\n')
        took = prepare(folder, 1)
        print(f"  {rows * factor:>10,}   {took.cpu / rows / factor * 1e6:6.2f}   {took.mebibytes:6.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50, help="of text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megatron", action="store_true", help="time Megatron's way as well")
    parts: dict[str, Callable[[Path, argparse.Namespace], None]] = {
        "pretrain": pretrain,
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
