"""optimize/modelopt/quantize as it is started for real: a subprocess in the train environment, on the CPU, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optimize_run import Run, python, refusals

from nemotron_dagster.artifacts.types import checkpoint_hf, checkpoint_megatron

MODEL, RECIPE, DATA = "args.hf_model_id", "args.export_quant_cfg", "args.calib_dataset"

# Megatron-Bridge's own loader; it restores ModelOpt's state before the weights. Memory that nothing has written yet is
# NaN here, so that it does not depend on luck.
RELOAD = """
import sys, json, torch
from pathlib import Path
from _runtime import cpu_megatron
def main():
    cpu_megatron.enable()
    from megatron.bridge import AutoBridge
    from megatron.bridge.training.model_load_save import temporary_distributed_context
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.utils import unwrap_model
    from modelopt.torch.quantization.nn import TensorQuantizer
    from _runtime.optimize import megatron, models
    base, saved, rows = sys.argv[1:]
    loaded = models.load(base, "model", Path("unused"), 0)
    batch = models.blocks(models.rows(rows, "rows", 160), loaded, 128)[0]
    full = models.logits(loaded.model, batch)
    torch.use_deterministic_algorithms(True, warn_only=True)
    with temporary_distributed_context(backend="gloo"):
        model_parallel_cuda_manual_seed(0)
        [model] = unwrap_model(AutoBridge.from_hf_pretrained(base).load_megatron_model(saved, wrap_with_ddp=False))
        found = megatron.logits(model.eval(), batch)
        at_work = sum(isinstance(m, TensorQuantizer) and m.is_enabled for m in model.modules())
        print(json.dumps([at_work, models.relative_error(found, full)]))
main()
"""


@pytest.mark.parametrize(
    ("recipe", "formats", "error"),
    [("fp8", {"F32": 6, "F8_E4M3": 14}, 0.15), ("int8_sq", {"F32": 6, "I8": 14}, 0.08)],
)
def test_quantized_model_is_nearly_the_model_in_both_formats(
    tmp_path: Path, roman_model: Path, recipe: str, formats: dict[str, int], error: float
) -> None:
    run = Run("quantize", tmp_path, {MODEL: str(roman_model), RECIPE: recipe}).finish()
    facts = run.facts()
    assert facts["backend"] == "inprocess" and facts["recipe"] == recipe and facts["quality_can_be_judged"]
    assert facts["stored_formats"] == formats and facts["quantizers"] == 16
    for name in ("logits_relative_error", "megatron_logits_relative_error", "stored_logits_relative_error"):
        assert 1e-4 < facts[name] < error, name
    assert facts["loss_before"] < 1.5
    assert facts["loss_after"] == pytest.approx(facts["loss_before"], abs=0.1)

    assert checkpoint_megatron.validate(run.out)["latest"] == "iter_0000000"
    assert checkpoint_hf.validate(run.out / "hf")["quantization"]["quant_method"] == "modelopt"
    at_work, relative = json.loads(python(RELOAD, roman_model, run.out, run.step / "data" / "tiny.jsonl"))
    assert at_work == facts["quantizers"]
    assert relative == pytest.approx(facts["megatron_logits_relative_error"], rel=1e-3)


def test_tiny_runs_as_it_is_and_says_that_it_proves_nothing(tmp_path: Path) -> None:
    run = Run("quantize", tmp_path).finish(cold=True)
    facts = run.facts()
    assert facts["base_model"] == "untrained tiny_llama" and not facts["quality_can_be_judged"]
    assert facts["calibration_rows"] == 160 and len(facts["tokenizer_sha256"]) == 64
    assert [m["step"] for m in run.messages("progress")] == [1, 2, 3]
    assert "CPU compatibility" in run.log()
    checkpoint_megatron.validate(run.out)


@pytest.mark.parametrize("recipe", ["int4_awq", "w4a8_awq"])
def test_four_bit_integers_are_unpacked_to_what_was_emulated(tmp_path: Path, recipe: str) -> None:
    facts = Run("quantize", tmp_path, {RECIPE: recipe}).finish().facts()
    assert facts["stored_formats"] == {"F32": 6, "U8": 14}
    assert facts["stored_logits_relative_error"] == pytest.approx(facts["logits_relative_error"], rel=0.1)
    assert facts["stored_logits_relative_error"] < 0.3 and facts["parameters"] == 477_056


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({MODEL: None}, "model_missing", f"{MODEL} is not set"),
    ({MODEL: "{}/none"}, "model_missing", "none: no such directory"),
    ({RECIPE: "fp2"}, "unsupported_quant_recipe", f"{RECIPE}=fp2"),
    ({"args.megatron_save_path": "{}/model/below", MODEL: "{}/model"}, "source_checkpoint_overwritten", "overlaps"),
    ({"args.megatron_save_path": "{}", MODEL: "{}/model"}, "source_checkpoint_overwritten", "overlaps"),
    ({DATA: None}, "calibration_missing", f"{DATA} is not set"),
    ({DATA: "{}/none.jsonl"}, "dataset_missing", "none.jsonl"),
    ({"args.calib_size": 0}, "config_invalid", "calib_size=0"),
    ({"args.tp": 2}, "config_invalid", "args.tp=2"),
    ({"args.compress": True}, "config_invalid", "args.compress=True"),
    ({"backend": "script", "args.tp": 3}, "world_size_not_divisible", "args.tp=3 * args.pp=1 = 3"),
    ({"backend": "script"}, "script_missing", "nvcr.io/nvidia/nemo:26.04"),
]


def filled(overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {k: v.format(folder) if isinstance(v, str) else v for k, v in overrides.items()}


def test_bad_input_is_told_before_anything_is_imported(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/model.safetensors").write_text("torn")
    said = refusals("quantize", tmp_path / "runs", [filled(o, tmp_path) for o, _, _ in WRONG], cold=True)
    for n, ((overrides, name, part), told) in enumerate(zip(WRONG, said, strict=True)):
        assert told.name == name and part in told.message, (overrides, told)
        assert not told.imported and not (tmp_path / f"runs/{n}/out").exists(), overrides


def test_recipes_that_the_model_or_the_machine_cannot_take_are_told(tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    python("import sys; from _runtime import tiny_model; tiny_model.save(sys.argv[1], hidden_size=64)", narrow)
    cases = [
        ({RECIPE: "nvfp4"}, "unsupported_quant_recipe", "on CUDA devices only"),
        ({RECIPE: "fp8_blockwise"}, "unsupported_quant_recipe", "q_proj of args.hf_model_id is 128 x 128"),
        ({RECIPE: "int4_awq", MODEL: str(narrow)}, "unsupported_quant_recipe", "is 64 x 64"),
    ]
    said = refusals("quantize", tmp_path, [case for case, _, _ in cases])
    for (_, name, part), told in zip(cases, said, strict=True):
        assert told.name == name and part in told.message, told
