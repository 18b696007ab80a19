# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/convert/megatron_to_hf"
# image = "nvcr.io/nvidia/nemo:26.04"
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
"""Export one Megatron iteration as a Hugging Face model directory."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import megatron_convert, payload  # noqa: E402

if __name__ == "__main__":
    payload.run(megatron_convert.megatron_to_hf, Path(__file__).parent / "config" / "default.yaml")
