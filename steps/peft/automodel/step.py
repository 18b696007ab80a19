# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/peft/automodel"
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
# gpus_per_node = 2
# ///
"""LoRA fine-tuning of a Hugging Face model on chat rows, with NeMo AutoModel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import automodel, payload  # noqa: E402

RECIPE = "nemo_automodel.recipes.llm.train_ft:TrainFinetuneRecipeForNextTokenPrediction"


def main(cfg: dict[str, Any]) -> None:
    automodel.run(cfg, RECIPE, adapter=True)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
