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
    def score(task: str, value: float, chance: float | None) -> dict[str, Any]:
        error = (value * (1 - value) / cfg["n"]) ** 0.5
        return {"task": task, "metric": "acc", "value": value, "stderr": error, "n": cfg["n"]} | {
            "chance": chance,
            "higher_is_better": True,
        }

    after = [score("spelling", 0.93, 0.25), score("counting", 0.61, None)]
    before = [score("spelling", 0.27, 0.25), score("counting", 0.58, None)]
    pairs = list(zip(after, before, strict=True))
    changed = [{"task": a["task"], "metric": "acc", "difference": a["value"] - b["value"]} for a, b in pairs]
    summary = {"model": cfg["model"], "backend": "demo", "scores": after, "baseline": before, "differences": changed}
    Path(cfg["output_dir"], "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
