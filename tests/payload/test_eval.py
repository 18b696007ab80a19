"""eval/model_eval with real models: the bundled tiny Llama, untrained and a little trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from eval_run import STEP, Run, config, environment, make_checkpoint, read_by_nemo_evaluator, run
from interpreters import payload_python

from nemotron_dagster.artifacts import validate

TASKS = STEP / "tasks" / "roman_numerals"
KEY = "sk-planted-7f3a9c2e51d84b60"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    payload_python("eval")
    return tmp_path_factory.mktemp("eval")


@pytest.fixture(scope="module")
def untrained(place: Path) -> Run:
    return run(place / "untrained", config())


@pytest.fixture(scope="module")
def checkpoint(place: Path) -> Path:
    return make_checkpoint(place / "checkpoint", steps=120)


@pytest.fixture(scope="module")
def trained(place: Path, checkpoint: Path, untrained: Run) -> Run:
    return run(place / "trained", config(target__checkpoint=str(checkpoint), baseline=str(untrained.output)))


@pytest.fixture(scope="module")
def server(place: Path, checkpoint: Path) -> Iterator[str]:
    port_file = place / "port"
    command = [payload_python("eval"), Path(__file__).parent / "serve_checkpoint.py", checkpoint, port_file]
    process = subprocess.Popen(command, env=environment(place, SERVER_KEY=KEY, HF_HUB_OFFLINE="1"))
    try:
        deadline = time.monotonic() + 120
        while not port_file.is_file():
            assert process.poll() is None and time.monotonic() < deadline, "the test server did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port_file.read_text()}/v1"
    finally:
        process.kill()
        process.wait()


def test_generator_writes_the_committed_test_sets(tmp_path: Path) -> None:
    shutil.copy(TASKS / "generate.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "generate.py"], check=True)
    for name in ("test.jsonl", "choice.jsonl"):
        assert (tmp_path / name).read_bytes() == (TASKS / name).read_bytes()


def test_questions_are_held_out_and_options_give_nothing_away() -> None:
    asked = [json.loads(line) for line in (TASKS / "test.jsonl").read_text().splitlines()]
    assert len(asked) == 250 and all(row["number"] % 8 == 5 for row in asked)
    assert asked[0]["number"] < 20 and asked[-1]["number"] > 3980
    numerals = {row["number"]: row["numeral"] for row in asked}
    assert numerals[1989 - 1989 % 16 + 5] == "MCMLXXXIX"
    for line in (TASKS / "choice.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["choices"][row["answer"]] == numerals[row["number"]]
        assert len(set(row["choices"])) == 4 and len({len(c) for c in row["choices"]}) == 1


def test_untrained_model_scores_at_chance_and_the_result_says_untrained(untrained: Run) -> None:
    assert untrained.code == 0, untrained.printed
    write, choose = untrained.score("roman_numerals"), untrained.score("roman_numerals_choice")
    assert write["n"] == choose["n"] == 250
    assert write["metric"] == "exact_match" and write["value"] < 0.02 and write["chance"] is None
    assert choose["metric"] == "acc" and choose["chance"] == 0.25 and choose["higher_is_better"] is True
    assert abs(choose["value"] - 0.25) < 4 * choose["stderr"]
    assert untrained.summary["model"]["untrained"] is True and "random weights" in untrained.summary["model"]["note"]
    assert untrained.facts["untrained"] is True
    assert untrained.facts["scores"]["roman_numerals_choice/acc"] == choose["value"]


def test_samples_are_counted_while_they_are_scored(untrained: Run) -> None:
    told = [(m["step"], m["total"]) for m in untrained.messages if m["type"] == "progress"]
    assert told[0] == (0, 500) and told[-1] == (500, 500)
    assert [s for s, _ in told] == sorted(s for s, _ in told) and len(told) > 4


def test_nothing_is_left_in_home_or_in_the_working_directory(untrained: Run) -> None:
    folder = untrained.output.parent
    assert not [p for p in (folder / "home").rglob("*") if p.is_file()]
    assert {p.name for p in folder.iterdir()} == {"config.yaml", "messages.jsonl", "home", "out"}


def test_results_parse_with_lm_evals_own_loader_and_with_plain_json(untrained: Run) -> None:
    script = """
import json, sys
from pathlib import Path
from lm_eval.utils import get_latest_filename, get_results_filenames, get_sample_results_filenames, get_file_task_name
from datasets import load_dataset
folder = Path(sys.argv[1])
names = [str(p) for p in folder.iterdir()]
latest = get_latest_filename(get_results_filenames(names))
scores = json.load(open(latest))["results"]
rows = {get_file_task_name(Path(n).name): load_dataset("json", data_files=n, split="train", cache_dir=sys.argv[2])
        for n in get_sample_results_filenames(names)}
print(json.dumps({t: [len(r), sum(r[m]) / len(r), scores[t][k]]
                  for t, m, k in (("roman_numerals", "exact_match", "exact_match,trimmed"),
                                  ("roman_numerals_choice", "acc", "acc,none")) for r in [rows[t]]}))
