"""convert/hf_to_megatron and convert/megatron_to_hf: exact both ways, on the CPU, offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import forks
import pytest
from interpreters import STEPS, payload_python
from omegaconf import OmegaConf
from payload_run import Outcome, run_payload

from nemotron_dagster.artifacts.types import checkpoint_hf, checkpoint_megatron

TO_MEGATRON, TO_HF = STEPS / "convert" / "hf_to_megatron", STEPS / "convert" / "megatron_to_hf"
WORK = Path(__file__).with_name("megatron_work.py")
BAD_INPUT = 3


def convert(step: Path, folder: Path, overrides: dict[str, Any], python: str = "", **env: str) -> Outcome:
    """Run a step's tiny config with ``overrides``: as a fork, or with an interpreter, with imports of its own."""
    cfg = OmegaConf.to_container(OmegaConf.load(step / "config" / "tiny.yaml"))
    assert isinstance(cfg, dict)
    settings = {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf-home"), "TMPDIR": str(folder), **env}
    if python:
        return run_payload(step, {**cfg, **overrides}, folder, python, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    config, messages, log = folder / "config.yaml", folder / "messages.jsonl", folder / "log"
    config.write_text(json.dumps({**cfg, **overrides}))
    messages.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    env = {**os.environ, "NEMOTRON_MESSAGES": str(messages), "PYTHONPATH": str(STEPS), **settings}
    status = forks.start("megatron", step / "step.py", "--config", str(config), env=env, cwd=folder, log=log).wait(900)
    lines = messages.read_text().splitlines() if messages.exists() else []
    return Outcome(status, [json.loads(line) for line in lines], log.read_text())


def work(task: str, *arguments: object) -> Any:
    """A task of megatron_work.py in the train environment; returns what it printed."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return json.loads(forks.python("megatron", code, WORK, task, *arguments))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Megatron checkpoint of the tiny config."""
    folder = tmp_path_factory.mktemp("tiny")
    done = convert(TO_MEGATRON, folder, {"megatron_path": str(folder / "megatron")}, payload_python("train"))
    assert done.status == 0, done.stderr[-3000:]
    assert done.facts["base_model"] == "tiny_llama" and done.facts["dtype"] == "float32"
    assert not list(folder.glob("tiny-llama-*"))  # the model was made in TMPDIR, and is not left there
    return folder / "megatron"


def test_tiny_is_a_whole_megatron_checkpoint_that_records_its_base_and_tokenizer(tiny: Path) -> None:
    facts = checkpoint_megatron.validate(tiny)
    assert facts["latest"] == "iter_0000000" and facts["base"] == "tiny_llama"
    assert facts["tokenizer_fingerprint"] and facts["chat_template_fingerprint"]
    assert "tiny-llama-" not in (tiny / "iter_0000000" / "run_config.yaml").read_text()  # the model was made for once


def test_tiny_goes_back_to_the_model_that_it_came_from(tiny: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny, moved)
    (moved / "iter_0000007").mkdir()  # of a save that was killed
    done = convert(TO_HF, tmp_path, {"megatron_path": str(moved), "hf_path": str(tmp_path / "hf")})
    assert done.status == 0, done.stderr[-3000:]
    facts = checkpoint_hf.validate(tmp_path / "hf")
    assert facts["parameters"] == done.facts["parameters"] == 477_056 and facts["chat_template"]
    assert facts["tokenizer_fingerprint"] == checkpoint_megatron.validate(tiny)["tokenizer_fingerprint"]
    alone = tmp_path / "alone"
    short = {"TMPDIR": str(tmp_path)}  # Megatron makes sockets there, whose paths have at most 107 characters
    again = convert(TO_HF, alone, {"hf_path": str(alone / "hf")}, payload_python("train"), **short)  # makes its own
    assert again.status == 0, again.stderr[-3000:]
    one, other = (folder / "hf" / "model.safetensors" for folder in (tmp_path, alone))
    assert one.read_bytes() == other.read_bytes()


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    report = work("conversions", tmp_path_factory.mktemp("conversions"))
    assert isinstance(report, dict)
    return report


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Qwen3Moe"])
def test_round_trip_is_exact_and_the_model_answers_as_before(conversions: dict[str, Any], architecture: str) -> None:
    dtype = "bfloat16" if architecture == "Llama" else "float32"
    assert conversions[architecture] == [True, True, dtype, dtype]


def test_architecture_without_a_mapping_and_one_that_needs_a_gpu_are_refused(conversions: dict[str, Any]) -> None:
    name, message, left = conversions["GPT2"]
    assert name == "unsupported_or_custom_architecture" and "GPT2LMHeadModel" in message and not left
    name, message, left = conversions["NemotronH"]
    assert name == "cpu_unsupported" and "CUDA devices only" in message and not left


def test_checkpoint_of_two_tensor_parallel_ranks_is_exported_by_one(tmp_path: Path) -> None:
    command = [payload_python("train"), str(WORK), "split", "Llama", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(STEPS), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    quiet = subprocess.DEVNULL
    ranks = [subprocess.Popen([*command, rank], env={**env, "RANK": rank}, stdout=quiet, stderr=quiet) for rank in "01"]
    assert [rank.wait(timeout=400) for rank in ranks] == [0, 0]
    shapes = [json.loads((tmp_path / f"shape-{rank}.json").read_text()) for rank in "01"]
    assert shapes == [[197, 64], [197, 64]]  # each has half of the embedding
    facts = checkpoint_megatron.validate(tmp_path / "megatron")
    assert facts["ranks"] == facts["parallel"]["tp"] == 2
    done = convert(TO_HF, tmp_path, {"megatron_path": str(tmp_path / "megatron"), "hf_path": str(tmp_path / "hf")})
    assert done.status == 0, done.stderr[-3000:]
    assert work("same", tmp_path / "source", tmp_path / "hf") is True


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("overrides", "files", "name", "part"),
    [
        ({"hf_model_id": None}, {}, "config_invalid", "hf_model_id is not set"),
        ({"hf_model_id": "{}/none"}, {}, "source_not_clean_hf_checkpoint", "none: no such directory"),
        ({"hf_model_id": "{}"}, {"config.json": "{{}}"}, "source_not_clean_hf_checkpoint", "has no weights"),
        ({"hf_model_id": "{}"}, {"adapter_config.json": "{{}}"}, "source_not_clean_hf_checkpoint", "an adapter"),
        (
            {"hf_model_id": "{}"},
            {"config.json": "{{}}", "model.safetensors": "torn"},
            "source_not_clean_hf_checkpoint",
            "model.safetensors: ",
        ),
        ({"torch_dtype": "int8"}, {}, "config_invalid", "torch_dtype=int8"),
        ({"distributed": True}, {}, "config_invalid", "tiny_llama is made and converted in one process"),
        (
            {"hf_model_id": "org/model", "distributed": True, "script": {"path": "/nowhere/convert.py"}},
            {},
            "conversion_script_missing",
            "script.path=/nowhere/convert.py",
        ),
    ],
)
def test_bad_source_is_told_before_anything_is_written(
    tmp_path: Path, overrides: dict[str, Any], files: dict[str, str], name: str, part: str
) -> None:
    given, out = tmp_path / "given", tmp_path / "megatron"
    given.mkdir()
    write(given, files)
    filled = {k: v.format(given) if isinstance(v, str) else v for k, v in overrides.items()}
    done = convert(TO_MEGATRON, tmp_path, {"megatron_path": str(out), **filled})
    assert done.status == BAD_INPUT, done.stderr[-2000:]
    assert done.error["name"] == name and part in done.error["message"] and done.error["recovery"]
    assert not out.exists() and "Traceback" not in done.stderr


WHOLE = {".metadata": "x", "metadata.json": "{}", "__0_0.distcp": "x"}


def _in(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


@pytest.mark.parametrize(
    ("overrides", "files", "name", "part"),
    [
        ({"megatron_path": "{}/none"}, {}, "bad_megatron_checkpoint_path", "no such directory"),
        ({"megatron_path": "{}"}, {"config.json": "{}"}, "bad_megatron_checkpoint_path", "no Megatron checkpoint"),
        (
            {"megatron_path": "{}"},
            _in("iter_0000003", {".metadata": "x", "__0_0.distcp": "x"}),
            "incomplete_or_async_checkpoint",
            "iter_0000003 was not saved to its end",
        ),
        ({"megatron_path": "{}"}, WHOLE, "missing_hf_config_or_tokenizer", "run_config.yaml names no model"),
        (
            {"megatron_path": "{}", "hf_model_id": "{}"},
            WHOLE | {"config.json": "{}"},
            "missing_hf_config_or_tokenizer",
            "has no tokenizer_config.json",
        ),
        (
            {"megatron_path": "{}"},
            WHOLE | {"run_config.yaml": "model:\n  hf_model_id: /models/gone\n"},
            "missing_hf_config_or_tokenizer",
            "/models/gone: has no config.json",
        ),
        ({"megatron_path": "{}", "hf_path": "{}/hf"}, WHOLE, "output_path_overlaps_source", "overlaps megatron_path"),
        (
            {"megatron_path": "{}", "hf_model_id": "tiny_llama"},
            WHOLE,
            "incomplete_or_async_checkpoint",
            ".metadata",
        ),
    ],
)
def test_bad_megatron_checkpoint_is_told_before_anything_is_written(
    tmp_path: Path, overrides: dict[str, str], files: dict[str, str], name: str, part: str
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    write(given, files)
    filled = {k: v.format(given) for k, v in overrides.items()}
    done = convert(TO_HF, tmp_path, {"hf_path": str(tmp_path / "hf"), **filled})
    assert done.status == BAD_INPUT, done.stderr[-2000:]
    assert done.error["name"] == name and part in done.error["message"] and done.error["recovery"]
    assert not (tmp_path / "hf").exists() and "Traceback" not in done.stderr


def test_full_disk_is_told(tiny: Path, tmp_path: Path) -> None:
    limited = tmp_path / "python"  # no file above 400 kB
    limited.write_text(f'#!/bin/bash\nulimit -f 400\nexec {payload_python("train")} "$@"\n')
    limited.chmod(0o755)
    overrides = {"megatron_path": str(tiny), "hf_path": str(tmp_path / "hf")}
    done = convert(TO_HF, tmp_path, overrides, python=str(limited))
    assert done.status == BAD_INPUT, done.stderr[-3000:]
    assert done.error["name"] == "disk_full" and str(tmp_path / "hf") in done.error["message"]


def test_truncated_shard_is_named(tiny: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(tiny, torn)
    shard = torn / "iter_0000000" / "__0_0.distcp"
    os.truncate(shard, shard.stat().st_size // 2)
    done = convert(TO_HF, tmp_path, {"megatron_path": str(torn), "hf_path": str(tmp_path / "hf")})
    assert done.status == BAD_INPUT and done.error["name"] == "incomplete_or_async_checkpoint"
    assert "__0_0.distcp: has" in done.error["message"] and not (tmp_path / "hf").exists()


SCRIPT = """
import json, os, sys
from pathlib import Path
Path(__file__).with_name(f"rank{os.environ['RANK']}.json").write_text(json.dumps(sys.argv[1:]))
sys.exit(7 if len(sys.argv) > 20 else 0)
"""


def test_distributed_conversion_becomes_the_script_with_its_flags_and_exit_status(tmp_path: Path) -> None:
    script = tmp_path / "a script.py"
    script.write_text(SCRIPT)
    write(tmp_path / "a b" / "iter_0000002", WHOLE | {"run_config.yaml": "model: {hf_model_id: org/model}\n"})
    sizes = {"distributed": True, "script": {"path": str(script)}, "tp": 2, "pp": 1, "ep": 4, "etp": 1}
    overrides = {**sizes, "megatron_path": str(tmp_path / "a b"), "hf_path": str(tmp_path / "o'ut"), "strict": False}
    done = convert(TO_HF, tmp_path, {**overrides, "trust_remote_code": True}, WORLD_SIZE="8", RANK="0")
    assert done.status == 7
    assert json.loads((tmp_path / "rank0.json").read_text()) == [
        *["export", "--hf-model", "org/model", "--megatron-path", str(tmp_path / "a b" / "iter_0000002")],
        *["--hf-path", str(tmp_path / "o'ut"), "--tp", "2", "--pp", "1", "--ep", "4", "--etp", "1"],
        *["--torch-dtype", "bfloat16", "--trust-remote-code", "--no-progress", "--not-strict", "--distributed-save"],
    ]


def test_distributed_conversion_starts_torchrun_itself_where_nobody_did(tmp_path: Path) -> None:
    script = tmp_path / "convert.py"
    script.write_text(SCRIPT)
    overrides = {"distributed": True, "script": {"path": str(script)}, "tp": 2, "torchrun": {"nproc_per_node": 2}}
    out = str(tmp_path / "out")
    done = convert(TO_MEGATRON, tmp_path, {**overrides, "hf_model_id": "org/model", "megatron_path": out})
    assert done.status == 0, done.stderr[-2000:]
    said = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    words = ["import", "--hf-model", "org/model", "--megatron-path", out, "--tp", "2", "--pp", "1", "--ep", "1"]
    assert said == [[*words, "--etp", "1", "--torch-dtype", "bfloat16"]] * 2


@pytest.mark.parametrize(
    ("sizes", "part"),
    [({}, "8 processes are to convert"), ({"tp": 3}, "tp*pp = 3: 8"), ({"tp": 2, "ep": 3}, "etp*ep*pp = 3: 8")],
)
def test_processes_that_do_not_divide_into_the_parallel_sizes_are_refused(
    tmp_path: Path, sizes: dict[str, int], part: str
) -> None:
    (tmp_path / "convert.py").write_text(SCRIPT)
    script = {"distributed": True, "script": {"path": str(tmp_path / "convert.py")}}
    overrides = {**script, "hf_model_id": "org/model", "torchrun": {"nproc_per_node": 8}, **sizes}
    done = convert(TO_MEGATRON, tmp_path, {**overrides, "megatron_path": str(tmp_path / "out")})
    assert done.status == BAD_INPUT and done.error["name"] == "parallel_sizes_mismatch"
    assert part in done.error["message"]


def test_one_rank_converts_where_one_is_enough(tmp_path: Path) -> None:
    done = convert(TO_MEGATRON, tmp_path, {"megatron_path": str(tmp_path / "out")}, WORLD_SIZE="2", RANK="1")
    assert done.status == 0 and not (tmp_path / "out").exists()
