"""What data_prep/sft_packing writes, read and made into batches by Megatron-Bridge's own packed dataset."""

from __future__ import annotations

import json
import os
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
from interpreters import STEPS, payload_python
from packed_reader import PackedDataset, collate
from payload_run import REPOSITORY, run_payload

STEP = REPOSITORY / "steps/data_prep/sft_packing"
TOKENIZER = REPOSITORY / "steps/_runtime/tiny_llama"
PACK, MULTIPLE = 512, 16
READ = """
import json, sys
from types import SimpleNamespace
from _runtime import cpu_megatron
cpu_megatron.enable()
from megatron.bridge.data.packing.parquet import GPTSFTPackedParquetDataset
found = {}
for name, path, multiple in json.loads(sys.argv[1]):
    tokenizer = SimpleNamespace(eos_id=int(sys.argv[2]))
    dataset = GPTSFTPackedParquetDataset(
        path, tokenizer, max_seq_length=int(sys.argv[3]), pad_seq_to_mult=multiple, pad_seq_length_to_mult=1,
        prompt_template="{text} {answer}",  # asked for, and not used: the rows are tokens
    )
    items = [dataset[i] for i in range(len(dataset))]
    for i, item in enumerate(items):
        dataset.validate_row(i, item["input_ids"], item["loss_mask"], item["seq_boundaries"][:-1])
    batches = [dataset.collate_fn([item]) for item in items]
    keys = ["tokens", "labels", "loss_mask", "position_ids", "cu_seqlens_q"]
    keys += ["cu_seqlens_q_padded"] if multiple > 1 else []
    found[name] = [{k: b[k][0].tolist() for k in keys} for b in batches]
print(json.dumps(found))
"""


def test_megatron_bridge_makes_the_batches_that_were_meant(tmp_path: Path, data_python: str) -> None:
    model = json.loads((TOKENIZER / "tokenizer.json").read_text())
    named = json.loads((TOKENIZER / "tokenizer_config.json").read_text())["eos_token"]
    eos = next(t["id"] for t in model["added_tokens"] if t["content"] == named)
    places = []
    for name, multiple in (("plain", 1), ("parallel", MULTIPLE)):
        cfg = {
            "blend_path": str(STEP / "data/tiny.jsonl"), "output_dir": str(tmp_path / name), "num_shards": 3,
            "pack_size": PACK, "pad_seq_to_multiple": multiple, "tokenizer": {"model": str(TOKENIZER)},
            "train_ratio": 0.4, "valid_ratio": 0.3, "test_ratio": 0.3,
        }  # fmt: skip
        assert run_payload(STEP, cfg, tmp_path / f"run-{name}", data_python).status == 0
        places.append((name, str(tmp_path / name / "splits/train"), multiple))
    done = subprocess.run(
        [payload_python("train"), "-W", "ignore", "-c", READ, json.dumps(places), str(eos), str(PACK)],
        check=False, capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env=os.environ | {"PYTHONPATH": str(STEPS), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    for name, path, multiple in places:
        dataset = PackedDataset(path)
        assert len(told[name]) == len(dataset) > 3
        for item, batch in zip((dataset[i] for i in range(len(dataset))), told[name], strict=True):
            ours = collate(item)
            for key in ("tokens", "labels", "position_ids"):
                assert batch[key] == ours[key].tolist()
            assert batch["loss_mask"] == np.where(ours["tokens"] == eos, 0, ours["loss_mask"]).tolist()
            assert sum(batch["loss_mask"]) > 0
            if multiple == 1:
                assert batch["cu_seqlens_q"] == ours["cu_seqlens"].tolist()
            else:  # the trainer leaves out of attention what it knows as padding: end tokens at the end
                bounds = ours["cu_seqlens"]
                parts = [ours["tokens"][a:b] for a, b in pairwise(bounds)]
                lengths = [int(np.flatnonzero(part != eos)[-1]) + 1 for part in parts]
                assert batch["cu_seqlens_q_padded"] == bounds.tolist()
                assert np.diff(batch["cu_seqlens_q"]).tolist() == lengths
                assert sum(lengths) < len(ours["tokens"])
