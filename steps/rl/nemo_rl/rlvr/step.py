# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/rl/nemo_rl/rlvr"
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
"""GRPO with verifiable rewards: with NeMo-RL in its container, or with TRL."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload  # noqa: E402
from _runtime.rl import start  # noqa: E402


def main(cfg: dict[str, Any]) -> None:
    start.run(cfg, "rlvr")


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
