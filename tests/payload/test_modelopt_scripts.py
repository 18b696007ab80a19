"""The container's example scripts as the ModelOpt steps start them; the script here writes down how it was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from interpreters import STEPS, payload_python

WRITES_DOWN = """
import json, os, sys
from pathlib import Path
here = Path(__file__)
rank = os.environ["RANK"]
(here.parents[2] / f"rank{rank}.json").write_text(json.dumps({"argv": sys.argv[1:], "path": os.environ["PYTHONPATH"]}))
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script two folders deep in a checkout that has a package `modelopt`, under a name with a space."""
    path = tmp_path / "check out" / "examples" / "megatron_bridge" / "it.py"
    path.parent.mkdir(parents=True)
    (tmp_path / "check out" / "modelopt").mkdir()
    path.write_text(WRITES_DOWN)
    return path


def config(step: str, name: str) -> dict[str, Any]:
    text = (STEPS / "optimize/modelopt" / step / "config" / f"{name}.yaml").read_text("utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text.replace("${oc.env:NEMO_RUN_DIR,${oc.env:PWD}/output}", "/out"))
    return {k: v for k, v in loaded.items() if k not in ("run", "wandb_wrapper")}


def start(
    step: str, cfg: dict[str, Any], folder: Path, python: str = sys.executable, **env: str
) -> subprocess.CompletedProcess[str]:
    file = folder / "config.json"
    file.write_text(json.dumps(cfg))
    messages = str(folder / "messages.jsonl")
    return subprocess.run(
        [python, str(STEPS / "optimize/modelopt" / step / "step.py"), "--config", str(file)],
        env={**os.environ, "PYTHONPATH": "before", "NEMOTRON_MESSAGES": messages, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=folder,
    )


def test_rank_of_a_launcher_becomes_the_script_and_keeps_its_exit_code(script: Path, tmp_path: Path) -> None:
    cfg = config("quantize", "default")
    cfg["script"]["path"] = str(script)
    cfg["args"] |= {"prompts": 'Hello!|It\'s "1 $HOME"', "compress": False}
    cfg["extra_args"] = ["--new-flag", "a b"]
    done = start("quantize", cfg, tmp_path, RANK="0", WORLD_SIZE="16", STATUS="7")
    assert done.returncode == 7, done.stderr
    told = json.loads((script.parents[2] / "rank0.json").read_text())
    assert told["argv"] == [
        *("--hf-model-id", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16", "--trust-remote-code"),
        *("--export-quant-cfg", "fp8", "--megatron-save-path", "/out/optimize/quantize/super3-fp8"),
        *("--tp", "8", "--pp", "2", "--ep", "8", "--etp", "1", "--calib-size", "512"),
        *("--prompts", 'Hello!|It\'s "1 $HOME"', "--new-flag", "a b"),
    ]
    assert told["path"] == f"{script.parents[2]}:before"
    result = json.loads((tmp_path / "messages.jsonl").read_text())
    assert result["facts"]["backend"] == "script" and result["facts"]["script"] == str(script)


def test_torchrun_starts_the_processes_and_flags_keep_their_underscores(script: Path, tmp_path: Path) -> None:
    cfg = config("prune", "default")
    cfg["script"]["path"] = str(script)
    cfg["args"] |= {"prune_target_params": None, "prune_export_config": {"hidden_size": 3072, "num_layers": 32}}
    cfg["args"]["hparams_to_skip"] = ["num_attention_heads", "hidden_size"]
    done = start("prune", cfg, tmp_path, payload_python("train"))
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        told = json.loads((script.parents[2] / f"rank{rank}.json").read_text())
        assert told["argv"] == [
            *("--hf_model_name_or_path", "Qwen/Qwen3-8B", "--output_hf_path", "/out/optimize/prune/pruned-hf"),
            *("--pp_size", "2", "--prune_export_config", '{"hidden_size": 3072, "num_layers": 32}'),
            *("--hparams_to_skip", "num_attention_heads", "hidden_size", "--trust_remote_code"),
        ]
    assert not (script.parents[2] / "rank2.json").exists()


def test_blend_reaches_the_distillation_script_as_a_list(script: Path, tmp_path: Path) -> None:
    for name in ("a.bin", "a.idx"):
        (tmp_path / name).write_text("")
    (tmp_path / "blend.json").write_text(json.dumps({"train": ["0.5", "a", 0.5, "a"]}))
    cfg = config("distill", "default")
    cfg["script"]["path"] = str(script)
    cfg["args"]["data_paths"] = str(tmp_path / "blend.json")
    done = start("distill", cfg, tmp_path, RANK="0", WORLD_SIZE="8")
    assert done.returncode == 0, done.stderr
    argv = json.loads((script.parents[2] / "rank0.json").read_text())["argv"]
    at = argv.index("--data_paths")
    assert argv[at + 1 : at + 5] == ["0.5", f"{tmp_path}/a", "0.5", f"{tmp_path}/a"] and argv[at + 5].startswith("--")
    assert "--use_mock_data" not in argv and argv[argv.index("--lr") + 1] == "0.0001"


def test_flags_of_older_configs_stand_at_the_root(script: Path, tmp_path: Path) -> None:
    cfg = {"args": {"hf_model_id": "a/b", "megatron_save_path": "/out"}, "calib_size": 8, "hf_model_id": "c/d"}
    done = start("quantize", {**cfg, "script": {"path": str(script)}}, tmp_path, RANK="0", WORLD_SIZE="1")
    assert done.returncode == 0, done.stderr
    argv = json.loads((script.parents[2] / "rank0.json").read_text())["argv"]
    assert argv[argv.index("--hf-model-id") + 1] == "a/b" and argv[argv.index("--calib-size") + 1] == "8"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"script": {"path": "/none/it.py"}}, "/none/it.py: no such file; it comes with the container nvcr.io/nvidia"),
        ({"script": {"flag_style": "dash"}}, "script.flag_style=dash"),
        ({"script": "it.py"}, "script='it.py'"),
        ({"torchrun": {"nproc_per_node": "all"}}, "nproc_per_node='all'"),
        ({"args": {"pp_size": 3}}, "not a multiple of args.pp_size=3"),
        ({"args": {"prune_target_params": None, "prune_export_config": {"num_layers": 31}}}, "num_layers=31"),
    ],
)
def test_settings_that_no_script_would_take_are_told(
    script: Path, tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    cfg = config("prune", "default")
    cfg["script"]["path"] = str(script)
    for key, value in change.items():
        cfg[key] = {**cfg[key], **value} if isinstance(value, dict) else value
    done = start("prune", cfg, tmp_path)
    assert done.returncode == 3 and part in done.stderr and "Traceback" not in done.stderr, done.stderr
