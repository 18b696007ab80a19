# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/peft/megatron_bridge"
# image = "nvcr.io/nvidia/nemo:25.11.nemotron_3_nano"
#
# [tool.runspec.run]
# launch = "torchrun"
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
"""LoRA fine-tuning of a Megatron checkpoint with Megatron-Bridge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import megatron_bridge, payload  # noqa: E402

RECIPE = "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nemotron_3_nano_peft_config"


def main(cfg: dict[str, Any]) -> None:
    megatron_bridge.run(cfg, RECIPE, packed=True, adapter=True)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
