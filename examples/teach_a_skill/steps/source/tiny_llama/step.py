# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/source/tiny_llama"
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
"""Makes an untrained small Llama and its tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

from _runtime import hf_checkpoint, payload, tiny_model  # noqa: E402


def main(cfg: dict[str, Any]) -> None:
    output = Path(cfg["output_dir"])
    sizes = {name: int(cfg[name]) for name in ("hidden_size", "layers", "heads")}
    try:
        parameters = tiny_model.save(output, seed=int(cfg["seed"]), **sizes)
    except ValueError as e:
        raise payload.PayloadError("size_invalid", str(e), "Change hidden_size, layers or heads.") from None
    payload.result(parameters=parameters, seed=int(cfg["seed"]), **sizes, **hf_checkpoint.tokenizer_facts(output))


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
