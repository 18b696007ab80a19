# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/source/numerals"
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
"""Write rows of one kind about Roman numerals."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload  # noqa: E402
from rows import KINDS  # noqa: E402


def main(cfg: dict[str, Any]) -> None:
    kind, seed = cfg["kind"], cfg["seed"]
    if kind not in KINDS:
        raise payload.PayloadError("config_invalid", f"kind={kind}: one of {', '.join(KINDS)}", "Name one of these.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise payload.PayloadError("config_invalid", f"seed={seed!r}: is not a whole number", "Give one, such as 0.")
    rows = KINDS[kind](random.Random(seed))
    out = Path(cfg["output_dir"])
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{kind}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    payload.result(rows=len(rows), kind=kind, seed=seed)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
