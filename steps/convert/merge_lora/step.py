# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/convert/merge_lora"
# image = "nvcr.io/nvidia/nemo:25.11.nemotron_3_nano"
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
# gpus_per_node = 8
# ///
"""Fold a LoRA adapter into the base model it was trained on."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import merge_lora, payload  # noqa: E402

if __name__ == "__main__":
    payload.run(merge_lora.run, Path(__file__).parent / "config" / "default.yaml")
