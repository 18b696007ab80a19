# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/optimize/modelopt/prune"
# image = "nvcr.io/nvidia/nemo:26.04"
#
# [tool.runspec.run]
# launch = "python"
# workdir = "/opt/Model-Optimizer/examples/megatron_bridge"
#
# [tool.runspec.config]
# dir = "./config"
# default = "default"
# format = "omegaconf"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 8
# ///
"""Prune a checkpoint to a parameter budget or to an exact shape."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import modelopt_scripts, payload  # noqa: E402
from _runtime.optimize import prune  # noqa: E402

SCRIPT = modelopt_scripts.Script("/opt/Model-Optimizer/examples/megatron_bridge/prune_minitron.py", flags="underscore")


def main(cfg: dict[str, Any]) -> None:
    prune.check(cfg)
    if modelopt_scripts.backend(cfg) == "script":
        modelopt_scripts.start(cfg, SCRIPT)
    prune.run(cfg)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
