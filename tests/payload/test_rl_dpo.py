"""rl/nemo_rl/dpo with backend=trl, as it is started for real."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from interpreters import STEPS
from rl_run import ROOT, Run, answers, passed, prepared, python, refusals, rows

from nemotron_dagster.artifacts.types import checkpoint_hf, checkpoint_megatron

TRAIN, VALIDATION, MODEL = "data.train.data_path", "data.validation.data_path", "policy.model_name"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny config, run once from start to end."""
    return Run("dpo", tmp_path_factory.mktemp("dpo")).finish(cold=True)


def test_margin_rises_and_loss_falls(whole: Run) -> None:
    margin, loss = whole.metrics("margin"), whole.metrics("loss")
    assert list(margin) == list(range(1, 41))
    assert abs(margin[1]) < 0.01, "the policy is its own reference at the start"
    assert sum(margin[s] for s in range(36, 41)) / 5 > 0.7
    assert loss[1] == pytest.approx(0.6931, abs=0.01) and sum(loss[s] for s in range(36, 41)) / 5 < 0.5
    held_out = whole.metrics("validation_margin")
    assert held_out[40] > 0.4 and held_out[1] is None


def test_every_step_is_reported_as_it_is_stored(whole: Run) -> None:
    for name in ("loss", "margin", "accuracy", "reward_chosen", "reward_rejected", "lr", "grad_norm", "memory_mib"):
        assert whole.reported(name) == pytest.approx(whole.metrics(name)), name
    assert {m["total"] for m in whole.messages("progress")} == {40}
    assert all(v > 0 for v in list(whole.metrics("tokens_per_second").values())[1:])


def test_facts_say_what_was_done_and_by_what(whole: Run) -> None:
    facts = whole.facts()
    assert (facts["backend"], facts["algorithm"], facts["steps"], facts["rows"]) == ("trl", "dpo", 40, 86)
    assert facts["base_model"] == "tiny_llama" and facts["warm_start"]["rows"] > 1000
    assert facts["final_margin"] > facts["first_margin"] + 0.5
    assert facts["resumed_from"] is None and len(facts["chat_template_sha256"]) == 64
    assert "backend: trl" in whole.log


def test_artifact_is_the_trained_policy_in_both_formats(whole: Run, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole.out, moved, symlinks=True)  # publishing renames the directory
    assert checkpoint_megatron.validate(moved / "megatron")["latest"] == "iter_0000000"
    assert checkpoint_hf.validate(moved / "hf")
    numbers = list(range(1, 49))
    before, after = ("".join(answers(where, numbers)) for where in (moved / "base", moved / "hf"))
    assert after.isupper() or sum(map(str.isupper, after)) > sum(map(str.isupper, before)) + len(before) * 0.2
    code = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file
from _runtime.rl import conversion
if __name__ == "__main__":
    checkpoint, target = Path(sys.argv[1]), Path(sys.argv[2])
    conversion.to_hf(checkpoint, target)
    a, b = (load_file(p / "model.safetensors") for p in (checkpoint.parent / "hf", target))
    print(json.dumps([sorted(a) == sorted(b), max(float((a[k] - b[k]).abs().max()) for k in a)]))
