"""eval/model_eval with NeMo Evaluator Launcher itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eval_run import STEP, config, environment, read_by_nemo_evaluator
from interpreters import payload_python

from nemotron_dagster.artifacts import validate
from nemotron_dagster.artifacts.types.eval_results import Results, Score, write
from nemotron_dagster.errors import ArtifactError

KEY = "nvapi-planted-91c0d2aa47e6f358"
sys.path.insert(0, str(STEP.parents[1]))


@pytest.fixture
def python() -> str:
    return payload_python("eval")


def start(python: str, folder: Path, cfg: dict[str, Any], **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "c.yaml").write_text(json.dumps(cfg | {"output_dir": str(folder / "out")}))
    env = environment(folder, NEMOTRON_MESSAGES=str(folder / "messages.jsonl"), NVIDIA_API_KEY=KEY, **env)
    command = [python, STEP / "step.py", "--config", folder / "c.yaml"]
    return subprocess.run(command, check=False, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["tiny_chat", "default"])
def test_dry_run_writes_the_launchers_scripts_and_no_key(python: str, tmp_path: Path, name: str) -> None:
    changes: dict[str, Any] = {"dry_run": True}
    if name == "default":
        checkpoint = tmp_path / "iter_0000100"
        checkpoint.mkdir()
        changes |= {"deployment__checkpoint_path": str(checkpoint), "execution__mode": "sequential"}
        changes["execution__auto_export"] = {"destinations": []}  # its exporter wants an account
    made = start(
        *(python, tmp_path, config(name, **changes)),
        NEMO_EVALUATOR_MODEL_ID="m",
        NEMO_EVALUATOR_MODEL_URL="http://127.0.0.1:9/v1/chat/completions",
        HF_TOKEN=KEY,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert list((tmp_path / "out").rglob("run.sh"))
    written = [p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file()]
    assert KEY not in "\n".join([made.stdout, made.stderr, *written])


def test_without_a_container_engine_the_run_fails_and_says_so(python: str, tmp_path: Path) -> None:
    made = start(
        *(python, tmp_path, config("tiny_chat")),
        NEMO_EVALUATOR_MODEL_ID="m",
        NEMO_EVALUATOR_MODEL_URL="http://127.0.0.1:9/v1/chat/completions",
        PATH="/nonexistent",  # whatever engine this machine has
    )
    error = json.loads((tmp_path / "messages.jsonl").read_text().splitlines()[-1])
    assert made.returncode == 3 and error["name"] == "launcher_failed"
    assert not (tmp_path / "out" / "summary.json").exists()


def test_variables_move_to_where_newer_launchers_want_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from _runtime.evaluation import launcher

    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: object())
    cfg = {"execution": {"env_vars": {"evaluation": {"HF_HOME": "/hf", "HF_TOKEN": "HF_TOKEN"}}}, "evaluation": {}}
    made = launcher.launcher_config(cfg | {"target": {"checkpoint": None}, "backend": None}, tmp_path)
    assert made["evaluation"]["env_vars"] == {"HF_HOME": "lit:/hf", "HF_TOKEN": "host:HF_TOKEN"}
    assert "env_vars" not in made["execution"] and "target" not in made and "backend" not in made


def test_results_yml_becomes_the_summary(tmp_path: Path) -> None:
    from _runtime.evaluation.launcher_results import collect

    folder = tmp_path / "20260101_000000-abc" / "ifeval.0" / "artifacts"
    folder.mkdir(parents=True)
    scores = {"acc": {"value": 0.5, "stats": {"stderr": 0.1, "count": 20}}}
    (folder / "results.yml").write_text(
        json.dumps({"results": {"tasks": {"ifeval": {"metrics": {"acc": {"scores": scores}}}}}})
    )
    made = collect(tmp_path, config("tiny_chat", target__api_endpoint__model_id="m"))
    [score] = made["scores"]
    assert (score["task"], score["metric"], score["value"], score["stderr"], score["n"]) == (
        "ifeval",
        "acc",
        0.5,
        0.1,
        20,
    )
    assert made["model"]["name"] == "m"


def test_results_written_here_parse_with_nemo_evaluators_reader(tmp_path: Path) -> None:
    value = Results(
        model="m", backend="own",
        scores=(
            Score(task="gsm8k", metric="exact_match", filter="strict-match", value=0.75, stderr=1e-5, n=4),
            Score(task="gsm8k", metric="exact_match", filter="flexible-extract", value=1, n=4),
            Score(task="mmlu", metric="acc", value=0.5, n=8, group=True),
            Score(task="yes", metric="5", value=1e20, n=1),
        ),
    )  # fmt: skip
    write(value, tmp_path / "out")
    read = read_by_nemo_evaluator(tmp_path / "out")
    assert read["exported"] == {
        "gsm8k_exact_match__strict-match": 0.75, "gsm8k_exact_match__flexible-extract": 1.0, "mmlu_acc": 0.5,
        "yes_5": 1e20,
    }  # fmt: skip
    metric = read["result"]["tasks"]["gsm8k"]["metrics"]["exact_match__strict-match"]["scores"]
    assert metric["exact_match__strict-match"]["stats"] == {"count": 4, "stderr": 1e-5}
    assert set(read["result"]["groups"]) == {"mmlu"} and read["model"] == "m"


def test_a_results_yml_that_says_something_else_is_refused(tmp_path: Path) -> None:
    write(Results(backend="own", scores=(Score(task="t", metric="acc", filter="x", value=0.5, n=4),)), tmp_path)
    file = tmp_path / "results.yml"
    good = file.read_text()
    for bad, message in (
        (good.replace("0.5", "0.75"), "results.yml says 0.75"),
        (good.replace("t:", "u:"), "is not in"),
    ):
        assert bad != good
        file.write_text(bad)
        with pytest.raises(ArtifactError, match=message):
            validate("eval_results", tmp_path)
