# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/rl/nemo_rl/rlhf"
# image = "nvcr.io/nvidia/nemo-rl:v0.6.0"
#
# [tool.runspec.run]
# launch = "ray"
# workdir = "/opt/nemo-rl"
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
"""GRPO with a generative reward model on NeMo-RL and NeMo-Gym (payload planned)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload  # noqa: E402

if __name__ == "__main__":
    payload.not_built("rl/nemo_rl/rlhf")
