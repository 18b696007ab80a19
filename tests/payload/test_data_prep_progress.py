"""What all three steps of data preparation say of their speed, while they run and on the artifact's page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from payload_run import REPOSITORY, run_payload

from nemotron_dagster.artifacts import describe
from nemotron_dagster.artifacts.registry import artifact_type

TOKENIZER = {"model": str(REPOSITORY / "steps/_runtime/tiny_llama")}
#: Step -> the type of what it makes, a row, its settings, the pictures of its artifact.
STEPS: dict[str, tuple[str, dict[str, Any], dict[str, Any], set[str]]] = {
    "pretrain_prep": ("binidx", {"text": "XIV"}, {"tokenizer": TOKENIZER, "num_shards": 4}, {"lengths", "splits"}),
    "sft_packing": (
        "packed_parquet",
        {"messages": [{"role": "user", "content": "14?"}, {"role": "assistant", "content": "XIV"}]},
        {"tokenizer": TOKENIZER, "num_shards": 4, "pack_size": 256},
        {"lengths", "fill", "splits"},
    ),
    "rl_prep": (
        "training_jsonl",
        {"prompt": "14?", "chosen": "XIV", "rejected": "XIIII"},
        {"num_shards_per_split": 4, "splits": "ratios", "valid_ratio": 0.0},
        {"lengths"},
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_rates_and_the_time_that_is_left_are_told_and_drawn(name: str, tmp_path: Path, data_python: str) -> None:
    kind, row, settings, pictures = STEPS[name]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({**row, "n": i}) + "\n" for i in range(400)))
    cfg = {"blend_path": f"{tmp_path}/in.jsonl", "output_dir": f"{tmp_path}/out", "workers": 1, **settings}
    done = run_payload(REPOSITORY / "steps/data_prep" / name, cfg, tmp_path / "run", data_python)
    assert done.status == 0, done.stderr
    told = [m for m in done.messages if m["type"] == "progress"]
    assert told[-1]["step"] == told[-1]["total"] == 4 and told[-1]["metrics"]["rows"] == 400
    assert any(0 < m["metrics"].get("eta_seconds", 0) < 600 for m in told)
    tokens = name != "rl_prep"
    for m in told:
        assert m["metrics"]["rows_per_second"] > 0 and ("tokens_per_second" in m["metrics"]) == tokens
    facts = artifact_type(kind).validate(tmp_path / "out")
    shown = describe.headline(kind, facts, done.facts)
    assert float(shown["rows_per_second"]) > 0 and ("tokens_per_second" in shown) == tokens
    drawn = describe.draw(kind, tmp_path / "out", facts, done.facts, done.messages)
    assert {Path(p).stem for p in drawn} == pictures
    assert all((tmp_path / "out" / p).read_bytes().startswith(b"\x89PNG") for p in drawn)
