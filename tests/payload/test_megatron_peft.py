"""peft/megatron_bridge as it is started for real: an adapter trained, killed, gone on with, merged."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from interpreters import STEPS
from megatron_run import Run, exported, refusals

from nemotron_dagster.artifacts.types import checkpoint_lora, checkpoint_megatron
from nemotron_dagster.errors import ArtifactError

DATA = STEPS / "peft" / "megatron_bridge" / "data" / "train"
TRAIN = "dataset.packed_sequence_specs.packed_train_data_path"
BASE = "checkpoint.pretrained_checkpoint"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny config, run once from start to end."""
    return Run("peft", tmp_path_factory.mktemp("whole")).finish(cold=True)


def test_loss_falls_while_only_the_adapter_is_trained(whole: Run) -> None:
    facts, losses = whole.facts(), whole.losses()
    assert list(losses) == list(range(1, 31)) and losses[30] < losses[1] - 0.5
    assert facts["trained_parameters"] < facts["parameters"] / 4
    assert facts["peft"]["dim"] == 16 and facts["base_model"] == "untrained tiny_llama"


def test_adapter_is_of_its_type_names_its_base_and_is_no_whole_model(whole: Run) -> None:
    facts = checkpoint_lora.validate(whole.out)
    assert (facts["layout"], facts["adapter"], facts["base"]) == ("megatron", "iter_0000030", "tiny_llama")
    assert (facts["rank"], facts["alpha"], facts["pretrained"]) == (16, 32, str(whole.out / "base"))
    assert set(facts["targets"]) == {"linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"}
    assert facts["tokenizer_fingerprint"] and facts["chat_template_fingerprint"]
    with pytest.raises(ArtifactError, match="only an adapter was saved"):
        checkpoint_megatron.validate(whole.out)


def test_adapter_merged_into_its_base_has_learned(whole: Run, tmp_path: Path) -> None:
    row = pq.read_table(DATA / "shard_000000.parquet").slice(0, 1).to_pylist()[0]
    end = row["seq_start_id"][1]
    found = exported(whole, tmp_path, row["input_ids"][:end], row["loss_mask"][:end])
    assert found["after"] < found["before"] - 0.5


def test_killed_run_ends_as_if_undisturbed(whole: Run, tmp_path: Path) -> None:
    run = Run("peft", tmp_path)
    process = run.start()
    run.until(process, lambda r: r.past(18))
    process.send_signal(signal.SIGKILL)
    process.wait()
    run.finish()
    assert run.facts()["resumed_from"] == 15
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-4)
    assert checkpoint_lora.validate(run.out)["adapter"] == "iter_0000030"


def test_bad_input_is_told_before_the_model_is_built(tmp_path: Path) -> None:
    bare, hugging_face, own = tmp_path / "bare", tmp_path / "hugging_face", tmp_path / "runs" / "4" / "out"
    for folder in (bare, hugging_face, own):
        folder.mkdir(parents=True)
    (hugging_face / "config.json").write_text("{}")
    (own / "run_config.yaml").write_text("")
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({BASE: None}, "missing_base_checkpoint", f"{BASE} is not set"),
        ({BASE: str(bare)}, "missing_base_checkpoint", "no Megatron checkpoint there"),
        ({BASE: str(hugging_face)}, "missing_base_checkpoint", "no Megatron checkpoint there"),
        ({"peft.type": "qlora"}, "config_invalid", "peft.type='qlora': must be lora or dora"),
        ({BASE: str(own)}, "base_and_adapter_paths_mixed", "one lies within the other"),
        ({"peft.rank": 4}, "config_unknown_key", "peft.rank: Megatron-Bridge has no such key"),
    ]
    said = refusals("peft", tmp_path / "runs", [{TRAIN: str(DATA), **overrides} for overrides, _, _ in wrong])
    for (overrides, name, part), told in zip(wrong, said, strict=True):
        assert (told.name, part in told.message) == (name, True), (overrides, told)
    assert "convert/hf_to_megatron" in said[2].recovery
