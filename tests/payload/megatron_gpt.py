"""Run in the train environment with megatron-core: build its GPT datasets from a blend.json.

python megatron_gpt.py TASK    {"blend": {"train": [weight, prefix, ...], ...}, "length": ..., "samples": ...}

Prints, per split, how many samples each prefix gives, and of each prefix its documents' order and every sample.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
from _runtime import cpu_megatron_imports

cpu_megatron_imports.install()  # megatron.core imports Triton, which it does not need here

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder  # noqa: E402
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig  # noqa: E402


def main(task: dict[str, Any]) -> None:
    tokenizer = SimpleNamespace(eod=2, pad=0, vocab_size=394, unique_identifiers={"class": "tiny"})
    blend = [(entries[1::2], list(map(float, entries[::2]))) for entries in task["blend"].values()]
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=task["length"],
        blend_per_split=blend,
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    sizes = [task["samples"]] * len(blend)
    built = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
    told = {}
    for split, dataset in zip(task["blend"], built, strict=True):
        parts = getattr(dataset, "datasets", [dataset])
        counts = numpy.bincount(getattr(dataset, "dataset_index", numpy.zeros(len(dataset), int)), minlength=len(parts))
        told[split] = {
            "counts": counts.tolist(),
            "parts": [
                {
                    "documents": part.document_index.tolist(),
                    "shuffle": part.shuffle_index.tolist(),
                    "samples": [part[i]["tokens"].tolist() for i in range(len(part))],
                }
                for part in parts
            ],
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
