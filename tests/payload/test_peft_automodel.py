"""peft/automodel as it is started for real: the adapter, what it adds to its base, and a killed run."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from automodel_run import Run, python, training_past
from interpreters import STEPS

from nemotron_dagster.artifacts.types import checkpoint_lora

STEP = STEPS / "peft" / "automodel"
Lora = partial(Run, step="peft/automodel")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny config, run once from start to end."""
    return Lora(tmp_path_factory.mktemp("whole")).finish(cold=True)


def test_loss_falls_though_only_the_adapter_is_trained(whole: Run) -> None:
    steps = [m for m in whole.messages("progress") if "loss" in m["metrics"]]
    assert [m["step"] for m in steps] == list(range(1, 41))
    assert steps[-1]["metrics"]["loss"] < 0.5 * steps[0]["metrics"]["loss"]
    table = pq.read_table(whole.out / "metrics.parquet").to_pydict()
    assert table["loss"] == pytest.approx([m["metrics"]["loss"] for m in steps])
    facts = whole.facts()
    assert facts["trained_parameters"] < facts["parameters"] / 4 and facts["rows"] == 240
    assert facts["peft"]["dim"] == 16 and facts["base_model"] == "untrained tiny_llama"


def test_adapter_is_valid_and_names_a_base_that_moves_with_it(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.out, tmp_path / "moved", symlinks=True)
    artifact = tmp_path / "moved" / "LATEST" / "model"
    found = checkpoint_lora.validate(artifact)
    assert found["rank"] == 16 and found["parameters"] == whole.facts()["trained_parameters"]
    assert (artifact.resolve() / found["base"]).resolve() == tmp_path / "moved" / "base"
    assert not list(whole.out.glob("*/model/consolidated"))


def test_merged_weights_are_base_plus_scaled_product_and_answer_as_both_do(whole: Run, tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from _runtime import hf_checkpoint
base, adapter, target = sys.argv[1:]
hf_checkpoint.merge_adapter(base, Path(adapter), Path(target))
load = AutoModelForCausalLM.from_pretrained
plain, merged, lora = load(base).state_dict(), load(target), load_file(f"{adapter}/adapter_model.safetensors")
worst, touched = 0.0, 0
for name, weight in merged.state_dict().items():
    module = "base_model.model." + name.removesuffix(".weight")
    a, b = (lora.pop(f"{module}.lora_{x}.weight", None) for x in "AB")
    expected = plain[name] if a is None else plain[name] + 32 / 16 * (b @ a)
    touched += a is not None
    worst = max(worst, float((weight - expected).abs().max()))
tokenizer = AutoTokenizer.from_pretrained(target)
ids = tokenizer("What is 12 in Roman numerals?", return_tensors="pt")["input_ids"]
with torch.no_grad():
    both = PeftModel.from_pretrained(load(base), adapter).eval()(ids).logits
    off, learned = (merged(ids).logits - both).abs().max(), (merged(ids).logits - load(base)(ids).logits).abs().max()
print(json.dumps([worst, touched, len(lora), float(off), float(learned)]))
"""
    arguments = (whole.out / "base", whole.out / "LATEST" / "model", tmp_path / "merged")
    worst, touched, left_over, off, learned = json.loads(python(code, *arguments))
    assert worst < 1e-5 and touched == 15 and left_over == 0  # 7 layers in each of 2 blocks, and the output
    assert off < 1e-3 and learned > 1


def test_killed_run_ends_where_an_undisturbed_run_ends(whole: Run, tmp_path: Path) -> None:
    run = Lora(tmp_path)
    run.kill_when(training_past(30))
    run.finish()
    assert run.facts()["resumed_from"] == 20
    assert run.losses() == pytest.approx(whole.losses(), rel=1e-3)
    assert checkpoint_lora.validate(run.out / "LATEST" / "model")


def test_without_a_peft_section_nothing_is_trained(tmp_path: Path) -> None:
    error = Lora(tmp_path, {"peft": None}).refused()
    assert error["name"] == "config_invalid" and "peft=None: must be lora or a mapping" in error["message"]


def test_bundled_rows_are_the_first_of_sft_automodel() -> None:
    ours, theirs = ((STEPS / s / "automodel/data/tiny.jsonl").read_text().splitlines() for s in ("peft", "sft"))
    assert ours == theirs[: len(ours)] and len(ours) == 240
