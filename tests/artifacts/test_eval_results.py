"""Evaluation results: ours, those of both harnesses, alone and beside each other, and every way they can be none."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron_dagster import artifacts
from nemotron_dagster.artifacts.registry import artifact_type
from nemotron_dagster.artifacts.types.eval_results import Results, Score, read, write
from nemotron_dagster.errors import ArtifactError
from nemotron_dagster.project import Project

STAMP = "2026-01-02T03-04-05.678901"
SCORES = [
    {"task": "sums", "metric": "exact_match", "filter": "trimmed", "value": 0.75, "stderr": 0.25, "n": 4},
    {"task": "choice", "metric": "acc", "filter": "none", "value": 0.5, "stderr": None, "n": 2, "chance": 0.25},
]


def refused(path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        artifacts.validate("eval_results", path)


def summary(folder: Path, scores: Any = None, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model = {"name": "tiny", "untrained": False}
    data = {"version": 1, "model": model, "backend": "lm_eval 0.4", "baseline": None, "settings": {}}
    (folder / "summary.json").write_text(
        json.dumps({**data, "scores": SCORES if scores is None else scores, **changed})
    )
    return folder


def lm_eval(folder: Path, **changed: Any) -> Path:
    """What lm-evaluation-harness writes for SCORES."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "results": {
            "sums": {
                "alias": "sums",
                "sample_len": 4,
                "exact_match,trimmed": 0.75,
                "exact_match_stderr,trimmed": 0.25,
            },
            "choice": {"alias": "choice", "acc,none": 0.5, "acc_stderr,none": "N/A"},
        },
        "n-samples": {"sums": {"original": 9, "effective": 4}, "choice": {"original": 2, "effective": 2}},
        "higher_is_better": {"sums": {"exact_match": True}},
        "lm_eval_version": "0.4.13",
        "model_name": "tiny",
    }
    (folder / f"results_{STAMP}.json").write_text(json.dumps({**data, **changed}))
    for task, rows in (("sums", 4), ("choice", 4)):  # choice has two filters
        (folder / f"samples_{task}_{STAMP}.jsonl").write_text('{"doc_id": 0}\n' * rows)
    return folder


RESULTS_YML = """\
command: lm-eval run
config: {{output_dir: /results}}
git_hash: ''
target: {{api_endpoint: {{model_id: org/served, url: 'http://localhost:8000'}}}}
results:
  tasks:
    {task}:
      metrics:
        acc:
          scores:
            acc: {{value: {value}, stats: {{count: 50, stderr: 0.02, mean: {value}}}}}
            macro: {{value: 0.5, stats: {{}}}}
  groups:
    all:
      groups: {{inner: {{metrics: {{acc: {{scores: {{acc: {{value: 0.25, stats: {{}}}}}}}}}}}}}}
      metrics: {{acc: {{scores: {{acc: {{value: {value}, stats: {{stderr: 0.01}}}}}}}}}}
"""


def launched(folder: Path, invocation: str = "20260102_030405-abcdef", task: str = "mmlu", code: str = "0") -> Path:
    """One task as NeMo Evaluator Launcher leaves it; the task's directory."""
    run = folder / invocation
    one = run / f"{task}.0"
    for part in ("artifacts", "logs"):
        (one / part).mkdir(parents=True)
    (run / "run_all.sequential.sh").write_text("#!/bin/bash\n")
    (one / "run.sh").write_text("#!/bin/bash\n")
    (one / "artifacts/results.yml").write_text(RESULTS_YML.format(task=task, value=0.75))
    (one / "logs/client_stdout.log").write_text("done\n")
    (one / "logs/stage.running").write_text("2026-01-02T03:04:05Z\n")
    (one / "logs/stage.exit").write_text(f"2026-01-02T03:09:05Z {code}\n")
    return one


# ---- ours