"""
    env = environment(untrained.output.parent, HF_HUB_OFFLINE="1")
    cache = untrained.output.parent.parent / "cache"
    command = [payload_python("eval"), "-c", script, untrained.output, cache]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    for count, mean, reported in json.loads(done.stdout.splitlines()[-1]).values():
        assert count == 250 and mean == pytest.approx(reported)
    results = json.loads(next(untrained.output.glob("results_*.json")).read_text())
    assert results["config"]["model"] == "hf" and results["n-samples"]["roman_numerals"]["effective"] == 250


def test_scores_parse_with_nemo_evaluators_reader_and_model(untrained: Run) -> None:
    read = read_by_nemo_evaluator(untrained.output)
    write, choose = untrained.score("roman_numerals"), untrained.score("roman_numerals_choice")
    assert read["exported"] == {
        "roman_numerals_exact_match__trimmed": write["value"],
        **{
            f"roman_numerals_choice_{s['metric']}": s["value"]
            for s in untrained.summary["scores"]
            if s["task"] == choose["task"]
        },
    }
    scores = read["result"]["tasks"]["roman_numerals_choice"]["metrics"]["acc"]["scores"]
    assert scores == {"acc": {"value": choose["value"], "stats": {"count": 250, "stderr": choose["stderr"]}}}
    assert read["model"] == "untrained tiny model"
    checked = validate("eval_results", untrained.output)
    assert set(checked["raw"]) == {next(untrained.output.glob("results_*.json")).name, "results.yml"}


def test_same_seed_same_scores(untrained: Run, tmp_path: Path) -> None:
    again = run(tmp_path, config(tasks=["roman_numerals_choice"]))
    assert again.score("roman_numerals_choice") == untrained.score("roman_numerals_choice")


def test_training_shows_as_a_paired_difference_to_the_baseline(trained: Run, untrained: Run) -> None:
    assert trained.code == 0, trained.printed
    for task in ("roman_numerals", "roman_numerals_choice"):
        after, before = trained.score(task), untrained.score(task)
        assert after["baseline"]["value"] == before["value"]
        assert after["difference"]["n"] == 250
        assert after["difference"]["mean"] == pytest.approx(after["value"] - before["value"])
        assert after["difference"]["mean"] > 2 * after["difference"]["stderr"] > 0
    assert trained.summary["model"]["untrained"] is False
    assert set(trained.facts["difference"]) == {"roman_numerals/exact_match", "roman_numerals_choice/acc"}


def test_lm_evals_command_line_gives_the_same_scores_to_the_last_digit(trained: Run, checkpoint: Path) -> None:
    folder = trained.output.parent / "by-hand"
    command = [
        *(payload_python("eval"), "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={checkpoint}"),
        *("--tasks", "roman_numerals,roman_numerals_choice", "--include_path", str(TASKS), "--device", "cpu"),
        *("--batch_size", "64", "--apply_chat_template", "--seed", "1234", "--log_samples"),
        *("--output_path", str(folder / "results.json")),
    ]
    env = environment(folder, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", PYTHONPATH=str(lm_eval_extras(folder)))
    done = subprocess.run(
        command, check=False, cwd=TASKS, env=env, capture_output=True, text=True
    )  # its data_files: beside the cwd
    by_hand = json.loads(next(folder.glob("results_*.json")).read_text()) if done.returncode == 0 else {}
    assert done.returncode == 0, done.stderr[-3000:]
    ours = json.loads(next(trained.output.glob("results_*.json")).read_text())
    assert ours["results"] == by_hand["results"] and ours["task_hashes"] == by_hand["task_hashes"]
    assert 0 < ours["results"]["roman_numerals"]["exact_match,trimmed"] < 1


def lm_eval_extras(folder: Path) -> Path:
    """lm-eval's command line prints its table with a package that the payload environment leaves out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pytablewriter.py").write_text(
        "class MarkdownTableWriter:\n    def dumps(self): return ''\nclass LatexTableWriter(MarkdownTableWriter): ...\n"
    )
    return folder


def test_task_data_lie_beside_the_task_file_whatever_the_working_directory(tmp_path: Path) -> None:
    decoy, tasks = tmp_path / "decoy", tmp_path / "moved tasks"
    decoy.mkdir()
    row = {"number": 1, "choices": ["I", "V", "X", "L"], "answer": 0}
    (decoy / "choice.jsonl").write_text(json.dumps(row) + "\n")
    shutil.copytree(TASKS, tasks)
    made = run(tmp_path / "run", config(tasks=["roman_numerals_choice"], tasks_dir=str(tasks)), cwd=decoy)
    assert made.code == 0, made.printed
    assert made.score("roman_numerals_choice")["n"] == 250


