"""Everything a person can get wrong in eval/model_eval: one message, exit status 3, nothing published."""

from __future__ import annotations

import http.server
import json
import math
import shutil
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eval_run import STEP, TINY_LLAMA, Run, config, make_checkpoint, run
from interpreters import payload_python

ENDPOINT = {"target__api_endpoint__url": "http://127.0.0.1:9/v1", "target__api_endpoint__model_id": "m"}


def refused(made: Run, name: str, *words: str) -> None:
    assert made.code == 3, made.printed
    assert made.error["name"] == name, made.error
    for word in words:
        assert word in made.error["message"] + made.error["recovery"], made.error
    assert made.error["recovery"] and "Traceback" not in made.printed
    assert not list(made.output.glob("*")) if made.output.exists() else True


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "broken")


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that gives every request the same answer."""
    status, body = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


CONFIGS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"backend": "lmeval"}, "config_invalid", ["backend='lmeval'", "lm_eval or nemo_evaluator"]),
    ({"batch_size": 0}, "config_invalid", ["batch_size=0"]),
    ({"seed": "one"}, "config_invalid", ["seed='one'"]),
    ({"apply_chat_template": "yes"}, "config_invalid", ["apply_chat_template='yes'", "true or false"]),
    ({"limit": 0}, "no_samples", ["limit=0"]),
    ({"limit": "ten"}, "config_invalid", ["limit='ten'"]),
    ({"device": "gpu"}, "config_invalid", ["device='gpu'", "cpu or auto"]),
    ({"target": "model"}, "config_invalid", ["target='model'", "a mapping"]),
    ({"tasks": []}, "unknown_task", ["tasks=[]"]),
    ({"tasks_dir": "/nowhere/tasks"}, "unknown_task", ["/nowhere/tasks"]),
    ({"baseline": "/nowhere/results"}, "bad_baseline", ["/nowhere/results"]),
    ({"target__untrained": None}, "no_target", ["target.checkpoint", "target.api_endpoint"]),
    ({"target__untrained": "/nowhere/model"}, "no_target", ["/nowhere/model", "config.json"]),
    ({"target__checkpoint": "/nowhere/model"}, "bad_hf_checkpoint", ["/nowhere/model: no such directory"]),
    ({"target__adapter": "/nowhere/lora"}, "bad_hf_checkpoint", ["base model"]),
    ({"target__api_endpoint__model_id": "m"}, "no_target", ["target.api_endpoint.url"]),
    ({"target__api_endpoint__url": "http://127.0.0.1:9/v1"}, "no_model_id", ["model_id"]),
    (ENDPOINT | {"target__api_endpoint__url": "localhost:80"}, "endpoint_unreachable", ["http"]),
    (ENDPOINT | {"target__api_endpoint__url": "https://me:pw@h/v1"}, "missing_api_key", ["api_key_name"]),
    (ENDPOINT | {"target__api_endpoint__type": "embeddings"}, "config_invalid", ["chat or completions"]),
    (ENDPOINT | {"target__api_endpoint__api_key_name": "NO_SUCH_KEY"}, "missing_api_key", ["NO_SUCH_KEY"]),
    (ENDPOINT | {"target__api_endpoint__parallelism": 0}, "config_invalid", ["target.api_endpoint.parallelism=0"]),
    (
        ENDPOINT
        | {"target__api_endpoint__type": "chat", "target__api_endpoint__url": "http://127.0.0.1:9/v1/completions"},
        "wrong_endpoint_type",
        ["type is chat", "/completions"],
    ),
    (
        ENDPOINT | {"target__api_endpoint__request_timeout": 5},
        "endpoint_unreachable",
        ["127.0.0.1:9", "Connection refused"],
    ),
]


@pytest.mark.parametrize(
    ("changes", "name", "words"), CONFIGS, ids=lambda v: None if isinstance(v, list) else str(v)[:60]
)
def test_bad_configs_are_refused(tmp_path: Path, changes: dict[str, Any], name: str, words: list[str]) -> None:
    refused(run(tmp_path, config(**changes)), name, *words)


def test_checkpoint_and_endpoint_at_once(tmp_path: Path, checkpoint: Path) -> None:
    made = run(tmp_path, config(target__checkpoint=str(checkpoint), **ENDPOINT))
    refused(made, "two_targets", str(checkpoint), "target.api_endpoint.url", "null")


@pytest.mark.parametrize("missing", ["config.json", ".safetensors", "tokenizer"])
def test_checkpoint_without_one_of_its_parts(tmp_path: Path, broken: Path, missing: str) -> None:
    for path in broken.glob(f"*{missing}*"):
        path.unlink()
    refused(run(tmp_path / "run", config(target__checkpoint=str(broken))), "bad_hf_checkpoint", str(broken), missing)


def test_megatron_checkpoint_where_a_hugging_face_one_belongs(tmp_path: Path) -> None:
    (tmp_path / "megatron" / "iter_0000100").mkdir(parents=True)
    made = run(tmp_path / "run", config(target__checkpoint=str(tmp_path / "megatron")))
    refused(made, "bad_hf_checkpoint", "Megatron", "convert/megatron_to_hf")


def test_damaged_weights(tmp_path: Path, broken: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    made = run(tmp_path / "run", config(target__checkpoint=str(broken), tasks=["roman_numerals"], limit=2))
    refused(made, "bad_hf_checkpoint", str(broken), "cannot be loaded")


def test_weights_that_lack_a_layer_are_not_scored_with_random_numbers(tmp_path: Path, broken: Path) -> None:
    settings = json.loads((broken / "config.json").read_text())
    lacking = settings["num_hidden_layers"]
    settings["num_hidden_layers"] += 1
    (broken / "config.json").write_text(json.dumps(settings))
    made = run(tmp_path / "run", config(target__checkpoint=str(broken), limit=2))
    refused(made, "bad_hf_checkpoint", "weights are missing", f"model.layers.{lacking}.")


def test_model_that_diverged(tmp_path: Path, broken: Path) -> None:
    _change_weights(broken / "model.safetensors", lambda value: math.nan)
    made = run(tmp_path / "run", config(target__checkpoint=str(broken), limit=2))
    refused(made, "nan_score", str(broken), "not finite")


def test_weights_that_overflow(tmp_path: Path, broken: Path) -> None:
    _change_weights(broken / "model.safetensors", lambda value: value * 1e15)  # finite; products of four are not
    made = run(tmp_path / "run", config(target__checkpoint=str(broken), limit=2))
    refused(made, "nan_score", "roman_numerals_choice", "not a number")


def _change_weights(weights: Path, change: Callable[[float], float]) -> None:
    data = weights.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    weights.write_bytes(data[:start] + array("f", map(change, array("f", data[start:]))).tobytes())


def test_no_chat_template(tmp_path: Path, broken: Path) -> None:
    settings = json.loads((broken / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (broken / "tokenizer_config.json").write_text(json.dumps(settings))
    (broken / "chat_template.jinja").unlink(missing_ok=True)
    made = run(tmp_path / "run", config(target__checkpoint=str(broken), limit=2))
    refused(made, "no_chat_template", "apply_chat_template=false")


def test_unknown_task_names_the_closest(tmp_path: Path) -> None:
    refused(run(tmp_path, config(tasks=["roman_numeral"])), "unknown_task", "roman_numeral ", "roman_numerals")


def test_task_file_names_data_that_are_not_there(tmp_path: Path) -> None:
    tasks = shutil.copytree(STEP / "tasks", tmp_path / "tasks")
    (tasks / "roman_numerals" / "test.jsonl").unlink()
    made = run(tmp_path / "run", config(tasks_dir=str(tasks)))
    refused(made, "bad_task_data", "roman_numerals.yaml", "test.jsonl")


@pytest.mark.parametrize("rows", ["", "{not json\n"], ids=["empty", "not json"])
def test_task_data_without_a_sample(tmp_path: Path, rows: str) -> None:
    tasks = shutil.copytree(STEP / "tasks", tmp_path / "tasks")
    (tasks / "roman_numerals" / "test.jsonl").write_text(rows)
    refused(
        run(tmp_path / "run", config(tasks_dir=str(tasks), tasks=["roman_numerals"])), "bad_task_data", "roman_numerals"
    )


def test_task_file_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: [unclosed\n")
    refused(run(tmp_path / "run", config(tasks_dir=str(tmp_path))), "bad_task_data", "mine.yaml", "line")


CHAT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "M"}}]}
TEXT = {"choices": [{"index": 0, "text": "M"}]}


def asking(folder: Path, url: str, kind: str, **more: Any) -> Run:
    cfg = config(**(ENDPOINT | {"target__api_endpoint__url": url, "target__api_endpoint__type": kind}), **more)
    return run(folder, cfg | {"batch_size": 1})


@pytest.mark.parametrize("answering", [(200, CHAT)], indirect=True)
def test_chat_endpoint_cannot_score_given_answers(tmp_path: Path, answering: str) -> None:
    refused(asking(tmp_path, answering, "chat"), "wrong_endpoint_type", "roman_numerals_choice", "chat endpoint")


@pytest.mark.parametrize("answering", [(200, TEXT)], indirect=True)
def test_scoring_given_answers_needs_the_tokenizer(tmp_path: Path, answering: str) -> None:
    made = asking(tmp_path, answering, "completions")
    refused(made, "missing_tokenizer_for_logprobs", "target.api_endpoint.tokenizer", "roman_numerals_choice")


@pytest.mark.parametrize("answering", [(200, TEXT)], indirect=True)
def test_completions_endpoint_without_prompt_logprobs(tmp_path: Path, answering: str) -> None:
    made = asking(tmp_path, answering, "completions", target__api_endpoint__tokenizer=str(TINY_LLAMA))
    refused(made, "wrong_endpoint_type", "log-probabilities of the prompt")


@pytest.mark.parametrize(
    ("answering", "name", "word"),
    [
        ((404, {"error": "no model m"}), "endpoint_refused", "HTTP 404"),
        ((200, {"hello": "world"}), "wrong_endpoint_type", "no choices"),
        ((200, TEXT), "wrong_endpoint_type", "not a chat one"),
    ],
    indirect=["answering"],
)
def test_server_that_is_no_such_endpoint(tmp_path: Path, answering: str, name: str, word: str) -> None:
    refused(asking(tmp_path, answering, "chat", tasks=["roman_numerals"]), name, word)


def test_an_environment_without_the_launcher_is_told(tmp_path: Path) -> None:
    made = run(
        tmp_path,
        config("tiny_chat"),
        python=payload_python("data"),
        NEMO_EVALUATOR_MODEL_ID="m",
        NEMO_EVALUATOR_MODEL_URL="http://h/v1",
        NVIDIA_API_KEY="k",
    )
    refused(made, "framework_cli_not_found", "-c tiny", "backend=lm_eval")


LAUNCHER: list[tuple[dict[str, Any], dict[str, str], str, str]] = [
    ({}, {}, "no_target", "NEMO_EVALUATOR_MODEL_URL"),
    ({}, {"NEMO_EVALUATOR_MODEL_URL": "http://h/v1"}, "no_model_id", "NEMO_EVALUATOR_MODEL_ID"),
    (
        {},
        {"NEMO_EVALUATOR_MODEL_URL": "http://h/v1", "NEMO_EVALUATOR_MODEL_ID": "m"},
        "missing_api_key",
        "NVIDIA_API_KEY",
    ),
    ({"target__checkpoint": "/models/hf"}, {}, "no_target", "backend=lm_eval"),
    ({"deployment": {"type": "generic", "checkpoint_path": None}}, {}, "bad_megatron_checkpoint_path", "iter_*"),
    (
        {"deployment": {"type": "generic", "checkpoint_path": "/no/iter_1"}},
        {},
        "bad_megatron_checkpoint_path",
        "/no/iter_1",
    ),
    ({"evaluation__tasks": []}, {}, "unknown_task", "evaluation.tasks"),
]


@pytest.mark.parametrize(("changes", "env", "name", "word"), LAUNCHER)
def test_bad_launcher_configs(
    tmp_path: Path, changes: dict[str, Any], env: dict[str, str], name: str, word: str
) -> None:
    refused(run(tmp_path, config("tiny_chat", **changes), **env), name, word)


def test_parent_of_megatron_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "ck" / "iter_0000100").mkdir(parents=True)
    made = run(
        tmp_path / "run", config("tiny_chat", deployment={"type": "generic", "checkpoint_path": str(tmp_path / "ck")})
    )
    refused(made, "bad_megatron_checkpoint_path", "iter_0000100")
