# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/curate/nemo_curator"
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
"""Filter and deduplicate JSONL rows with NeMo Curator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import payload  # noqa: E402
from _runtime.curate.local_ray import prepare_environment  # noqa: E402
from _runtime.curate.options import read_options  # noqa: E402


def main(cfg: dict[str, Any]) -> None:
    options = read_options(cfg)  # first: a misspelt key is told at once
    prepare_environment()
    from _runtime.curate.pipeline import curate  # imports Curator and Ray, which read the environment

    curate(options)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
