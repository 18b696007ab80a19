# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/demo/numbers"
#
# [tool.runspec.run]
# launch = "python"
#
# [tool.runspec.config]
# dir = "./config"
# default = "default"
# format = "omegaconf"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
# ///
"""Writes numbers as words, a few of which are removed again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from _runtime import payload


def main(cfg: dict[str, Any]) -> None:
    n, seconds = cfg["n"], cfg["seconds"]
    if n < 2:
        raise payload.PayloadError("no_rows", f"n={n}: leaves no rows.", "Set n to 2 or more.")
    print(f"writing {n} numbers", flush=True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        payload.progress(None, None, seconds_left=deadline - time.monotonic())
        time.sleep(0.2)
    out = Path(cfg["output_dir"])
    kept = [i for i in range(n) if i % 7]
    (out / "numbers.jsonl").write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in kept))
    payload.progress(n, n, rows=n)
    payload.result(rows_in=n, rows_out=len(kept), removed={"multiple of seven": n - len(kept), "repeated": 0})
    print("done", flush=True)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
