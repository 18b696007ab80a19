# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/convert/hf_to_megatron"
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
"""Import a Hugging Face checkpoint into Megatron's distributed format."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import megatron_convert, payload  # noqa: E402

if __name__ == "__main__":
    payload.run(megatron_convert.hf_to_megatron, Path(__file__).parent / "config" / "default.yaml")
