"""optimize/modelopt/distill as it is started for real: a subprocess in the train environment, on the CPU, offline."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from optimize_run import Run, python, refusals

from nemotron_dagster.artifacts.types import checkpoint_hf, checkpoint_megatron

TEACHER, STUDENT, DATA = "args.teacher_hf_path", "args.student_hf_path", "args.data_paths"
SHORT = {"args.train_iters": 6, "args.eval_interval": 3, "args.save_interval": 2, "args.gbs": 8}

SAME = """
import sys, torch
from _runtime import cpu_megatron
def main():
    cpu_megatron.enable()
    from megatron.bridge import AutoBridge
    from megatron.bridge.training.model_load_save import temporary_distributed_context
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.utils import unwrap_model
    from transformers import AutoModelForCausalLM
    from _runtime.optimize import megatron, models
    hf, saved = sys.argv[1:]
    ids = torch.randint(3, 390, (2, 60), generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(hf).eval()
    assert plain.generate(ids[:1, :5], max_new_tokens=3).shape[1] > 5
    with temporary_distributed_context(backend="gloo"):
        model_parallel_cuda_manual_seed(0)
        [model] = unwrap_model(AutoBridge.from_hf_pretrained(hf).load_megatron_model(saved, wrap_with_ddp=False))
        print(float((megatron.logits(model.eval(), ids) - models.logits(plain, ids)).abs().max()))
main()
"""


def losses(run: Run) -> dict[int, float]:
    table = pq.read_table(run.out / "metrics.parquet").to_pydict()
    return dict(zip(table["step"], table["loss"], strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny config, run once from start to end."""
    return Run("distill", tmp_path_factory.mktemp("whole")).finish(cold=True)


def test_student_comes_to_predict_what_the_teacher_predicts(whole: Run) -> None:
    steps = [m for m in whole.messages("progress") if "loss" in m["metrics"]]
    assert [m["step"] for m in steps] == list(range(1, 61)) and {m["total"] for m in steps} == {60}
    assert steps[-1]["metrics"]["loss"] < 0.3 * steps[0]["metrics"]["loss"]
    facts = whole.facts()
    assert facts["final_validation_loss"] < 0.3 * facts["first_validation_loss"]
    assert facts["parameters"] < facts["teacher_parameters"]
    assert facts["data"] == "indexed data" and not facts["quality_can_be_judged"] and facts["resumed_from"] is None
    table = pq.read_table(whole.out / "metrics.parquet")
    assert table["step"].to_pylist() == list(range(1, 61))
    assert {"loss", "lm_loss", "lr", "grad_norm", "tokens_per_second", "memory_mib", "validation_loss"} <= set(
        table.column_names
    )
    assert table["loss"][-1].as_py() == facts["final_loss"]


def test_checkpoint_holds_the_same_student_in_both_formats(whole: Run) -> None:
    found = checkpoint_megatron.validate(whole.out / "checkpoints")
    assert found["latest"] == "iter_0000060" and found["tokenizer_fingerprint"]
    assert checkpoint_hf.validate(whole.out / "hf")["layers"] == 1
    assert float(python(SAME, whole.out / "hf", whole.out / "checkpoints")) < 1e-4
    assert not (whole.out / "resume").exists() and not list(whole.out.glob(".*"))


def test_skill_of_a_trained_teacher_is_handed_on(tmp_path: Path, roman_model: Path) -> None:
    run = Run("distill", tmp_path, {TEACHER: str(roman_model)}).finish()
    facts = run.facts()
    assert facts["quality_can_be_judged"] and facts["teacher"] == str(roman_model)
    assert facts["final_validation_loss"] < 0.6 * facts["first_validation_loss"]
    steps = [m["metrics"]["lm_loss"] for m in run.messages("progress") if "lm_loss" in m["metrics"]]
    assert steps[-1] < 0.7 * steps[0]


def test_kill_and_rerun_ends_where_an_undisturbed_run_ends(whole: Run, tmp_path: Path) -> None:
    run = Run("distill", tmp_path)
    process = run.start()
    deadline = time.monotonic() + 600
    while not any((m["step"] or 0) >= 25 for m in run.messages("progress")):
        assert process.poll() is None and time.monotonic() < deadline, run.log()[-3000:]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run.out / "checkpoints").exists() and not (run.out / "hf").exists()
    (run.out / "resume" / "step_0000040.pt").write_bytes(b"torn")
    run.finish()
    assert run.facts()["resumed_from"] == 20 and "step_0000040.pt: cannot be read" in run.log()
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
    assert run.facts()["final_validation_loss"] == pytest.approx(whole.facts()["final_validation_loss"], rel=1e-4)


def test_sigterm_saves_and_says_that_it_is_not_done(tmp_path: Path) -> None:
    run = Run("distill", tmp_path)
    process = run.start()
    while not any((m["step"] or 0) >= 3 for m in run.messages("progress")):
        assert process.poll() is None, run.log()[-3000:]
        time.sleep(0.005)
    process.terminate()
    assert process.wait(timeout=300) == 143
    assert list((run.out / "resume").glob("step_*.pt")) and not run.messages("result")
    assert not (run.out / "checkpoints").exists()


