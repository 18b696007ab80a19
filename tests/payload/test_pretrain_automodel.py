"""pretrain/automodel as it is started for real, on the bundled token shards and on broken ones."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from automodel_run import Run, python, training_past
from interpreters import STEPS
from omegaconf import OmegaConf
from payload_run import run_payload

from nemotron_dagster.artifacts.types import binidx, checkpoint_hf

STEP = STEPS / "pretrain" / "automodel"
DATA = STEP / "data"
Pretrain = partial(Run, step="pretrain/automodel")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny config, run once from start to end."""
    before = contents(DATA)
    run = Pretrain(tmp_path_factory.mktemp("whole")).finish(cold=True)
    assert contents(DATA) == before, "the input was written to"
    return run


def test_loss_falls_on_trained_and_on_held_out_text(whole: Run) -> None:
    steps = [m for m in whole.messages("progress") if "loss" in m["metrics"]]
    assert [m["step"] for m in steps] == list(range(1, 41)) and {m["total"] for m in steps} == {40}
    assert steps[-1]["metrics"]["loss"] < 0.4 * steps[0]["metrics"]["loss"]
    held_out = [m["metrics"]["validation_loss"] for m in whole.messages("progress") if "loss" not in m["metrics"]]
    assert len(held_out) == 2 and held_out[1] < held_out[0] < steps[0]["metrics"]["loss"]
    table = pq.read_table(whole.out / "metrics.parquet").to_pydict()
    assert table["step"] == list(range(1, 41)) and table["validation_loss"][-1] == pytest.approx(held_out[1])
    assert table["tokens"] == [16 * 128] * 40


def test_result_records_the_data_and_the_start(whole: Run) -> None:
    facts = whole.facts()
    assert facts["backend"] == "nemo_automodel" and facts["steps"] == 40 and facts["resumed_from"] is None
    assert facts["tokens"] == binidx.validate(DATA)["splits"]["train"]["tokens"] and facts["shards"] == 2
    assert facts["load_weights"] is True and facts["seq_length"] == 128 and facts["parameters"] < 1_000_000


def test_artifact_is_valid_and_generates_after_it_was_moved(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.out, tmp_path / "moved", symlinks=True)
    artifact = tmp_path / "moved" / "LATEST" / "model" / "consolidated"
    assert checkpoint_hf.validate(artifact)["parameters"] == whole.facts()["parameters"]
    code = """
import sys, json
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = tokenizer("The number 12 is", return_tensors="pt")["input_ids"]
print(json.dumps(tokenizer.decode(model.generate(ids, max_new_tokens=8)[0, ids.shape[1]:])))
"""
    assert any(sign in json.loads(python(code, artifact)) for sign in "MDCLXVI")


def test_killed_run_ends_where_an_undisturbed_run_ends_though_its_index_was_torn(whole: Run, tmp_path: Path) -> None:
    run = Pretrain(tmp_path)
    run.kill_when(training_past(30))
    assert not run.artifact.exists()
    index = sorted((run.out / "index_mapping" / "train").glob("*.npy"))[-1]
    index.write_bytes(index.read_bytes()[:-8])
    run.finish()
    assert run.facts()["resumed_from"] == 20
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-4)
    assert checkpoint_hf.validate(run.artifact) and "half written" in run.log()


def test_bundled_shards_are_what_pretrain_prep_makes(tmp_path: Path, data_python: str) -> None:
    prep = STEPS / "data_prep" / "pretrain_prep"
    config = OmegaConf.load(prep / "config" / "tiny.yaml")
    config.update(blend_path=str(prep / "data/numerals.jsonl"), output_dir=str(tmp_path / "made"))
    config.update(num_shards=3, test_shards=0)
    config.tokenizer.model = str(STEPS / "_runtime" / "tiny_llama")
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    assert run_payload(prep, {str(k): v for k, v in plain.items()}, tmp_path, data_python).status == 0
    made, bundled = (json.loads((folder / "blend.json").read_text()) for folder in (tmp_path / "made", DATA))
    assert {k: v[::2] for k, v in made.items() if v} == {k: v[::2] for k, v in bundled.items()}
    for split in bundled:
        for ours, theirs in zip(bundled[split][1::2], made[split][1::2], strict=True):
            for suffix in (".bin", ".idx"):
                assert (DATA / f"{ours}{suffix}").read_bytes() == (tmp_path / f"made/{theirs}{suffix}").read_bytes()


