"""Megatron checkpoints and LoRA adapters: the right save is found, and one that would not load or merge is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_files as make
import pytest
from model_files import edit, refused

from nemotron_dagster import artifacts
from nemotron_dagster.artifacts.registry import artifact_type
from nemotron_dagster.project import Project

Damage = Callable[[Path], Any]


# ---- checkpoint_megatron


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_parent_and_an_iteration_are_told_apart(tmp_path: Path, protocol: int) -> None:
    make.megatron(tmp_path, protocol=protocol)
    parent = artifacts.validate("checkpoint_megatron", tmp_path)
    one = artifacts.validate("checkpoint_megatron", tmp_path / "iter_0000005")
    assert (parent["kind"], parent["latest"], parent["iterations"]) == (
        "parent",
        "iter_0000010",
        ["iter_0000005", "iter_0000010"],
    )
    assert (one["kind"], one["latest"], one["iterations_total"]) == ("iteration", "iter_0000005", 1)
    for facts in (parent, one):
        assert (facts["ranks"], facts["bytes"], facts["base"]) == (2, 4 * 320, "org/base")
        assert (facts["sequence_length"], facts["vocab_size"], facts["parallel"]["tp"]) == (128, 12, 2)
    hf = artifacts.validate("checkpoint_hf", make.llama(tmp_path / "hf"))
    assert parent["tokenizer_fingerprint"] == hf["tokenizer_fingerprint"]
    assert parent["chat_template_fingerprint"] == hf["chat_template_fingerprint"]


def test_release_is_an_iteration_and_an_unfinished_save_after_the_tracked_one_is_noted(tmp_path: Path) -> None:
    make.megatron(tmp_path)
    (tmp_path / "iter_0000015").mkdir()
    (tmp_path / "iter_0000015/__0_0.distcp").write_bytes(b"x")
    facts = artifacts.validate("checkpoint_megatron", tmp_path)
    assert (facts["latest"], facts["incomplete"]) == ("iter_0000010", ["iter_0000015"])
    (tmp_path / "iter_0000005").rename(tmp_path / "release")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert artifacts.validate("checkpoint_megatron", tmp_path)["latest"] == "release"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: (p / "latest_checkpointed_iteration.txt").write_text("15"),
            "names iter_0000015, which is not there",
        ),
        (lambda p: (p / "latest_checkpointed_iteration.txt").write_text("ten"), "holds 'ten', neither a number"),
        (lambda p: (p / "latest_checkpointed_iteration.txt").write_text("-1"), "neither a number"),
        (lambda p: (p / "latest_checkpointed_iteration.txt").write_text(""), "neither a number"),
        (lambda p: (p / "latest_checkpointed_iteration.txt").unlink(), "no latest_checkpointed_iteration.txt.*Name"),
        (lambda p: os.truncate(p / "latest_train_state.pt", 100), "is no whole torch file"),
        (lambda p: shutil.rmtree(p / "iter_0000010"), "names iter_0000010, which is not there"),
        (lambda p: os.truncate(p / "iter_0000010/train_state.pt", 60), "is no whole torch file"),
        (lambda p: (p / "iter_0000010/__1_0.distcp").unlink(), r"__1_0\.distcp: is missing, and .metadata refers"),
        (lambda p: (p / "iter_0000010/__1_0.distcp").write_bytes(b""), "__1_0.*has 0 of 320 bytes"),
        (lambda p: os.truncate(p / "iter_0000010/__0_1.distcp", 319), "has 319 of 320 bytes: it was truncated"),
        (lambda p: (p / "iter_0000010/.metadata").unlink(), "has no .metadata, so its save did not end"),
        (lambda p: os.truncate(p / "iter_0000010/.metadata", 50), "is damaged or was truncated"),
        (lambda p: (p / "iter_0000010/run_config.yaml").write_text("a: [1"), r"run_config.yaml:\d+:\d+: is not valid"),
        (lambda p: (p / "iter_0000010/run_config.yaml").write_text("- 1"), "is not a YAML mapping"),
        (lambda p: (p / "iter_0000010/run_config.yaml").write_text("a: !!python/name:os.system"), "is not supported"),
        (lambda p: (p / "iter_0000010/metadata.json").write_text("{"), "is not JSON"),
        (lambda p: edit(p / "iter_0000010/metadata.json", sharded_backend="zarr"), "ckpt_format=torch_dist"),
        (lambda p: edit(p / "iter_0000010/metadata.json", common_backend="torch"), "has no common.pt"),
        (lambda p: (p / "iter_0000010/x.distcp.part").touch(), "has not ended"),
        (lambda p: (p / "iter_0000010/tokenizer/tokenizer.json").write_text("{}"), "has no `model`"),
    ],
)
def test_an_iteration_that_would_not_load_is_refused(tmp_path: Path, damage: Damage, message: str) -> None:
    damage(make.megatron(tmp_path))
    refused("checkpoint_megatron", tmp_path, message)


def test_metadata_is_never_unpickled(tmp_path: Path) -> None:
    make.megatron(tmp_path)
    attack = b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "owned").encode()
    (tmp_path / "iter_0000010/.metadata").write_bytes(attack)
    artifacts.validate("checkpoint_megatron", tmp_path)  # names no shards, which are then counted by rank
    assert not (tmp_path / "owned").exists()
    (tmp_path / "iter_0000010/__0_0.distcp").unlink()
    (tmp_path / "iter_0000010/__0_1.distcp").unlink()
    refused("checkpoint_megatron", tmp_path, "has no shard of rank 0")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (make.llama, "looks like a Hugging Face model: convert/hf_to_megatron"),
        (lambda p: make.megatron(p, peft=make.PEFT), "has a peft section.*convert/merge_lora"),
        (lambda p: (p / "iter_0000003").mkdir(), "so a loader would not find it"),
    ],
)
def test_what_is_no_whole_megatron_model_says_so(tmp_path: Path, place: Damage, message: str) -> None:
    place(tmp_path)
    refused("checkpoint_megatron", tmp_path, message)


def test_megatron_pages_and_handles(tmp_path: Path) -> None:
    kind = artifact_type("checkpoint_megatron", Project(None, tmp_path))
    handle = kind.read(make.megatron(tmp_path))
    assert (handle.kind, handle.latest) == ("parent", tmp_path / "iter_0000010")
    facts = kind.validate(tmp_path)
    assert kind.figures(facts)["iteration"] == "iter_0000010"
    assert "| iter_0000010 | latest |" in kind.tables(facts)["iterations"]


# ---- checkpoint_lora


def test_an_adapter_is_described(tmp_path: Path) -> None:
    kind = artifact_type("checkpoint_lora", Project(None, tmp_path))
    facts = kind.validate(make.adapter(tmp_path))
    assert (facts["base"], facts["rank"], facts["alpha"], facts["pairs"]) == ("org/base", 2, 4.0, 4)
    assert (facts["parameters"], facts["adapter"], facts["targets"]) == (128, ".", ["q_proj", "v_proj"])
    assert kind.figures(facts)["base"] == "org/base" and kind.read(tmp_path).path == tmp_path
    assert "q_proj" in kind.tables(facts)["adapted modules"] and len(kind.columns(facts)) == 4


A = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_model_name_or_path": ""}, "names no base model. Set base_model_name_or_path to"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": 0}, "r is 0, which is no rank"),
        ({"r": 4}, "has rank 2, and adapter_config.json says 4"),
        ({"lora_alpha": "x"}, "lora_alpha is x"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": [5]}, "target_modules is no list of names"),
        ({"drop": [A]}, "v_proj.lora_B.weight has no A to it"),
        ({"drop": [A.replace("_A", "_B")]}, "v_proj.lora_A.weight has no B to it"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(tmp_path: Path, changed: dict, message: str) -> None:
    refused("checkpoint_lora", make.adapter(tmp_path, **changed), message)


def test_other_ranks_of_single_modules_are_those_of_rank_pattern(tmp_path: Path) -> None:
    make.adapter(tmp_path, rank=3, rank_pattern={"q_proj": 3, "v_proj": 3})
    assert artifacts.validate("checkpoint_lora", tmp_path)["rank"] == 2
    refused("checkpoint_lora", make.adapter(tmp_path, rank=3, rank_pattern={"q_proj": "3"}), "has rank 3")


@pytest.mark.parametrize("name", ["adapter_model.bin", None])
def test_an_adapter_without_safetensors_is_refused(tmp_path: Path, name: str | None) -> None:
    make.adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    if name:
        (tmp_path / name).touch()
    refused("checkpoint_lora", tmp_path, "safe_serialization=True" if name else "Save the adapter again")


def test_of_several_saves_the_greatest_epoch_and_step_counts_and_no_other_digits(tmp_path: Path) -> None:
    root = tmp_path / "peft-999b/step_100000"
    for epoch, step in ((0, 99), (1, 9), (2, 3)):
        make.adapter(root / f"epoch_{epoch}_step_{step}/model")
    (root / "epoch_3_step_1/model").mkdir(parents=True)  # its save did not end
    (root / "LATEST").symlink_to("epoch_2_step_3")
    os.utime(root / "epoch_0_step_99/model/adapter_config.json")
    assert artifacts.validate("checkpoint_lora", root)["adapter"] == "epoch_2_step_3/model"
    assert artifacts.validate("checkpoint_lora", tmp_path)["adapter"].endswith("epoch_2_step_3/model")
    assert artifacts.validate("checkpoint_lora", root / "LATEST/model")["adapter"] == "."
    assert artifacts.validate("checkpoint_lora", root / "epoch_0_step_99")["adapter"] == "model"


def test_adapters_that_no_number_tells_apart_are_asked_for(tmp_path: Path) -> None:
    make.adapter(tmp_path / "one-7b")
    make.adapter(tmp_path / "two-70b")
    refused("checkpoint_lora", tmp_path, "holds several adapters .*one-7b.*Name one of them")
    make.adapter(tmp_path / "checkpoint-5")
    make.adapter(tmp_path / "checkpoint-30")
    assert artifacts.validate("checkpoint_lora", tmp_path)["adapter"] == "checkpoint-30"


def test_an_adapter_of_megatron_bridge_names_its_base(tmp_path: Path) -> None:
    facts = artifacts.validate("checkpoint_lora", make.megatron(tmp_path / "a", peft=make.PEFT))
    assert (facts["layout"], facts["adapter"], facts["base"]) == ("megatron", "iter_0000010", "org/base")
    assert (facts["rank"], facts["alpha"], facts["targets"]) == (8, 16, ["linear_qkv", "linear_proj"])
    refused("checkpoint_lora", make.megatron(tmp_path / "b", peft=make.PEFT, base="null"), "names no base model")
    refused("checkpoint_lora", make.megatron(tmp_path / "c"), "no peft section, so this is a whole model")
    refused("checkpoint_lora", make.llama(tmp_path / "d"), "holds no adapter")
    refused("checkpoint_lora", tmp_path / "nope", "no such file")
