"""rl/nemo_rl/rlvr with backend=trl: verifiers, and GRPO as it is started for real."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from interpreters import STEPS
from rl_run import ROOT, Run, answers, passed, prepared, refusals, rows

from nemotron_dagster.artifacts.types import checkpoint_hf, checkpoint_megatron

from _runtime.rl import rewards  # isort: skip
from _runtime.rl.layouts import Fault  # isort: skip

TRAIN, MODEL = "data.train.data_path", "policy.model_name"
HELD_OUT = [5, 13, 21, 29, 37, 45]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny config, run once from start to end."""
    return Run("rlvr", tmp_path_factory.mktemp("rlvr")).finish(cold=True)


def test_reward_rises(whole: Run) -> None:
    reward = whole.metrics("reward")
    assert list(reward) == list(range(1, 31))
    first, last = (sum(reward[s] for s in steps) / 4 for steps in (range(1, 5), range(27, 31)))
    assert last > first + 0.12 and last > 0.7
    assert whole.metrics("accuracy") == reward, "right is worth 1 and wrong 0"
    kl = whole.metrics("kl")
    assert kl[1] == pytest.approx(0, abs=1e-4) and kl[30] > 0.01


def test_steps_and_validation_are_reported(whole: Run) -> None:
    for name in ("loss", "reward", "kl", "lr", "grad_norm", "entropy", "completion_tokens", "memory_mib"):
        assert whole.reported(name) == pytest.approx(whole.metrics(name)), name
    assert set(whole.reported("validation_reward")) == {15, 30}
    facts = whole.facts()
    assert (facts["backend"], facts["algorithm"], facts["verifiers"]) == ("trl", "rlvr", ["exact"])
    assert facts["final_reward"] > facts["first_reward"] and facts["updates_per_step"] == 1


def test_artifact_is_a_policy_that_writes_capitals(whole: Run) -> None:
    assert checkpoint_megatron.validate(whole.out / "megatron") and checkpoint_hf.validate(whole.out / "hf")
    said = answers(whole.out / "hf", list(range(1, 50)))
    assert sum(map(str.isupper, said)) >= 45


