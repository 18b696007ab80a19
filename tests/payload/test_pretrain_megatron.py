"""What data_prep/pretrain_prep writes, read by megatron-core's own GPT dataset."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml
from interpreters import STEPS, payload_python
from payload_run import REPOSITORY, run_payload

from nemotron_dagster.artifacts.types import binidx

STEP = REPOSITORY / "steps/data_prep/pretrain_prep"
SCRIPT = Path(__file__).with_name("megatron_gpt.py")
LENGTH, SAMPLES = 64, 300


def test_megatrons_gpt_dataset_mixes_by_weight_and_reads_our_tokens(tmp_path: Path, data_python: str) -> None:
    cfg = yaml.safe_load((STEP / "config/tiny.yaml").read_text())
    cfg |= {"blend_path": str(STEP / "data/blend_tiny.json"), "output_dir": str(tmp_path / "out"), "num_shards": 4}
    del cfg["run"]
    cfg["tokenizer"]["model"] = str(REPOSITORY / "steps/_runtime/tiny_llama")
    assert run_payload(STEP, cfg, tmp_path / "run", data_python).status == 0
    given = json.loads((tmp_path / "out/blend.json").read_text())
    blend = {
        split: [v if i % 2 == 0 else str(tmp_path / "out" / v) for i, v in enumerate(entries)]
        for split, entries in given.items()
    }
    task = {"blend": blend, "length": LENGTH, "samples": SAMPLES}
    (tmp_path / "task.json").write_text(json.dumps(task))
    done = subprocess.run(
        [payload_python("train"), "-W", "ignore", SCRIPT, tmp_path / "task.json"],
        check=False, capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env=os.environ | {"PYTHONPATH": str(STEPS), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    shards = binidx.read(tmp_path / "out")
    for split, entries in shards.items():
        shares: Counter[str] = Counter()
        for prefix, count, part, (_, shard) in zip(
            given[split][1::2], told[split]["counts"], told[split]["parts"], entries, strict=True
        ):
            shares[prefix.split("/")[3]] += count
            stream = [token for d in part["documents"] for token in shard[d].tolist()]
            assert part["samples"]
            for place, sample in zip(part["shuffle"], part["samples"], strict=True):
                assert sample == stream[place * LENGTH : place * LENGTH + LENGTH]
        total = sum(shares.values())
        assert shares["clocks"] / total == pytest.approx(0.7, abs=0.02), f"{split}: {shares}"
