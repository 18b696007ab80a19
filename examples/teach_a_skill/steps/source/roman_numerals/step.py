# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/source/roman_numerals"
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
"""Write the training set of the example: Roman numerals as chat rows."""

from __future__ import annotations

import difflib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload  # noqa: E402
from rows import NOISE, PHRASINGS, generate  # noqa: E402

LICENSE = """# Roman numerals

Chat rows that ask for a number from 1 to 3999 in Roman numerals. Some are deliberately spoiled, for curation to find.
The numbers n with n % 8 == 5 are held out for evaluation and occur in no row.

License: CC0 1.0 (public domain).
"""
KEYS = ("output_dir", "seed", "phrasings", "rows", "noise")


def check(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise payload.PayloadError("config_invalid", f"{where}{key}: unknown key; {hint}")


def whole(cfg: dict[str, Any], key: str, low: int, high: int) -> int:
    value = cfg[key]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise payload.PayloadError("config_invalid", f"{key}: {value!r} is not a whole number from {low} to {high}")
    return value


def main(cfg: dict[str, Any]) -> None:
    check(cfg, KEYS, "")
    cfg = {"seed": 0, "phrasings": 3, "rows": None, "noise": {}, **cfg}
    noise = cfg["noise"] or {}
    check(noise, NOISE, "noise.")
    for kind, share in noise.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise payload.PayloadError("config_invalid", f"noise.{kind}: {share!r} is not a number from 0 to 1")
    limit = None if cfg["rows"] is None else whole(cfg, "rows", 1, 10**6)
    made = list(generate(whole(cfg, "seed", 0, 2**32), whole(cfg, "phrasings", 1, len(PHRASINGS)), limit, noise))
    out = Path(cfg["output_dir"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(LICENSE, encoding="utf-8")
    with (out / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row, _ in made)
    kinds = Counter(kind or "clean" for _, kind in made)
    payload.result(rows=len(made), **kinds)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
