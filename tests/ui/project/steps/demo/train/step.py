# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/demo/train"
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
"""Reports a falling loss and writes the smallest checkpoint that is a valid one."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from _runtime import payload


def main(cfg: dict[str, Any]) -> None:
    rows = sum(1 for f in Path(cfg["dataset"]).rglob("*.jsonl") for _ in f.open())
    steps = cfg["steps"]
    loss = 0.0
    for step in range(1, steps + 1):
        loss = 0.3 + 2.4 * math.exp(-4 * step / steps) + 0.05 * math.sin(step)
        lr = 1e-3 * min(1.0, step / 5) * (1 - step / (steps + 1))
        payload.progress(step, steps, loss=loss, lr=lr)
    model = Path(cfg["checkpoint_dir"], "model")
    model.mkdir()
    weights = struct.pack("<8f", *range(8))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, len(weights)]}}).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
    config = {"architectures": ["TinyForCausalLM"], "model_type": "tiny", "max_position_embeddings": 64}
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 4}))
    (model / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": {"one": 0}, "unk_token": "one"}})
    )
    payload.result(steps=steps, final_loss=round(loss, 4), rows_seen=rows)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "default.yaml")
