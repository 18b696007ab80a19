# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/data_prep/sft_packing"
# image = "anyscale/ray:2.49.2-py312"
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
# gpus_per_node = 0
# ///
"""Render chats, tokenize them and pack them into Parquet shards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload  # noqa: E402


def main(cfg: dict[str, Any]) -> None:
    from _runtime.data_prep.sft import prepare

    prepare(cfg)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
