"""rl/nemo_rl/rlhf with backend=trl: the judge's protocol, and GRPO as it is started for real."""

from __future__ import annotations

import json
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from rl_run import ROOT, Run, answers, prepared, python, refusals, rows
from stand_in_judge import stand_in_judge

from nemotron_dagster.artifacts.types import checkpoint_megatron

from _runtime.payload import PayloadError  # isort: skip
from _runtime.rl import comparisons, judge  # isort: skip

MODEL, MANIFEST = "policy.model_name", "data.manifest_path"
JUDGE = "env.nemo_gym.genrm_model.responses_api_models.genrm_model.model"
ASKED = [{"role": "user", "content": "What is 9 in Roman numerals?"}]
SHORT = {"grpo.max_num_steps": 2, "grpo.val_period": 0, "checkpointing.save_period": 1}
SMALL = {"grpo.num_prompts_per_step": 2, "grpo.num_generations_per_prompt": 3, "policy.train_global_batch_size": 6,
         "policy.train_micro_batch_size": 6}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny config, run once from start to end."""
    return Run("rlhf", tmp_path_factory.mktemp("rlhf")).finish(cold=True)


def test_the_judges_scores_rise(whole: Run) -> None:
    reward = whole.metrics("reward")
    assert list(reward) == list(range(1, 13))
    assert sum(reward[s] for s in range(10, 13)) / 3 > reward[1] + 0.8
    assert set(whole.metrics("judge_unparseable").values()) == {0.0}
    assert whole.reported("reward") == pytest.approx(reward)
    assert set(whole.reported("validation_reward")) == {6, 12}


def test_facts_name_the_judge_and_how_it_was_made(whole: Run) -> None:
    facts = whole.facts()
    assert (facts["backend"], facts["algorithm"], facts["rows"], facts["validation_rows"]) == ("trl", "rlhf", 43, 6)
    assert facts["judge"] == "tiny_llama" and facts["judge_served"] and facts["judge_warm_start"]["kind"] == "judge"
    assert checkpoint_megatron.validate(whole.out / "megatron")
    assert sum(map(str.isupper, answers(whole.out / "hf", list(range(1, 50))))) >= 44


def test_judge_that_is_served_answers_the_protocol_and_ends_with_the_run(whole: Run) -> None:
    [url] = set(re.findall(r"served for this run at (\S+)", whole.log))
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/models", timeout=2)
    code = """
import json, sys, urllib.request, urllib.error
from _runtime.rl import comparisons, judge, judge_server
rules = comparisons.Rules()
asked = [{"role": "user", "content": "What is 12 in Roman numerals?"}]
with judge_server.serving(sys.argv[1], "tiny") as url:
    end = judge.Endpoint(url, "tiny", sampling={"max_tokens": 40, "temperature": 0.0})
    both = [("XII", "xii"), ("xii", "XII"), ("XII", "XII")] * 9
    read = [comparisons.verdict(rules, r) for r in
            judge.ask_all(end, [comparisons.question(rules, asked, a, b) for a, b in both])]
    with urllib.request.urlopen(url + "/models") as models:
        names = [m["id"] for m in json.load(models)["data"]]
    try:
        urllib.request.urlopen(urllib.request.Request(url + "/chat/completions", data=b"{}", method="POST"))
    except urllib.error.HTTPError as e:
        bad = e.code