def test_a_summary_alone_is_enough(tmp_path: Path) -> None:
    facts = artifacts.validate("eval_results", summary(tmp_path))
    assert [(s["task"], s["value"], s["n"]) for s in facts["scores"]] == [("sums", 0.75, 4), ("choice", 0.5, 2)]
    assert facts["scores"][0]["ci95"] == [0.26, 1.24] and facts["scores"][1]["ci95"] is None
    assert (facts["model"]["name"], facts["backend"], facts["samples"], facts["tasks"]) == ("tiny", "lm_eval 0.4", 6, 2)
    assert (facts["source"], facts["raw"]) == ("summary.json", [])
    assert artifacts.validate("eval_results", tmp_path / "summary.json") == facts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, r"summary\.json: sums/exact_match is nan, not a finite number"),
        ({"value": float("inf")}, "is inf, not a finite number"),
        ({"value": 10**400}, "not a finite number"),
        ({"value": True}, "is True, not a finite number"),
        ({"value": "0.5"}, "not a finite number"),
        ({"value": None}, "not a finite number"),
        ({"n": 0}, "was scored on 0 samples"),
        ({"n": None}, "was scored on None samples"),
        ({"n": 2.5}, r"was scored on 2\.5 samples"),
        ({"stderr": -0.1}, "has the standard error -0.1"),
        ({"stderr": float("nan")}, "has the standard error nan"),
        ({"task": ""}, "a score names no task and metric"),
        ({"metric": 5}, "a score names no task and metric"),
        ({"baseline": {"value": None}}, "its baseline has no finite value"),
        ({"difference": [1]}, "its difference has no finite mean"),
    ],
)
def test_a_score_must_be_a_counted_finite_number(tmp_path: Path, change: dict, message: str) -> None:
    refused(summary(tmp_path, [{**SCORES[0], **change}]), message)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "holds no scores"),
        ({}, "holds no scores"),
        ([5], "a score is 5, not an object"),
        ([SCORES[0], SCORES[0]], "has sums/exact_match/trimmed twice"),
    ],
)
def test_a_summary_must_hold_scores(tmp_path: Path, scores: Any, message: str) -> None:
    refused(summary(tmp_path, scores), message)


def test_every_bad_score_is_told_at_once(tmp_path: Path) -> None:
    bad = [{**SCORES[0], "task": f"t{n}", "value": None} for n in range(30)]
    with pytest.raises(ArtifactError) as error:
        artifacts.validate("eval_results", summary(tmp_path, bad))
    assert str(error.value).count("not a finite number") == 20 and "… and 10 more" in str(error.value)


# ---- lm-evaluation-harness


def test_a_summary_that_agrees_with_the_harness_is_accepted(tmp_path: Path) -> None:
    facts = artifacts.validate("eval_results", lm_eval(summary(tmp_path)))
    assert facts["raw"] == [f"results_{STAMP}.json"] and facts["source"] == "summary.json"


def test_results_of_the_harness_alone_are_accepted(tmp_path: Path) -> None:
    facts = artifacts.validate("eval_results", lm_eval(tmp_path / "model__name").parent)
    assert facts["source"] == f"model__name/results_{STAMP}.json"
    assert (facts["model"], facts["backend"]) == ("tiny", "lm_eval 0.4.13")
    first, second = facts["scores"]
    assert (first["filter"], first["stderr"], first["n"], first["higher_is_better"]) == ("trimmed", 0.25, 4, True)
    assert (second["value"], second["stderr"]) == (0.5, None)


