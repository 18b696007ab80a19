# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/optimize/modelopt/distill"
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
"""Train a student checkpoint on the outputs of a teacher."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload  # noqa: E402

if __name__ == "__main__":
    payload.not_built("optimize/modelopt/distill")
