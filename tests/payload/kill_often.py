"""Kills a data preparation step at random instants and lets it go on; run in the environment ``data``.

    python kill_often.py STEP CONFIG KILLS     STEP is pretrain, sft or rl; CONFIG is JSON

The step runs in forks of this process, which has imported everything: each instant is one of its work, none of its
start. Prints kills and how many of them fell between the first byte written and the last, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "steps"))
MODULES = ("rows_parquet", "estimate", "staging", "chat_tokens", "packed", "tokenizing", "rl_shard", "sft_shard")


def tree(root: Path) -> dict[str, bytes | str]:
    """Every file and link below ``root``."""
    found = (p for p in sorted(root.rglob("*")) if p.is_symlink() or p.is_file())
    return {str(p.relative_to(root)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in found}


def start(step: str, cfg: dict[str, Any]) -> int:
    """A fork that runs the step and ends with status 0 if all went well."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        options = importlib.import_module(f"_runtime.data_prep.{step}_options").read_options(cfg)
        importlib.import_module(f"_runtime.data_prep.{step}").prepare(options)
        status = 0
    finally:
        os._exit(status)


def finished(child: int, deadline: float) -> int | None:
    """Its exit status, or None where it still runs at the deadline."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.0005)


def main(step: str, config: Path, kills: int) -> None:
    for module in MODULES:
        importlib.import_module(f"_runtime.data_prep.{module}")
    for library in ("orjson", "pyarrow.parquet", "tokenizers", "xxhash"):
        importlib.import_module(library)

    cfg = json.loads(config.read_text())
    out = Path(cfg["output_dir"])
    os.environ["NEMOTRON_MESSAGES"] = os.devnull
    began = time.monotonic()
    assert finished(start(step, cfg), began + 120) == 0
    took = time.monotonic() - began
    calm = tree(out)
    shutil.rmtree(out)
    chosen = random.Random(step)
    done = halfway = 0
    while done < kills:
        child = start(step, cfg)
        status = finished(child, time.monotonic() + chosen.uniform(0, took))
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
            halfway += bool(list(out.rglob("receipts/*"))) and tree(out) != calm
            continue
        assert status == 0, f"exit {status} after {done} kills"
        assert tree(out) == calm, f"other bytes after {done} kills"
        shutil.rmtree(out)
    assert finished(start(step, cfg), time.monotonic() + 120) == 0
    assert tree(out) == calm, f"other bytes after {done} kills"
    print(json.dumps({"kills": done, "halfway": halfway}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