Spoil = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p: summary(p, [{**SCORES[0], "value": 0.76}, SCORES[1]]),
            "is 0.76 ± 0.25 over 4, and results_.*says 0.75",
        ),
        (lambda p: summary(p, [{**SCORES[0], "stderr": 0.2}, SCORES[1]]), "is 0.75 ± 0.2 over 4, and results_"),
        (lambda p: summary(p, [{**SCORES[0], "n": 5}, SCORES[1]]), "over 5, and results_.* over 4"),
        (lambda p: summary(p, SCORES[:1]), "lacks choice/acc/none, which results_"),
        (lambda p: summary(p, [*SCORES, {**SCORES[1], "task": "more"}]), "more/acc/none is not in results_"),
        (lambda p: (p / f"samples_sums_{STAMP}.jsonl").write_text("{}\n" * 3), "has 3 rows, and results_.* counts 4"),
        (lambda p: (p / f"samples_sums_{STAMP}.jsonl").write_text(""), "has 0 rows"),
        (lambda p: (p / f"samples_sums_{STAMP}.jsonl").write_text('{}\n{}\n{}\n{"a'), "its last row was cut off"),
        (lambda p: (p / f"results_{STAMP}.json").write_text("{"), "is not JSON"),
        (lambda p: (p / f"results_{STAMP}.json").write_text("{}"), "has no results"),
        (lambda p: lm_eval(p, results={"sums": {"exact_match,trimmed": float("nan")}}), "is nan, not a finite"),
    ],
)
def test_summary_and_harness_must_agree(tmp_path: Path, spoil: Spoil, message: str) -> None:
    spoil(lm_eval(summary(tmp_path)))
    refused(tmp_path, message)


def test_of_several_runs_of_the_harness_the_newest_counts(tmp_path: Path) -> None:
    summary(lm_eval(tmp_path))
    old = tmp_path / "results_2025-01-02T03-04-05.678901.json"
    old.write_text((tmp_path / f"results_{STAMP}.json").read_text().replace("0.75", "0.1"))
    assert artifacts.validate("eval_results", tmp_path)["raw"] == [f"results_{STAMP}.json"]


def test_a_group_counts_the_samples_of_its_tasks(tmp_path: Path) -> None:
    results = {"all": {"acc,none": 0.5}, "a": {"acc,none": 0.5}, "b": {"acc,none": 0.5}}
    counts = {"a": {"effective": 3}, "b": {"effective": 4}}
    more = {"groups": {"all": {}}, "group_subtasks": {"all": ["a", "b"], "b": ["b"]}}
    facts = artifacts.validate("eval_results", lm_eval(tmp_path, results=results, **{"n-samples": counts}, **more))
    assert [(s["task"], s["n"], s["group"]) for s in facts["scores"]] == [
        ("all", 7, True),
        ("a", 3, False),
        ("b", 4, False),
    ]
    assert facts["samples"] == 7


# ---- NeMo Evaluator


def test_results_of_nemo_evaluator_alone_are_accepted(tmp_path: Path) -> None:
    launched(tmp_path)
    facts = artifacts.validate("eval_results", tmp_path)
    found = {(s["task"], s["metric"], s["group"]): (s["value"], s["stderr"], s["n"]) for s in facts["scores"]}
    assert found == {
        ("mmlu", "acc", False): (0.75, 0.02, 50),
        ("mmlu", "acc.macro", False): (0.5, None, None),
        ("all", "acc", True): (0.75, 0.01, None),
        ("all.inner", "acc", True): (0.25, None, None),
    }
    assert (facts["model"], facts["backend"]) == ("org/served", "nemo_evaluator")
    for below in ("20260102_030405-abcdef", "20260102_030405-abcdef/mmlu.0"):
        assert artifacts.validate("eval_results", tmp_path / below)["scores"] == facts["scores"]
    kind = artifact_type("eval_results", Project(None, tmp_path))
    assert kind.draw(facts, tmp_path) == ["scores.png"]