def test_compiled_helpers_of_megatron_sample_whole_documents(tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from _runtime import cpu, index_helpers, token_shards
cpu.enable()
index_helpers.enable()
from transformers import AutoTokenizer
from nemo_automodel.components.datasets.llm.megatron_dataset import MegatronPretraining
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
cfg = {"dataset": {"paths": sys.argv[1]}, "step_scheduler": {}}
token_shards.prepare(cfg, Path(sys.argv[3]))
built = MegatronPretraining(**cfg["dataset"], seq_length=64, tokenizer=tokenizer, num_train_samples=40,
                            trainer_max_steps=10, global_batch_size=4)
built.build()
rows = built.get_dataset("train")
end = tokenizer.eos_token_id
documents = set()
for shard in ("train_0", "train_1"):
    tokens = np.fromfile(f"{sys.argv[1]}/{shard}.bin", "<u2").tolist()
    ends = [i + 1 for i, t in enumerate(tokens) if t == end]
    documents |= {tuple(tokens[a:b]) for a, b in zip([0, *ends], ends)}
inner = 0
for i in range(40):
    tokens = rows[i]["input_ids"].tolist() + [int(rows[i]["labels"][-1])]
    assert tokens[1:] == rows[i]["labels"].tolist()
    ends = [i + 1 for i, t in enumerate(tokens) if t == end]
    for a, b in zip(ends, ends[1:]):
        assert tuple(tokens[a:b]) in documents
        inner += 1
print(json.dumps([len(rows) >= 40, inner]))
"""
    enough, inner = json.loads(python(code, DATA, STEPS / "_runtime" / "tiny_llama", tmp_path))
    assert (tmp_path / "index_mapping" / "dataset").is_dir()
    assert enough and inner > 5


ONE_STEP = {"step_scheduler.max_steps": 1, "optimizer.lr": 0.0, "lr_scheduler.min_lr": 0.0}


@pytest.mark.parametrize("load", [True, False])
def test_load_weights_decides_between_the_bases_weights_and_random_ones(whole: Run, tmp_path: Path, load: bool) -> None:
    schedule = {"dataset.trainer_max_steps": 1, "validation_dataset.trainer_max_steps": 1}  # as the reference has them
    base = {"model.pretrained_model_name_or_path": str(whole.artifact), "load_weights": load}
    run = Pretrain(tmp_path, {**ONE_STEP, **schedule, **base}).finish()
    assert "dataset.trainer_max_steps=1 is left out" in run.log()
    code = """
import sys, json
from transformers import AutoModelForCausalLM
one, two = (dict(AutoModelForCausalLM.from_pretrained(p).named_parameters()) for p in sys.argv[1:])
print(json.dumps([one.keys() == two.keys(), all(bool((one[k] == two[k]).all()) for k in one)]))
"""
    assert json.loads(python(code, whole.artifact, run.artifact)) == [True, load]
    assert run.facts()["load_weights"] is load


def shards(folder: Path) -> Path:
    shutil.copytree(DATA, folder)
    return folder / "blend.json"


PATHS = "dataset.paths"


@pytest.mark.parametrize(
    ("paths", "name", "part"),
    [
        ("/path/to/blend.json", "missing_blend_json", "dataset.paths is not set"),
        ("{}/none/blend.json", "missing_blend_json", "No such file"),
        ("{}/none", "missing_blend_json", "no blend.json there"),
        ("{}/*.bin.gz", "missing_blend_json", "matches no .bin file"),
        ('{"train": ["1"', "blend_invalid", "not JSON"),
        ('{"valid": ["1", "valid_0"]}', "blend_invalid", "lists no shard for train"),
        ('{"trian": ["1", "train_0"]}', "blend_invalid", "'trian' is no split"),
        ('{"train": ["1", "train_0", "many", "train_1"]}', "blend_invalid", "not weights and prefixes"),
        ('{"train": ["1", "train_9"]}', "blend_invalid", "train_9.idx: no such file"),
        ('{"train": ["1", "damaged"]}', "blend_invalid", "damaged.idx: not the index"),
        ('{"train": ["1", "empty"]}', "blend_invalid", "empty.bin: holds no tokens"),
        (
            '{"train": ["1", "other_tokenizer"]}',
            "tokenizer_or_sequence_mismatch",
            "the token id 60000; the model knows",
        ),
    ],
)
def test_bad_blend_is_told_before_training(tmp_path: Path, paths: str, name: str, part: str) -> None:
    blend = shards(tmp_path / "given")
    made = blend.parent
    (made / "damaged.idx").write_bytes(b"not an index")
    (made / "damaged.bin").write_bytes(b"\0\0")
    shutil.copy(made / "train_0.idx", made / "empty.idx")
    (made / "empty.bin").touch()
    shutil.copy(made / "train_0.idx", made / "other_tokenizer.idx")
    (made / "other_tokenizer.bin").write_bytes((60000).to_bytes(2, "little") * 4000)
    if paths.startswith("{}") or paths.startswith("/"):
        value = paths.replace("{}", str(made))
    else:
        blend.write_text(paths)
        value = str(blend)
    error = Pretrain(tmp_path, {PATHS: value}).refused()
    assert error["name"] == name and part in error["message"]


@pytest.mark.parametrize(
    ("overrides", "name", "part"),
    [
        (
            {"dataset.seq_length": 64},
            "tokenizer_or_sequence_mismatch",
            "validation_dataset.seq_length=128: not the same",
        ),
        ({"dataset.seq_length": 1024, "validation_dataset.seq_length": 1024}, "tokenizer_or_sequence_mismatch", "512"),
        ({"dataset.num_train_samples": 100}, "config_invalid", "num_train_samples=100: less than"),
        ({"lr_scheduler.warmup_steps": 5}, "unsupported_scheduler_kwargs", "'warmup_steps'"),
    ],
)
def test_setting_that_does_not_fit_is_named(tmp_path: Path, overrides: dict[str, Any], name: str, part: str) -> None:
    error = Pretrain(tmp_path, overrides).refused()
    assert error["name"] == name and part in error["message"]


def test_blend_without_validation_shards_trains_without_validation(tmp_path: Path) -> None:
    blend = shards(tmp_path / "given")
    listed = json.loads(blend.read_text())["train"]
    blend.write_text(json.dumps({"train": listed}))
    paths = {
        PATHS: str(blend.parent),
        "validation_dataset.paths": str(blend.parent),
    }  # the directory stands for its blend
    run = Pretrain(tmp_path, {**paths, "step_scheduler.max_steps": 2}).finish()
    assert "validation_dataset is dropped" in run.log() and run.facts()["steps"] == 2
    assert all("loss" in m["metrics"] for m in run.messages("progress"))