"""
    assert python(code, moved / "megatron", tmp_path / "back") == [True, 0.0]


def test_rows_of_rl_prep_train_a_megatron_policy(whole: Run, tmp_path: Path, data_python: str) -> None:
    out = prepared(tmp_path, data_python, STEPS / "data_prep" / "rl_prep" / "data" / "pairs.jsonl")
    said = json.loads((out / "manifest.json").read_text())
    given = {TRAIN: str(out), VALIDATION: str(out), MODEL: str(whole.out / "megatron")}
    short = {"policy.max_total_sequence_length": 256, "dpo.max_num_steps": 2, "dpo.val_period": 2}
    run = Run("dpo", tmp_path / "run", {**given, **short}).finish()
    facts = run.facts()
    assert (facts["rows"], facts["validation_rows"]) == (said["rows"]["train"], said["rows"]["val"])
    assert facts["exported_from_megatron"] is True and (run.out / "policy_hf" / "model.safetensors").is_file()
    assert sorted(run.metrics("accuracy")) == [1, 2] and run.metrics("validation_margin")[2] is not None


def test_killed_and_stopped_run_ends_where_an_undisturbed_run_ends(whole: Run, tmp_path: Path) -> None:
    run = Run("dpo", tmp_path, {MODEL: str(whole.out / "base"), "checkpointing.save_period": 10})
    process = run.start()
    run.wait_for(process, passed(13))
    process.send_signal(signal.SIGKILL)
    process.wait()
    torn = run.out / "checkpoint-20"  # as a kill in the middle of saving leaves it
    shutil.rmtree(torn, ignore_errors=True)
    shutil.copytree(run.out / "checkpoint-10", torn)
    (torn / "trainer_state.json").write_text('{"global_step": 2')
    process = run.start()
    run.wait_for(process, passed(12))
    process.terminate()
    assert process.wait(timeout=300) == 143 and "removed checkpoint-20" in run.log
    assert not run.messages("result") and not (run.out / "megatron").exists()
    run.finish()
    assert run.facts()["resumed_from"] >= 12 and run.facts()["steps"] == 40
    assert run.metrics("loss") == pytest.approx(whole.metrics("loss"), rel=1e-3)


def test_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(whole: Run, tmp_path: Path) -> None:
    wild = {MODEL: str(whole.out / "base"), "policy.optimizer.kwargs.lr": 1e30, "policy.scheduler": None}
    run = Run("dpo", tmp_path, {**wild, "checkpointing.save_period": 1})
    assert run.refused()["name"] == "loss_not_finite"
    assert list(run.out.glob("checkpoint-*/model.safetensors")) and not (run.out / "megatron").exists()


GOOD = {"prompt": "What is 9 in Roman numerals?", "chosen": "IX", "rejected": "ix"}
RANKED = {"context": [{"role": "user", "content": "9?"}], "completions": [
    {"rank": 0, "completion": [{"role": "assistant", "content": "IX"}]},
    {"rank": 0, "completion": [{"role": "assistant", "content": "ix"}]}]}  # fmt: skip


CASES: list[tuple[dict[str, Any], list[Any] | None, str, str]] = [
    ({}, [GOOD, {**GOOD, "rejected": "IX"}], "inverted_preference_pairs", "line 2: chosen and rejected are equal"),
    ({}, [{**GOOD, "chosen_score": 1, "rejected_score": 2.5}], "inverted_preference_pairs", "chosen_score=1 is below"),
    ({}, [RANKED], "inverted_preference_pairs", "one rank"),
    ({}, [{"prompt": "a", "expected_answer": "b"}], "dataset_invalid", "no preference pair: no chosen, rejected"),
    ({}, ["{not json"], "dataset_invalid", "line 1: not JSON"),
    ({}, [], "dataset_empty", "no rows"),
    ({}, [GOOD], "dataset_empty", "1 rows do not fill one step of 16"),
    ({TRAIN: None}, None, "dataset_missing", f"{TRAIN} is not set"),
    ({TRAIN: "/none/here.jsonl"}, None, "dataset_missing", "/none/here.jsonl"),
    ({VALIDATION: "${data.train.data_path}"}, [GOOD], "train_used_as_validation_unintentionally", "holds the rows"),
    ({MODEL: None}, None, "model_missing", f"{MODEL} is not set"),
    ({MODEL: "/none/here"}, None, "model_missing", "/none/here"),
    ({MODEL: "{no_template}"}, None, "chat_template_missing", "no chat template"),
    ({MODEL: "{too_large}"}, None, "cpu_model_too_large", "M parameters"),
    ({"backend": "trll"}, None, "config_invalid", "backend=trll"),
    ({"dpo.preference_average_log_probs": True, "policy.precision": "bfloat16"}, None, "trl_unsupported",
     "dpo.preference_average_log_probs=false (is true), policy.precision=float32 (is bfloat16)"),
    ({"policy.train_micro_batch_size": 5}, None, "batch_shape_not_divisible", "no multiple"),
    ({"policy.optimizer.name": "torch.optim.Adamm", MODEL: "{base}"}, None, "config_invalid", "torch.optim.Adamm"),
]  # fmt: skip


def test_bad_input_is_told_before_training(whole: Run, tmp_path: Path) -> None:
    base = whole.out / "base"
    known = {"{base}": str(base), "{no_template}": str(tmp_path / "plain"), "{too_large}": str(tmp_path / "large")}
    _changed(base, tmp_path / "plain", "tokenizer_config.json", {"chat_template": None})
    huge = {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32}
    _changed(base, tmp_path / "large", "config.json", huge)
    cases = []
    for i, (overrides, given, _, _) in enumerate(CASES):
        settings = {k: known.get(v, v) if isinstance(v, str) else v for k, v in overrides.items()}
        if given is not None:
            settings = {TRAIN: str(rows(tmp_path / f"{i}.jsonl", *given)), **settings}
        cases.append(settings)
    for (_, _, name, part), (told, message) in zip(CASES, refusals("dpo", tmp_path, cases), strict=True):
        assert told == name and part in message, (name, told, message)


def _changed(model: Path, target: Path, file: str, change: dict[str, Any]) -> None:
    shutil.copytree(model, target)
    settings = {k: v for k, v in {**json.loads((target / file).read_text()), **change}.items() if v is not None}
    (target / file).write_text(json.dumps(settings))


def test_split_that_a_manifest_lacks_is_named(tmp_path: Path) -> None:
    rows(tmp_path / "data" / "a.jsonl", GOOD)
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({"train": "a.jsonl", "val": ""}))
    error = Run("dpo", tmp_path, {TRAIN: str(tmp_path / "data"), VALIDATION: str(tmp_path / "data")}).refused()
    assert error["name"] == "dataset_empty" and "`val`" in error["message"]


def test_bundled_pairs_are_in_the_layout_of_rl_prep() -> None:
    for name in ("train", "val"):
        for line in (ROOT / "dpo" / "data" / f"{name}.jsonl").read_text().splitlines():
            assert list(json.loads(line)) == ["prompt", "chosen", "rejected"]
