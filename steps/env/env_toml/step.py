# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/env/env_toml"
#
# [tool.runspec.run]
# launch = "python"
#
# [tool.runspec.config]
# dir = "./config"
# default = "lepton"
# format = "omegaconf"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
# ///
"""Render a set of execution profiles as an env TOML file and check it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload  # noqa: E402

if __name__ == "__main__":
    payload.not_built("env/env_toml")
