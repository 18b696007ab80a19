"""Locks: what must fit between a step and its inputs beside the type is told before anything is submitted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from helpers import COUNT, COUNT_TOML, REPO, add_step

from nemotron_dagster.artifacts.lock_rules import RULES
from nemotron_dagster.artifacts.port_locks import Result, Subject, check, check_all, subject_of
from nemotron_dagster.artifacts.values import Origin, publish_value
from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.catalog.locks import LOCKS
from nemotron_dagster.dagster.checks import unchanged, verify_check, whole
from nemotron_dagster.dagster.io_managers import io_managers
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.project import find_project

CATALOG = load_catalog(find_project(REPO))
A, B = "a" * 64, "b" * 64


def subject(facts: dict[str, Any], type_name: str = "training_jsonl", path: str = "/data/x", **more: Any) -> Subject:
    return Subject(name="up/stream", type=type_name, path=path, facts=facts, **more)


def model(facts: dict[str, Any] | None = None, **more: Any) -> Subject:
    return Subject(name="a/model", type="checkpoint_hf", path="/models/a", facts=facts or {}, **more)


def result(
    step_id: str,
    port_name: str,
    lock: str,
    given: Subject,
    config: dict[str, Any] | None = None,
    others: dict[str, Subject] | None = None,
) -> Result:
    """What a lock of a real step says; the step must declare it."""
    step = CATALOG.find(step_id)
    port = next(p for p in step.consumes if p.name == port_name)
    return next(r for r in check(step, port, given, config or {}, others) if r.name == lock)


def test_every_lock_has_a_rule_a_description_and_a_step_that_declares_it() -> None:
    declared = {lock for s in CATALOG.steps.values() for p in s.consumes for lock in p.locks}
    assert set(RULES) == set(LOCKS) == declared
    text = (REPO / "docs/steps.md").read_text(encoding="utf-8")
    for name, description in LOCKS.items():
        assert f"| `{name}` | {description} |" in text


PACKED = "sft/megatron_bridge", "packed_parquet"
SEQUENCE = {"dataset": {"seq_length": 4096, "packed_sequence_specs": {"packed_sequence_size": 4096}}}
FINGERPRINTS = {"tokenizers": frozenset({A}), "templates": frozenset({A})}

HOLDS: list[tuple[str, str, str, Subject, dict[str, Any], dict[str, Subject]]] = [
    ("sft/automodel", "training_jsonl", "chat_rows", subject({"kinds": {"chat": 3, "sharegpt": 1}}), {}, {}),
    ("rl/nemo_rl/dpo", "training_jsonl", "preference_rows", subject({"kinds": {"preference": 3}}), {}, {}),
    ("rl/nemo_rl/rlvr", "training_jsonl", "prompt_rows", subject({"kinds": {"gym": 3, "prompt": 1}}), {}, {}),
    ("data_prep/rl_prep", "training_jsonl", "rl_rows", subject({"kinds": {"gym": 1, "ranked": 1}}), {}, {}),
    ("data_prep/pretrain_prep", "filtered_jsonl", "text_field", subject({"columns": [["text", "str"]]}),
     {"text_field": "text"}, {}),
    ("translate/nemo_curator", "filtered_jsonl", "text_field", subject({"columns": [["messages", "list"]]}),
     {"text_field": "messages.*.content"}, {}),
    (*PACKED, "pack_size", subject({"pack_size": 4090}), SEQUENCE, {}),
    (*PACKED, "pack_size", subject({"pack_size": 4090}, reported={"pack_size": 4096}), SEQUENCE, {}),
    (*PACKED, "tokenizer", subject({}, **FINGERPRINTS), {}, {"m": model(tokenizers=frozenset({A, B}))}),
    (*PACKED, "chat_template", subject({}, **FINGERPRINTS), {}, {"m": model(templates=frozenset({A}))}),
    (*PACKED, "tokenizer", subject({}, reported={"tokenizer": "org/m"}), {"hf_model_path": "org/m"}, {}),
    (*PACKED, "tokenizer", subject({}, reported={"tokenizer": "/x/steps/data_prep/p/../../_runtime/tiny_llama"}),
     {"hf_model_path": "tiny_llama"}, {}),
    (*PACKED, "vocabulary", subject({"largest_token": 99}), {}, {"m": model({"vocab_size": 100})}),
    ("sft/megatron_bridge", "checkpoint_megatron", "megatron_parent", subject({"kind": "parent"}), {}, {}),
    ("eval/model_eval", "checkpoint_megatron", "megatron_iteration", subject({"kind": "iteration"}), {}, {}),
    ("eval/model_eval", "checkpoint_megatron", "megatron_iteration", subject({}, path="/c/iter_0000010"), {}, {}),
    ("convert/merge_lora", "checkpoint_lora", "base_model", subject({"base": "org/m"}), {"base_hf_path": "org/m"}, {}),
    ("convert/merge_lora", "checkpoint_lora", "base_model",
     subject({"base": "/tmp/gone"}, inputs=({"type": "checkpoint_hf", "content": A},)), {}, {"m": model(content=A)}),
    ("eval/model_eval", "baseline", "same_tasks", subject({"scores": [{"task": "mmlu_law"}]}), {"tasks": ["mmlu"]}, {}),
]  # fmt: skip


@pytest.mark.parametrize("case", HOLDS, ids=[f"{c[0]}-{c[2]}-{i}" for i, c in enumerate(HOLDS)])
def test_what_fits_passes_and_says_what_was_compared(case: Any) -> None:
    found = result(*case)
    assert found.passed and found.severity == "error" and not found.message.startswith("Cannot be told")


BROKEN: list[tuple[str, str, str, Subject, dict[str, Any], dict[str, Subject], str]] = [
    ("sft/automodel", "training_jsonl", "chat_rows", subject({"kinds": {"chat": 8, "preference": 2}}), {}, {},
     "2 of the 10 rows of up/stream are none (2 preference). Give chat rows"),
    ("peft/automodel", "training_jsonl", "chat_rows", subject({"kinds": {"text": 5}}), {}, {}, "are none (5 text)"),
    ("rl/nemo_rl/dpo", "training_jsonl", "preference_rows", subject({"kinds": {"chat": 1200}}), {}, {},
     "takes preference pairs at training_jsonl, but 1,200 of the 1,200 rows"),
    ("rl/nemo_rl/rlhf", "training_jsonl", "prompt_rows", subject({"kinds": {"preference": 1}}), {}, {}, "prompts at"),
    ("data_prep/rl_prep", "training_jsonl", "rl_rows", subject({"kinds": {"text": 1}}), {}, {}, "(1 text)"),
    ("data_prep/pretrain_prep", "filtered_jsonl", "text_field", subject({"columns": [["body", "str"]]}),
     {"text_field": "text"}, {}, "has the field text (they have body). Set text_field to one of these."),
    (*PACKED, "pack_size", subject({"pack_size": 5000}), SEQUENCE, {}, "longest pack of up/stream has 5,000 tokens"),
    (*PACKED, "pack_size", subject({"pack_size": 2040}, reported={"pack_size": 2048}), SEQUENCE, {},
     "was packed to 2,048 tokens, but dataset.packed_sequence_specs.packed_sequence_size = 4096, dataset.seq_length = "
     "4096. Give dataset.packed_sequence_specs.packed_sequence_size=2048 dataset.seq_length=2048, or pack"),
    (*PACKED, "tokenizer", subject({}, **FINGERPRINTS), {}, {"m": model(tokenizers=frozenset({B}))},
     "was made with the tokenizer aaaaaaaaaaaa, but a/model has bbbbbbbbbbbb. Tokenize the data again"),
    ("pretrain/megatron_bridge", "binidx", "tokenizer", subject({}, **FINGERPRINTS), {},
     {"m": model(tokenizers=frozenset({B}))}, "Tokenize the data again"),
    (*PACKED, "chat_template", subject({}, **FINGERPRINTS), {}, {"m": model(templates=frozenset({B}))},
     "Pack the data again with this model's chat template"),
    (*PACKED, "vocabulary", subject({"largest_token": 100}), {}, {"m": model({"vocab_size": 100})},
     "has token 100, but a/model has a vocabulary of 100"),
    ("sft/megatron_bridge", "checkpoint_megatron", "megatron_parent", subject({"kind": "iteration"}, path="/c/iter_1"),
     {}, {}, "wants its parent. Give checkpoint.pretrained_checkpoint=/c."),
    ("eval/model_eval", "checkpoint_megatron", "megatron_iteration",
     subject({"kind": "parent", "latest": "iter_0000010"}, path="/c"), {}, {},
     "wants one. Give deployment.checkpoint_path=/c/iter_0000010."),
    ("convert/merge_lora", "checkpoint_lora", "base_model", subject({"base": "org/m"}), {"base_hf_path": "org/n"}, {},
     "belongs to org/m, but org/n is given. Give org/m as the base."),
    ("convert/merge_lora", "checkpoint_lora", "base_model",
     subject({"base": "x"}, inputs=({"type": "checkpoint_hf", "content": B, "asset": ["the", "base"]},)), {},
     {"m": model(content=A)}, "was trained on the/base, but a/model is given"),
    ("eval/model_eval", "baseline", "same_tasks", subject({"scores": [{"task": "gsm8k"}]}), {"tasks": ["mmlu"]}, {},
     "has no scores of mmlu (it has gsm8k). Give results of the same tasks, or leave baseline out."),
]  # fmt: skip


@pytest.mark.parametrize("case", BROKEN, ids=[f"{c[0]}-{c[2]}-{i}" for i, c in enumerate(BROKEN)])
def test_what_does_not_fit_is_refused_with_the_fix(case: Any) -> None:
    *given, message = case
    found = result(*given)
    assert found.refuses and message in found.message


@pytest.mark.parametrize(
    "case",
    [
        (*PACKED, "pack_size", subject({"pack_size": 500}), SEQUENCE, {}),
        (*PACKED, "tokenizer", subject({}, reported={"tokenizer": "org/a"}), {"hf_model_path": "org/b"}, {}),
        ("eval/model_eval", "baseline", "same_tasks", subject({"scores": [{"task": "a"}]}), {"tasks": ["a", "b"]}, {}),
    ],
)
def test_what_may_be_meant_is_a_warning_and_refuses_nothing(case: Any) -> None:
    found = result(*case)
    assert not found.passed and found.severity == "warning" and not found.refuses


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_that_knows_nothing_refuses_nothing_and_says_so(lock: str) -> None:
    step, port = next((s, p) for s in CATALOG.steps.values() for p in s.consumes if lock in p.locks)
    found = next(r for r in check(step, port, subject({}), {}) if r.name == lock)
    assert found.passed and found.severity == "warning" and found.message.startswith("Cannot be told: ")


def test_every_lock_of_a_step_has_a_result_whatever_inputs_there_are() -> None:
    for step in CATALOG.steps.values():
        names = [(p.name, lock) for p in step.consumes for lock in p.locks]
        assert [(r.port, r.name) for r in check_all(step, {}, {})] == names


def test_an_unknown_lock_in_a_manifest_is_named_with_the_closest(tmp_path: Path) -> None:
    from nemotron_dagster.catalog.manifest import load_step

    toml = COUNT_TOML.replace('bind = "data"', 'bind = "data"\nlocks = ["chat_row"]')
    folder = add_step(tmp_path, "demo/count", toml, COUNT, default="data: null\noutput_dir: ./out\n")
    with pytest.raises(ConfigError, match=r"step\.toml:9:\d+: unknown lock 'chat_row'. Did you mean chat_rows"):
        load_step(folder, tmp_path / "steps")
    (folder / "step.toml").write_text(COUNT_TOML + 'locks = ["chat_rows"]\n')
    with pytest.raises(ConfigError, match="unknown key 'locks' in"):
        load_step(folder, tmp_path / "steps")


@pytest.fixture
def locked(project: Path) -> Path:
    """The project with a demo/count that takes chat rows only."""
    toml = COUNT_TOML.replace('from = "demo/rows"', 'from = "demo/rows"\nlocks = ["chat_rows"]')
    (project / "steps/demo/count/step.toml").write_text(toml)
    return project


Nemotron = Callable[..., subprocess.CompletedProcess[str]]


def evaluations(project: Path) -> dict[str, tuple[bool, str]]:
    """The last evaluation of each check of demo/count."""
    found = {}
    with dg.DagsterInstance.from_config(str(project / ".nemotron/dagster")) as instance:
        for name in CHECKS:
            key = dg.AssetCheckKey(dg.AssetKey(["demo", "count"]), name)
            for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=1):
                event = record.event.dagster_event.event_specific_data
                if isinstance(event, dg.AssetCheckEvaluation):
                    found[name] = (event.passed, str(event.description))
    return found


CHECKS = ("training_jsonl__chat_rows", "inputs_unchanged", "manifest_and_files")


def test_a_run_whose_input_breaks_a_lock_is_refused_before_submission_and_the_asset_page_says_which(
    locked: Path, nemotron: Nemotron
) -> None:
    (locked / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    refused = nemotron("steps", "run", "demo/count", "data=prompts.jsonl", cwd=locked)
    assert refused.returncode == 5
    assert "nothing was submitted" in refused.stderr and "training_jsonl, chat_rows: demo/count takes" in refused.stderr
    assert not list((locked / ".nemotron/jobs").glob("*")) and not list(locked.rglob("artifact.json"))
    assert evaluations(locked)["training_jsonl__chat_rows"][0] is False
    (locked / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    assert nemotron("steps", "run", "demo/count", "data=chat.jsonl", cwd=locked).returncode == 0
    found = evaluations(locked)
    assert {name: passed for name, (passed, _) in found.items()} == dict.fromkeys(CHECKS, True)
    assert "All 1 rows" in found["training_jsonl__chat_rows"][1]
    assert "every digest is as the manifest says" in found["manifest_and_files"][1]


def test_artifacts_check_tells_whether_a_step_would_take_an_artifact(locked: Path, nemotron: Nemotron) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}]}]
    ref = publish_value(locked / ".nemotron/artifacts", "training_jsonl", rows, Origin(("own", "rows")))
    fits = nemotron("artifacts", "check", ref.uri, "--for", "demo/count", cwd=locked)
    assert fits.returncode == 0 and "ok      chat_rows: All 1 rows of own/rows are conversations." in fits.stdout
    (locked / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    refused = nemotron("artifacts", "check", "prompts.jsonl", "--for", "demo/count", "--json", cwd=locked)
    told = json.loads(refused.stdout)
    assert refused.returncode == 8 and told["fits"] is False
    assert [(r["name"], r["passed"]) for r in told["results"]] == [("chat_rows", False)]
    wrong = nemotron("artifacts", "check", ref.uri, "--for", "eval/model_eval", cwd=locked)
    assert wrong.returncode == 8 and "is a training_jsonl; eval/model_eval takes" in wrong.stderr
    next(Path(ref.uri).glob("*.jsonl")).write_text("")
    broken = nemotron("artifacts", "check", ref.uri, "--for", "demo/count", cwd=locked)
    assert broken.returncode == 8 and "refused files:" in broken.stdout


def test_a_flipped_byte_of_equal_size_is_found_by_the_check_of_files_and_a_changed_input_by_the_other(
    tmp_path: Path,
) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}]}]
    ref = publish_value(tmp_path, "training_jsonl", rows, Origin(("own", "rows")))
    assert whole(ref, deep=True)[0] and unchanged({"rows": ref})[0]
    file = next(Path(ref.uri).glob("*.jsonl"))
    file.write_bytes(file.read_bytes().replace(b'"a"', b'"b"'))
    assert whole(ref, deep=False)[0] and not whole(ref, deep=True)[0]
    assert file.name in whole(ref, deep=True)[1]
    file.write_bytes(b"")
    passed, text = unchanged({"rows": ref})
    assert not passed and text.startswith("input rows is not what it was")


def test_an_asset_of_ones_own_can_have_its_files_verified_by_a_check(tmp_path: Path) -> None:
    @dg.asset(io_manager_key="training_jsonl")
    def mine() -> list:
        return [{"messages": [{"role": "user", "content": "a"}]}]

    verify = verify_check(mine, tmp_path)
    resources = io_managers(CATALOG.types, tmp_path)
    done = dg.materialize([mine, verify], resources=resources)
    (evaluation,) = done.get_asset_check_evaluations()
    assert evaluation.passed and "every digest" in str(evaluation.description)
    file = next(tmp_path.glob("mine/*/*.jsonl"))
    file.write_bytes(file.read_bytes().replace(b'"a"', b'"b"'))
    chosen = dg.AssetSelection.checks(verify)
    done = dg.materialize([mine, verify], resources=resources, selection=chosen, raise_on_error=False)
    (evaluation,) = done.get_asset_check_evaluations()
    assert not evaluation.passed and file.name in str(evaluation.description)


def test_the_facts_of_a_published_artifact_are_what_its_manifest_tells(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}]}]
    ref = publish_value(tmp_path, "training_jsonl", rows, Origin(("own", "rows")))
    known = subject_of(ref)
    assert (known.name, known.path, known.content) == ("own/rows", str(ref.path), ref.manifest.content)
    assert known.facts["kinds"] == {"chat": 1}