def test_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    run = Run("distill", tmp_path, {**SHORT, "args.lr": 1e30, "args.save_interval": 1, "args.lr_warmup_iters": 0})
    assert run.refused()["name"] == "loss_not_finite"
    assert list((run.out / "resume").glob("step_*.pt")) and not (run.out / "checkpoints").exists()
    other = Run("distill", tmp_path, {**SHORT, "args.lr": 1e-3, "args.gbs": 16})
    error = other.refused()
    assert error["name"] == "checkpoint_mismatch" and "gbs, lr" in error["message"]


def test_random_tokens_run_and_are_told_apart(tmp_path: Path) -> None:
    export = tmp_path / "exported"
    mock = {"args.use_mock_data": True, DATA: None, "args.hf_export_path": str(export)}
    run = Run("distill", tmp_path, {**SHORT, **mock}).finish()
    facts = run.facts()
    assert facts["data"] == "random tokens" and not facts["quality_can_be_judged"] and facts["steps"] == 6
    assert checkpoint_hf.validate(export)["parameters"] == facts["parameters"]


def test_rate_of_the_learning_warms_up_and_falls_to_its_floor() -> None:
    code = """
import json
from _runtime.optimize import distill
args = {"train_iters": 100, "lr": 1.0, "min_lr": 0.1, "lr_warmup_iters": 10, "gbs": 4}
plan = distill.plan(args, 0)
print(json.dumps([plan.rate(n) for n in (0, 4, 9, 10, 55, 99)]))
"""
    start, half, full, peak, middle, end = json.loads(python(code))
    assert [start, half, full, peak] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert middle == pytest.approx(0.55) and 0.1 < end < 0.102


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({TEACHER: None}, "model_missing", f"{TEACHER} is not set"),
    ({STUDENT: "{}/none"}, "model_missing", "none: no such directory"),
    (
        {TEACHER: "{}/one", STUDENT: "{}/two"},
        "teacher_student_or_tokenizer_mismatch",
        "'b' is 1 to one and 2 to the other",
    ),
    ({"args.output_dir": "{}/one/out", TEACHER: "{}/one"}, "output_dir_overlaps_checkpoint_roots", "overlaps"),
    ({"args.hf_export_path": "{}/one", STUDENT: "{}/one"}, "output_dir_overlaps_checkpoint_roots", "overlaps"),
    ({"args.use_mock_data": True}, "mock_data_used_as_quality_signal", "the data would not be read"),
    ({DATA: None}, "data_missing", "args.use_mock_data is false"),
    ({DATA: "{}/none"}, "data_missing", "none.idx: no such file"),
    ({DATA: "{}/blend.json"}, "data_missing", "gone.idx: no such file"),
    ({DATA: ["much", "shard"]}, "data_invalid", "'much' is no weight"),
    ({"args.gbs": 12}, "config_invalid", "args.gbs=12: not a multiple of args.mbs=8"),
    ({"args.lr": "fast"}, "config_invalid", "fast"),
    ({"args.min_lr": 1.0}, "config_invalid", "args.min_lr=1.0"),
    ({"args.cp_size": 2}, "config_invalid", "args.cp_size=2"),
    ({"backend": "script", "args.tp_size": 3}, "world_size_not_divisible", "args.tp_size=3"),
    ({"backend": "script"}, "script_missing", "nvcr.io/nvidia/nemo:26.04"),
]


def filled(overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {k: v.format(folder) if isinstance(v, str) else v for k, v in overrides.items()}


def test_bad_input_is_told_before_anything_is_imported(tmp_path: Path) -> None:
    for folder, words in (("one", {"a": 0, "b": 1}), ("two", {"a": 0, "b": 2})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").write_text("")
        (tmp_path / folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))
    (tmp_path / "blend.json").write_text(json.dumps({"train": ["1.0", "gone"]}))
    said = refusals("distill", tmp_path / "runs", [filled(o, tmp_path) for o, _, _ in WRONG], cold=True)
    for n, ((overrides, name, part), told) in enumerate(zip(WRONG, said, strict=True)):
        assert told.name == name and part in told.message, (overrides, told)
        assert not told.imported and not (tmp_path / f"runs/{n}/out").exists(), overrides


def test_tokens_outside_the_vocabulary_and_sequences_too_long_are_told(tmp_path: Path) -> None:
    shard = tmp_path / "shard"
    code = """
import sys, numpy as np
from _runtime.data_prep import binidx
with binidx.Writer(sys.argv[1] + ".bin", sys.argv[1] + ".idx", "int32") as out:
    out.add([np.full(300, 5000, np.int32)])
    out.finish()
"""
    python(code, shard)
    said = refusals("distill", tmp_path, [{DATA: ["1.0", str(shard)]}, {"args.seq_length": 1024}])
    assert said[0].name == "teacher_student_or_tokenizer_mismatch" and "has token 5000" in said[0].message
    assert said[1].name == "config_invalid" and "takes 512 tokens" in said[1].message