print(json.dumps([[(v.score_1, v.score_2) for v in read], names, bad]))
"""
    read, names, bad = python(code, whole.out / "judge")
    assert read == [[5, 1], [1, 5], [5, 5]] * 9
    assert names == ["tiny"] and bad == 400


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ('{"score_1": 4, "score_2": 2, "ranking": 1}', (4, 2, 1)),
        ('Let me see {"x": 1}.\n```json\n{"score_1": 5, "score_2": 5}\n```', (5, 5, 3.5)),
        ('{"overall": {"score_1": 1, "score_2": 2, "ranking": 6}, "why": "{"}', (1, 2, 6)),
        ('{"ranking": 2}', (3, 3, 2)),
    ],
)
def test_verdict_is_read_from_what_a_judge_writes(reply: str, read: tuple[float, float, float]) -> None:
    found = comparisons.verdict(comparisons.Rules(), reply)
    assert found == comparisons.Verdict(*read)


@pytest.mark.parametrize("reply", ["", "The first.", "{broken", '{"score_1": "high"}', "[1, 2]"])
def test_reply_without_a_verdict_counts_as_unparseable(reply: str) -> None:
    assert comparisons.verdict(comparisons.Rules(), reply) == comparisons.Verdict(3, 3, 3.5, parsed=False)


def test_rewards_are_mean_scores_and_the_ranking_decides_ties() -> None:
    rules = comparisons.Rules()
    pairs = comparisons.pairs("circular", 3)
    assert pairs == [(0, 1), (1, 2), (2, 0)] and comparisons.pairs("all_pairs", 3) == [(0, 1), (0, 2), (1, 2)]
    assert comparisons.pairs("circular", 1) == []
    seen = [comparisons.Verdict(5, 1, 1), comparisons.Verdict(2, 2, 6), comparisons.Verdict(3, 4, 4)]
    assert comparisons.rewards(rules, 3, list(zip(pairs, seen, strict=True))) == [4.5, (1 - 0.5) / 2, 3.75]


def test_roles_of_a_question_are_those_of_a_genrm_or_plain_text() -> None:
    genrm = comparisons.question(comparisons.Rules(principle="Be strict."), ASKED, "IX", "ix")
    assert [m["role"] for m in genrm] == ["user", "response_1", "response_2", "principle"]
    [plain] = comparisons.question(comparisons.Rules(roles="plain"), ASKED, "IX", "ix")
    assert plain["role"] == "user" and all(part in plain["content"] for part in ("9 in Roman", "IX", "ix", "ranking"))


def test_busy_judge_is_asked_again_and_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_JUDGES_KEY", "swordfish")
    with stand_in_judge(lambda n, body: (503, "busy") if n <= 2 else (200, "fine")) as seen:
        end = judge.Endpoint(seen.url, "j", key_env="A_JUDGES_KEY", pause_s=0.01, sampling={"temperature": 0.6})
        assert judge.ask_all(end, [ASKED]) == ["fine"]
    assert len(seen.bodies) == 3 and set(seen.keys) == {"Bearer swordfish"}
    assert seen.bodies[0] == {"model": "j", "messages": ASKED, "temperature": 0.6}


def test_judge_that_refuses_is_not_asked_again() -> None:
    with stand_in_judge(lambda n, body: (401, "no")) as seen, pytest.raises(PayloadError, match="HTTP 401") as told:
        judge.ask_all(judge.Endpoint(seen.url, "j", pause_s=0.01), [ASKED])
    assert told.value.name == "genrm_server_not_ready" and len(seen.bodies) == 1


def test_slow_judge_is_given_up_after_its_retries() -> None:
    def slow(number: int, body: dict[str, Any]) -> tuple[int, str]:
        time.sleep(1.0)
        return 200, "late"

    with stand_in_judge(slow) as seen, pytest.raises(PayloadError, match="does not answer"):
        judge.ask_all(judge.Endpoint(seen.url, "j", timeout_s=0.05, retries=2, pause_s=0.01), [ASKED])
    assert len(seen.bodies) == 3


def test_endpoint_of_ones_own_judges_rows_of_rl_prep_and_where_it_goes_away_a_rerun_continues(
    whole: Run, tmp_path: Path, data_python: str
) -> None:
    source = shutil.copytree(ROOT / "rlhf" / "data", tmp_path / "source", ignore=shutil.ignore_patterns("*.json"))
    prompts = prepared(tmp_path, data_python, source)
    said = json.loads((prompts / "manifest.json").read_text())
    assert said["row_format"] == "gym"

    def reply(number: int, body: dict[str, Any]) -> tuple[int, str]:
        turns = {m["role"]: m["content"] for m in body["messages"]}
        if number % 4 == 0:
            return 200, "I cannot decide."
        return 200, json.dumps({f"score_{i}": 5 if turns[f"response_{i}"].isupper() else 1 for i in (1, 2)})

    where = {"env.judge.model": "mine", "env.judge.api_key_env": "A_JUDGES_KEY", "env.judge.max_retries": 1}
    given = {MODEL: str(whole.out / "base"), MANIFEST: str(prompts / "manifest.json"), **SHORT, **SMALL, **where}
    key = {"A_JUDGES_KEY": "swordfish"}
    with stand_in_judge(lambda n, body: reply(n, body) if n <= 6 else (500, "gone")) as first:
        run = Run("rlhf", tmp_path / "run", {**given, "env.judge.base_url": first.url})
        assert run.refused(**key)["name"] == "genrm_server_not_ready"
    told = (run.folder / "messages.jsonl").read_text()
    with stand_in_judge(reply) as seen:
        Run("rlhf", tmp_path / "run", {**given, "env.judge.base_url": seen.url}).finish(**key)
    facts = run.facts()
    assert facts["judge"] == "mine" and "judge_warm_start" not in facts and facts["rows"] == said["rows"]["train"]
    assert facts["resumed_from"] == 1 and sorted(run.metrics("reward")) == [1, 2]
    assert set(seen.keys) == {"Bearer swordfish"} and {b["model"] for b in seen.bodies} == {"mine"}
    assert len(seen.bodies) == 6 and {b["max_tokens"] for b in seen.bodies} == {40}
    assert run.metrics("judge_unparseable") == pytest.approx({1: 1 / 6, 2: 1 / 6})
    assert "swordfish" not in run.log + told + (run.folder / "messages.jsonl").read_text()


def test_judge_that_never_gives_a_verdict_stops_the_run(whole: Run, tmp_path: Path) -> None:
    settings = {**SHORT, **SMALL, MODEL: str(whole.out / "base"), JUDGE: str(whole.out / "hf")}
    error = Run("rlhf", tmp_path, settings).refused()
    assert error["name"] == "judge_unparseable" and "none of 6 replies" in error["message"]


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({JUDGE: None}, "judge_missing", JUDGE),
    ({JUDGE: "/none/here"}, "model_missing", "/none/here"),
    ({JUDGE: "{base}"}, "reward_model_policy_confused", "the policy itself"),
    ({"env.judge.base_url": "http://127.0.0.1:9/v1", "env.judge.api_key_env": "NOT_SET_ANYWHERE"},
     "judge_key_missing", "NOT_SET_ANYWHERE"),
    ({"env.judge.base_url": "http://127.0.0.1:9/v1", "env.judge.roles": "critic"}, "config_invalid", "roles=critic"),
    ({MANIFEST: "/none/manifest.json"}, "dataset_missing", "/none/manifest.json"),
    ({"env.should_use_nemo_gym": False}, "trl_unsupported", "no judge"),
    ({"env.nemo_gym.genrm_compare.resources_servers.genrm_compare.answer_bonus": 0.5}, "trl_unsupported",
     "answer_bonus=0 (is 0.5)"),
    ({MANIFEST: "{empty}"}, "responses_api_schema_missing", "a.jsonl, line 1"),
]  # fmt: skip


def test_bad_input_is_told_before_training(whole: Run, tmp_path: Path) -> None:
    base = str(whole.out / "base")
    rows(tmp_path / "data" / "a.jsonl", {"responses_create_params": {"input": []}})
    rows(tmp_path / "data" / "b.jsonl", {"prompt": "q"})
    empty = tmp_path / "data" / "manifest.json"
    empty.write_text(json.dumps({"train": "a.jsonl", "val": "b.jsonl"}))
    known = {"{base}": base, "{empty}": str(empty)}
    cases = [{MODEL: base, **{k: known.get(str(v), v) for k, v in overrides.items()}} for overrides, *_ in CASES]
    for (_, name, part), (told, message) in zip(CASES, refusals("rlhf", tmp_path, cases), strict=True):
        assert told == name and part in message, (name, told, message)
