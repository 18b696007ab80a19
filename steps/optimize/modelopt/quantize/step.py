# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/optimize/modelopt/quantize"
# image = "nvcr.io/nvidia/nemo:26.04"
#
# [tool.runspec.run]
# launch = "torchrun"
# workdir = "/opt/Megatron-Bridge"
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
"""Quantize a checkpoint after training with a ModelOpt recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import modelopt_scripts, payload  # noqa: E402
from _runtime.optimize import quantize  # noqa: E402

SCRIPT = modelopt_scripts.Script("/opt/Megatron-Bridge/examples/quantization/quantize.py", flags="hyphen")


def main(cfg: dict[str, Any]) -> None:
    quantize.check(cfg)
    if modelopt_scripts.backend(cfg) == "script":
        modelopt_scripts.start(cfg, SCRIPT)
    quantize.run(cfg)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
