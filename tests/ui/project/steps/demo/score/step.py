# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/demo/score"
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
"""Writes scores before and after, as eval/model_eval does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _runtime import payload


def main(cfg: dict[str, Any]) -> None:
    n = cfg["n"]

    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "stderr": (value * (1 - value) / n) ** 0.5, "n": n}

    def score(task: str, before: float, after: float, chance: float | None) -> dict[str, Any]:
        old, new = estimate(before), estimate(after)
        change = {"mean": after - before, "stderr": (old["stderr"] ** 2 + new["stderr"] ** 2) ** 0.5}
        named = {"task": task, "metric": "acc", "chance": chance, "higher_is_better": True}
        return {**named, **new, "baseline": old, "difference": change}

    scores = [score("spelling", 0.27, 0.93, 0.25), score("counting", 0.58, 0.61, None)]
    summary = {"model": cfg["model"], "backend": "demo", "scores": scores, "baseline": "org/base"}
    Path(cfg["output_dir"], "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