def test_killed_run_continues_on_rows_of_rl_prep_with_several_updates_a_step(
    whole: Run, tmp_path: Path, data_python: str
) -> None:
    out = prepared(tmp_path, data_python, STEPS / "data_prep" / "rl_prep" / "data" / "problems.jsonl")
    said = json.loads((out / "manifest.json").read_text())
    given = {
        TRAIN: str(out),
        "data.validation.data_path": str(out),
        MODEL: str(whole.out / "base"),
        "grpo.val_period": 0,
    }
    halves = {"policy.train_global_batch_size": 32, "policy.train_micro_batch_size": 16}
    run = Run("rlvr", tmp_path / "run", {**given, **halves, "grpo.max_num_steps": 4, "checkpointing.save_period": 2})
    process = run.start()
    run.wait_for(process, passed(3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run.out / "hf").exists()
    run.finish()
    facts = run.facts()
    assert (facts["rows"], facts["verifiers"]) == (said["rows"]["train"], ["math"])
    assert facts["resumed_from"] >= 2 and facts["updates_per_step"] == 2 and facts["steps"] == 8
    assert sorted(run.metrics("reward")) == list(range(1, 9))


def verify(row: dict[str, Any], answer: str, default: str = "math") -> bool:
    return rewards.right(rewards.task({"prompt": "q", **row}, default, None, None), answer)


@pytest.mark.parametrize(
    ("row", "answer", "right"),
    [
        ({"verifier": "exact", "expected_answer": "XIV"}, " XIV\n", True),
        ({"verifier": "exact", "expected_answer": "XIV"}, "xiv", False),
        ({"verifier": "exact", "expected_answer": "XIV"}, "It is XIV", False),
        ({"verifier": "numeric", "answer": 1200}, "about 3, no: 1,200", True),
        ({"verifier": "numeric", "answer": "0.5"}, "so 1/2", True),
        ({"verifier": "numeric", "answer": "12"}, "12 or 13", False),
        ({"verifier": "numeric", "answer": "12"}, "twelve", False),
        ({"verifier": "regex", "answer": "X+I*$"}, "it is XXII", True),
        ({"verifier": "regex", "answer": "^X+I*$"}, "it is XXII", False),
        ({"expected_answer": "51"}, "17 times 3 is 51 km.", True),
        ({"expected_answer": "51"}, "51 is what 17 times 4 is not: 68", False),
        ({"expected_answer": "x + 1"}, "so \\boxed{x + 1}", True),
        ({"expected_answer": "\\boxed{\\frac{1}{2}}"}, "\\boxed{\\frac{1}{2}}", True),
        ({"expected_answer": "7"}, "thinking of 3\nAnswer: 7", True),
        ({"expected_answer": "Paris"}, "Let me see.\nParis", True),
        ({"expected_answer": "Paris"}, "Paris, not London", False),
        ({"env_name": "numeric", "label": "4"}, "2 + 2 = 4", True),
        ({"agent_ref": {"type": "a", "name": "math_with_judge_simple_agent"}, "expected_answer": "4"}, "4", True),
        ({"reward_model": {"ground_truth": "4"}}, "4", True),
    ],
)
def test_verifier_accepts_what_is_right_and_nothing_else(row: dict[str, Any], answer: str, right: bool) -> None:
    assert verify(row, answer) is right


@pytest.mark.parametrize(
    ("row", "name", "part"),
    [
        ({"verifier": "unit_tests", "expected_answer": "1"}, "unknown_verifier", "'unit_tests'"),
        ({"agent_ref": {"type": "a", "name": "code_gen_simple_agent"}, "answer": "1"}, "unknown_verifier", "code_gen"),
        ({}, "missing_verifier_fields", "no 'expected_answer'; it has prompt"),
        ({"expected_answer": ""}, "missing_verifier_fields", "expected_answer"),
        ({"verifier": "numeric", "expected_answer": "ten"}, "missing_verifier_fields", "'ten' is no number"),
        ({"verifier": "regex", "expected_answer": "(("}, "missing_verifier_fields", "is no pattern"),
        ({"chosen": "a", "rejected": "b"}, "missing_verifier_fields", "rl/nemo_rl/dpo"),
    ],
)
def test_row_that_cannot_be_verified_is_refused_by_name(row: dict[str, Any], name: str, part: str) -> None:
    with pytest.raises(Fault) as told:
        verify(row, "1")
    assert told.value.name == name and part in str(told.value)


GOOD = {"prompt": "What is 9 in Roman numerals?", "expected_answer": "IX"}


CASES: list[tuple[dict[str, Any], list[Any] | None, str, str]] = [
    ({}, [GOOD, {**GOOD, "verifier": "lean"}], "unknown_verifier", "line 2: verifier 'lean' is not known"),
    ({}, [{"prompt": "a"}], "missing_verifier_fields", "line 1: no 'expected_answer'"),
    ({}, [{"expected_answer": "b"}], "responses_api_schema_missing", "no prompt"),
    ({}, [], "dataset_empty", "no rows"),
    ({TRAIN: "/path/to/train.jsonl"}, None, "dataset_missing", "is not set"),
    ({"grpo.num_prompts_per_step": 7}, None, "rollout_batch_not_divisible", "7 x"),
    ({"grpo.num_generations_per_prompt": 1}, None, "config_invalid", "at least 2"),
    (
        {"grpo.use_leave_one_out_baseline": True},
        None,
        "trl_unsupported",
        "use_leave_one_out_baseline=false (is true)",
    ),
]


def test_bad_input_is_told_before_training(tmp_path: Path) -> None:
    cases = [
        {**overrides, **({TRAIN: str(rows(tmp_path / f"{i}.jsonl", *given))} if given is not None else {})}
        for i, (overrides, given, _, _) in enumerate(CASES)
    ]
    for (_, _, name, part), (told, message) in zip(CASES, refusals("rlvr", tmp_path, cases), strict=True):
        assert told == name and part in message, (name, told, message)


def test_refused_run_exits_with_status_3_and_no_traceback(tmp_path: Path) -> None:
    run = Run("rlvr", tmp_path, {TRAIN: str(rows(tmp_path / "a.jsonl", {"prompt": "a"}))})
    assert run.refused()["name"] == "missing_verifier_fields" and not run.messages("progress")


def test_bundled_rows_keep_the_held_out_numbers_for_validation() -> None:
    asked = {
        split: [
            int(json.loads(line)["prompt"].split()[2]) for line in (ROOT / "rlvr" / "data" / f"{split}.jsonl").open()
        ]
        for split in ("train", "val")
    }
    assert sorted(asked["val"]) == HELD_OUT
    assert sorted(asked["train"]) == [n for n in range(1, 50) if n not in HELD_OUT]