ADAPTER = """
import sys
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(sys.argv[2])
"""
OWN = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_own_group_of_tasks_scores_a_checkpoint_with_an_adapter(tmp_path: Path, checkpoint: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [
        {"question": "5?", "choices": ["V", "X", "L"], "answer": 0},
        {"question": "1?", "choices": ["I", "M"], "answer": 0},
    ]
    (tasks / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name in ("one", "two"):
        (tasks / f"{name}.yaml").write_text(OWN.format(name=name))
    group = "group: both\ntask: [one, two]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (tasks / "both.yaml").write_text(group)
    env = environment(tmp_path, HF_HUB_OFFLINE="1")
    subprocess.run([payload_python("eval"), "-c", ADAPTER, checkpoint, tmp_path / "lora"], check=True, env=env)
    targets = {"target__checkpoint": str(checkpoint), "target__adapter": str(tmp_path / "lora")}
    made = run(tmp_path / "run", config(tasks=["both"], tasks_dir=str(tasks), **targets))
    assert made.code == 0, made.printed
    assert {s["task"]: (s["n"], s["group"]) for s in made.summary["scores"]} == {
        "one": (2, False),
        "two": (2, False),
        "both": (4, True),
    }
    assert made.score("one")["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert made.summary["model"]["name"] == "checkpoint+lora" and made.summary["model"]["adapter"]


def test_limit_counts_samples(tmp_path: Path, checkpoint: Path) -> None:
    made = run(tmp_path, config(target__checkpoint=str(checkpoint), tasks=["roman_numerals"], limit=7, batch_size=3))
    assert made.code == 0, made.printed
    assert made.score("roman_numerals")["n"] == 7 and made.messages[-2]["step"] == 7


@pytest.mark.parametrize("parallelism", [1, 3])
def test_loopback_http_server_chat_endpoint_scores_like_the_checkpoint(
    tmp_path: Path, server: str, trained: Run, parallelism: int
) -> None:
    made = endpoint_run(tmp_path, server, "chat", ["roman_numerals"], target__api_endpoint__parallelism=parallelism)
    assert made.code == 0, made.printed
    assert made.summary["model"]["endpoint"] == f"{server}/chat/completions"
    assert answers(made, "roman_numerals") == answers(trained, "roman_numerals", first=30)
    assert KEY not in made.everything(), "the key leaked"
    assert "[redacted]" in made.printed  # the server did repeat the key, and lm-eval did print it


def test_loopback_http_server_completions_endpoint_scores_like_the_checkpoint(
    tmp_path: Path, server: str, trained: Run, checkpoint: Path
) -> None:
    tasks = ["roman_numerals", "roman_numerals_choice"]
    made = endpoint_run(tmp_path, server, "completions", tasks, target__api_endpoint__tokenizer=str(checkpoint))
    assert made.code == 0, made.printed
    assert answers(made, "roman_numerals") == answers(trained, "roman_numerals", first=30)
    rows, wanted = samples(made, "roman_numerals_choice"), samples(trained, "roman_numerals_choice")[:30]
    assert [r["acc"] for r in rows] == [r["acc"] for r in wanted]
    for row, like in zip(rows, wanted, strict=True):
        assert [float(r[0]) for r in row["filtered_resps"]] == pytest.approx(
            [float(r[0]) for r in like["filtered_resps"]], abs=1e-3
        )
    assert KEY not in made.everything(), "the key leaked"


def test_a_wrong_key_is_refused_and_not_repeated(tmp_path: Path, server: str) -> None:
    planted = "sk-wrong-but-still-secret-0001"
    made = endpoint_run(tmp_path, server, "chat", ["roman_numerals"], key=planted)
    assert made.code == 3 and made.error["name"] == "endpoint_refused"
    assert "HTTP 401" in made.error["message"] and "SERVICE_KEY" in made.error["recovery"]
    assert planted not in made.everything() and not made.output.exists()


def endpoint_run(folder: Path, server: str, kind: str, tasks: list[str], key: str = KEY, **more: object) -> Run:
    cfg = config(
        target__api_endpoint__url=server,
        target__api_endpoint__model_id="tiny",
        target__api_endpoint__type=kind,
        target__api_endpoint__api_key_name="SERVICE_KEY",
        batch_size=1,
        limit=30,
        tasks=tasks,
        **more,
    )
    return run(folder, cfg, SERVICE_KEY=key)


def samples(made: Run, task: str) -> list[dict]:
    rows = [json.loads(line) for line in next(made.output.glob(f"samples_{task}_2*.jsonl")).read_text().splitlines()]
    return sorted(rows, key=lambda r: r["doc_id"])


def answers(made: Run, task: str, first: int | None = None) -> list[str]:
    return [row["filtered_resps"][0] for row in samples(made, task)[:first]]


def test_runs_without_a_network(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("cutting the network needs unshare and root")
    (tmp_path / "c.yaml").write_text(json.dumps(config(tasks=["roman_numerals"], limit=4) | {"output_dir": "out"}))
    command = ["unshare", "-n", payload_python("eval"), STEP / "step.py", "--config", tmp_path / "c.yaml"]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.json").is_file()
