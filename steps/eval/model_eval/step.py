# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/eval/model_eval"
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
"""Score a checkpoint or an endpoint, with lm-evaluation-harness here or with NeMo Evaluator Launcher."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload
from _runtime.evaluation import settings


def main(cfg: dict[str, Any]) -> None:
    if settings.backend(cfg) == "lm_eval":
        from _runtime.evaluation import harness

        harness.run(settings.read(cfg))
    else:
        from _runtime.evaluation import launcher

        launcher.run(cfg)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
