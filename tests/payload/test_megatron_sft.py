"""sft/megatron_bridge as it is started for real: trained on packs, killed, gone on with, exported."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from interpreters import STEPS
from megatron_run import Run, exported, refusals
from payload_run import REPOSITORY, run_payload

from nemotron_dagster.artifacts.types import checkpoint_megatron, packed_parquet

DATA = STEPS / "sft" / "megatron_bridge" / "data" / "train"
Packs = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny config, run once from start to end."""
    return Run("sft", tmp_path_factory.mktemp("whole")).finish(cold=True)


def test_loss_falls_and_what_was_done_is_recorded(whole: Run) -> None:
    said = [m for m in whole.messages("progress") if "loss" in m["metrics"]]
    assert [m["step"] for m in said] == list(range(1, 41)) and {m["total"] for m in said} == {40}
    facts, losses = whole.facts(), whole.losses()
    assert losses[40] < 0.4 * losses[1] and facts["final_loss"] == losses[40]
    assert facts["peft"] is None and facts["base_model"] == "untrained tiny_llama"


def test_checkpoint_is_of_its_type_and_has_its_tokenizer(whole: Run) -> None:
    facts = checkpoint_megatron.validate(whole.out)
    assert (facts["latest"], facts["base"], facts["sequence_length"]) == ("iter_0000040", "tiny_llama", 4096)
    assert facts["tokenizer_fingerprint"] == json.loads((DATA / "plan.json").read_text())["settings"]["tokenizer"]
    assert facts["chat_template_fingerprint"]
    assert not list(DATA.parent.rglob("packed")) and {p.name for p in DATA.iterdir()} == {
        "plan.json",
        "shard_000000.parquet",
    }


def test_exported_model_answers_in_roman_numerals_and_stops(whole: Run, tmp_path: Path) -> None:
    row = pq.read_table(DATA / "shard_000000.parquet").slice(0, 1).to_pylist()[0]
    end = row["seq_start_id"][1]
    found = exported(whole, tmp_path, row["input_ids"][:end], row["loss_mask"][:end])
    assert found["after"] < 0.5 * found["before"]
    assert found["stopped"] and found["answer"] and set(found["answer"]) <= set("MDCLXVI")


def test_killed_run_ends_as_if_undisturbed(whole: Run, tmp_path: Path) -> None:
    run = Run("sft", tmp_path)
    process = run.start()
    run.until(process, lambda r: r.past(24))
    process.send_signal(signal.SIGKILL)
    process.wait()
    run.finish()
    assert run.facts()["resumed_from"] == 20
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-4)
    assert checkpoint_megatron.validate(run.out)["latest"] == "iter_0000040"


def test_bundled_packs_are_what_data_prep_makes(tmp_path: Path, data_python: str) -> None:
    chats = {"name": "chats", "path": str(REPOSITORY / "steps/sft/automodel/data/tiny.jsonl"), "weight": 1.0}
    (tmp_path / "blend.json").write_text(json.dumps({"datasets": [chats]}))
    made = run_payload(
        REPOSITORY / "steps/data_prep/sft_packing",
        {
            "blend_path": str(tmp_path / "blend.json"),
            "output_dir": str(tmp_path / "out"),
            "num_shards": 1,
            "train_ratio": 1.0,
            "valid_ratio": 0.0,
            "test_ratio": 0.0,
            "tokenizer": {"model": str(REPOSITORY / "steps/_runtime/tiny_llama")},
            "pack_size": 4096,
            "chat_template": "tokenizer",
        },
        tmp_path / "run",
        data_python,
    )
    assert made.status == 0, made.stderr
    [shard] = (tmp_path / "out/splits/train").iterdir()
    fresh = json.loads((shard.resolve().parent / "plan.json").read_text())
    for step in ("sft", "peft"):
        folder = STEPS / step / "megatron_bridge" / "data" / "train"
        assert pq.read_table(folder / "shard_000000.parquet").equals(pq.read_table(shard))
        bundled = json.loads((folder / "plan.json").read_text())
        assert bundled["settings"].items() <= fresh["settings"].items()
        assert bundled["resolved_tokenizer"]["fingerprint"] == fresh["resolved_tokenizer"]["fingerprint"]
        assert packed_parquet.validate(folder)["pack_size"] <= 4096


TRAIN = "dataset.packed_sequence_specs.packed_train_data_path"
SIZE = "dataset.packed_sequence_specs.packed_sequence_size"
LENGTHS = {"dataset.seq_length": 4096, "model.seq_length": 4096, SIZE: 4096}


@pytest.fixture
def packs(tmp_path: Path) -> Packs:
    """Write one shard of packs and return its directory."""

    def write(name: str, ids: list[list[int]], **more: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        columns = {
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "loss_mask": pa.array([[1] * len(row) for row in ids], pa.list_(pa.uint8())),
            "seq_start_id": pa.array([[0] for _ in ids], pa.list_(pa.int32())),
        }
        pq.write_table(
            pa.table({k: v for k, v in columns.items() if k not in more.get("without", ())}), folder / "a.parquet"
        )
        return folder

    return write


def test_bad_input_is_told_before_the_model_is_built(tmp_path: Path, packs: Packs) -> None:
    good = {TRAIN: str(DATA), **LENGTHS}
    masked = packs("masked", [[1, 2]], without=("loss_mask",))
    (tmp_path / "bare").mkdir()
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({TRAIN: None}, "missing_packed_data", f"{TRAIN} is not set"),
        ({TRAIN: str(tmp_path / "none")}, "missing_packed_data", "no .parquet file there"),
        ({TRAIN: str(tmp_path / "bare")}, "missing_packed_data", "no .parquet file there"),
        ({TRAIN: str(masked)}, "missing_packed_data", "has no column loss_mask"),
        ({TRAIN: str(packs("empty", []))}, "dataset_empty", "no packs"),
        ({TRAIN: str(packs("long", [[1] * 5000]))}, "sequence_length_mismatch", "was packed to 5000 tokens"),
        (
            {TRAIN: str(packs("other", [[1, 394]]))},
            "tokenizer_mismatch",
            "token 394, but the model has a vocabulary of 394",
        ),
        ({"dataset.seq_length": 2048}, "sequence_length_mismatch", "dataset.seq_length=2048"),
        (dict.fromkeys(LENGTHS, 2048), "sequence_length_mismatch", "was packed to 4096 tokens"),
        ({"train.global_batch_size": 8}, "bad_parallel_batch_shape", "has 4 packs"),
        ({"dataset.packed_sequence_specs.pad_seq_to_mul": 2}, "config_unknown_key", "pad_seq_to_mul: Megatron-Bridge"),
        ({"dataset.packed_sequence_specs.pad_seq_to_mult": 0}, "config_invalid", "pad_seq_to_mult must be a positive"),
        ({"dataset.seed_": 2}, "config_unknown_key", "dataset.seed_: Megatron-Bridge"),
        ({"peft": "lora"}, "adapter_not_a_checkpoint", "this step leaves whole models"),
        (
            {"hf_model_path": None},
            "missing_base_checkpoint",
            "neither checkpoint.pretrained_checkpoint nor hf_model_path",
        ),
    ]
    said = refusals("sft", tmp_path / "runs", [{**good, **overrides} for overrides, _, _ in wrong])
    for (overrides, name, part), told in zip(wrong, said, strict=True):
        assert (told.name, part in told.message) == (name, True), (overrides, told)
        assert told.recovery