def test_a_summary_of_nemo_evaluator_must_agree_with_its_files(tmp_path: Path) -> None:
    launched(tmp_path)
    named = [("mmlu", "acc", 0.75, 0.02, 50), ("mmlu", "acc.macro", 0.5, None, None), ("all", "acc", 0.75, 0.01, None)]
    scores = [dict(zip(("task", "metric", "value", "stderr", "n"), s, strict=True)) for s in named]
    assert artifacts.validate("eval_results", summary(tmp_path, scores, backend="nemo_evaluator"))["samples"] == 50
    scores[0]["value"] = 0.8
    refused(summary(tmp_path, scores, backend="nemo_evaluator"), "mmlu/acc is 0.8 .*results.yml says 0.75")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p: (p / "logs/stage.exit").write_text("2026-01-02T03:04:05Z 137\n"),
            "mmlu.0 ended with 137. Read .*log",
        ),
        (lambda p: (p / "logs/stage.exit").write_text("exit_code: 1"), r"ended with 1\. Read .*client_stdout\.log"),
        (lambda p: (p / "logs/stage.exit").write_text(""), "ended with nothing"),
        (lambda p: (p / "logs/stage.exit").unlink(), "has not ended, or was killed"),
        (lambda p: (p / "artifacts/results.yml").unlink(), r"left no artifacts/results\.yml"),
        (lambda p: (p / "artifacts/results.yml").write_text("results: ["), "is not valid YAML"),
        (lambda p: (p / "artifacts/results.yml").write_text("a: 1"), "has no results"),
        (lambda p: (p / "artifacts/results.yml").write_text("results: {tasks: {}}"), "holds no scores"),
        (lambda p: (p / "artifacts/results.yml").write_text("results: {tasks: {t: 5}}"), "t has no metrics"),
        (
            lambda p: (p / "artifacts/results.yml").write_text(RESULTS_YML.format(task="t", value=".nan")),
            "t/acc is nan",
        ),
        (lambda p: (p / "artifacts/results.yml").write_text("a: !!python/name:os.system"), "is not supported"),
    ],
)
def test_a_task_that_failed_or_has_no_results_is_refused(tmp_path: Path, spoil: Spoil, message: str) -> None:
    spoil(launched(tmp_path))
    refused(tmp_path, message)


def test_a_failed_task_is_refused_though_the_summary_is_whole(tmp_path: Path) -> None:
    launched(summary(tmp_path, SCORES, backend="nemo_evaluator"), code="1")
    refused(tmp_path, r"mmlu\.0 ended with 1")


def test_a_task_that_failed_and_was_run_again_counts_once(tmp_path: Path) -> None:
    first = launched(tmp_path, "20260101_000000-aaaaaa", code="1")
    (first / "artifacts/results.yml").unlink()
    launched(tmp_path, "20260102_000000-bbbbbb")
    assert artifacts.validate("eval_results", tmp_path)["raw"] == [
        "20260102_000000-bbbbbb/mmlu.0/artifacts/results.yml"
    ]


def test_a_dry_run_is_no_result(tmp_path: Path) -> None:
    one = tmp_path / "20260102_030405-abcdef/mmlu.0"
    one.mkdir(parents=True)
    (one.parent / "run_all.sequential.sh").write_text("#!/bin/bash\n")
    (one / "run.sh").write_text("#!/bin/bash\n")
    refused(tmp_path, "is of a dry run, which scores nothing. Run without dry_run")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda p: None, r"has no summary\.json"),
        (lambda p: p.rmdir(), "no such file"),
        (lambda p: (p / "summary.json").write_text("[]"), "is not a JSON object"),
        (lambda p: (p / "summary.json").symlink_to("gone"), "is a symbolic link to gone, which is not there"),
        (lambda p: (p / "summary.json").mkdir(), "is a directory, not a file"),
    ],
)
def test_a_directory_without_results_is_refused(tmp_path: Path, place: Spoil, message: str) -> None:
    place(tmp_path)
    refused(tmp_path, message)


# ---- the results model, and pages


