# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/data_prep/rl_prep"
# image = "anyscale/ray:2.49.2-py312"
#
# [tool.runspec.run]
# launch = "python"
# cmd = "uv run --extra xenna python {script} --config {config}"
#
# [tool.runspec.config]
# dir = "./config"
# default = "default"
# format = "omegaconf"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
# ///
"""Bring an RL data blend to local JSONL splits with a manifest."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload  # noqa: E402

if __name__ == "__main__":
    payload.not_built("data_prep/rl_prep")
