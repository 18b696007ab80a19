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

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload  # noqa: E402

if __name__ == "__main__":
    payload.not_built("optimize/modelopt/quantize")