RESULTS = Results(
    model={"name": "tiny"},
    backend="own",
    baseline="base",
    scores=(
        Score(task="a|b", metric="acc", value=0.5, stderr=0.1, n=4, chance=0.25, baseline={"value": 0.25, "n": 4}),
        Score(task="c", metric="f1", value=12.5, n=3, difference={"mean": 0.25, "stderr": 0.5}),
    ),
)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    write(RESULTS, tmp_path / "out")
    assert read(tmp_path / "out") == RESULTS
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["results.yml", "summary.json"]
    assert artifacts.validate("eval_results", tmp_path / "out")["raw"] == ["results.yml"]
    with pytest.raises(ArtifactError, match="exists already"):
        write(RESULTS, tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"scores": []}, "takes Results, not a dict"),
        (replace(RESULTS, scores=()), "would hold no scores"),
        (replace(RESULTS, scores=(replace(RESULTS.scores[0], value=float("nan")),)), "not a finite number"),
        (replace(RESULTS, scores=(replace(RESULTS.scores[0], n=None),)), "was scored on None samples"),
        (replace(RESULTS, settings={"x": object()}), "are not JSON"),
    ],
)
def test_what_is_no_result_is_not_written(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        write(value, tmp_path)
    assert not list(tmp_path.iterdir())


def test_pages_show_errors_intervals_chance_and_the_change(tmp_path: Path) -> None:
    kind = artifact_type("eval_results", Project(None, tmp_path))
    write(RESULTS, tmp_path)
    facts = kind.validate(tmp_path)
    head, _, first, second = kind.tables(facts)["scores"].splitlines()
    assert head == "| task | metric | before | change | value | ± stderr | 95 % | samples | chance |"
    assert first == "| a\\|b | acc | 0.250 | – | 0.500 | 0.100 | 0.304 to 0.696 | 4 | 0.250 |"
    assert second == "| c | f1 | – | +0.250 ± 0.500 | 12.500 | – | – | 3 | – |"
    assert kind.figures(facts) == {"a|b acc before": 0.25, "a|b acc": 0.5, "c f1": 12.5}
    assert (tmp_path / kind.draw(facts, tmp_path)[0]).read_bytes().startswith(b"\x89PNG")


def test_of_many_scores_pages_show_groups_first_and_say_how_many_there_are(tmp_path: Path) -> None:
    scores = tuple(Score(task=f"t{n}", metric="acc", value=0.5, n=4, group=n == 299) for n in range(300))
    write(replace(RESULTS, scores=scores), tmp_path)
    kind = artifact_type("eval_results", Project(None, tmp_path))
    facts = kind.validate(tmp_path)
    assert len(facts["scores"]) == 200 and facts["scores_total"] == 300
    figures = kind.figures(facts)
    assert figures["scores"] == 300 and len(figures) == 13 and next(iter(figures)) == "t299 acc"
    assert len(read(tmp_path).scores) == 300


@pytest.mark.parametrize("make", [summary, lm_eval, launched, lambda p: lm_eval(summary(p))])
def test_damaged_bytes_give_an_error_or_a_verdict_and_never_another_exception(tmp_path: Path, make: Spoil) -> None:
    make(tmp_path)
    rng = random.Random(3)
    bits = [b"NaN", b"null", b"[]", b"{}", b"1e999", b"9" * 5000, b'"', b"\x00", b"- ", b"*a", b"\xff", b"Infinity"]
    refusals = 0
    for file in [p for p in sorted(tmp_path.rglob("*")) if p.is_file()]:
        whole = file.read_bytes()
        for n in range(60):
            data = bytearray(whole)
            at = rng.randrange(len(data))
            if n % 3:
                data[at] ^= 1 << rng.randrange(8)
            else:
                data[at : at + rng.randrange(12)] = rng.choice(bits)
            file.write_bytes(data if n % 4 else data[:at])
            try:
                json.dumps(artifacts.validate("eval_results", tmp_path), allow_nan=False)
            except ArtifactError as e:
                assert str(tmp_path) in str(e)
                refusals += 1
        file.write_bytes(whole)
    assert refusals > 20
