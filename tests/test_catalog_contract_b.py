"""The public contract of nine steps, as facts that people's overlays and scripts depend on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
STEPS = ROOT / "steps"
NEMO = "nvcr.io/nvidia/nemo:25.11.nemotron_3_nano"
NEMO_RL = "nvcr.io/nvidia/nemo-rl:v0.6.0"
STATUS = "Status: the payload is not built yet; running it exits with code 9."


class Facts(NamedTuple):
    """Ports end with ``?`` where optional."""

    consumes: list[str]
    produces: list[str]
    configs: list[str]
    launch: str
    resources: tuple[int, int]  # nodes, GPUs per node
    default: str
    image: str | None


FACTS = {
    "peft/automodel": Facts(
        ["training_jsonl", "checkpoint_hf?"],
        ["checkpoint_lora"],
        ["default", "tiny"],
        "torchrun",
        (1, 2),
        "default",
        None,
    ),
    "peft/megatron_bridge": Facts(
        ["packed_parquet", "checkpoint_megatron"],
        ["checkpoint_lora"],
        ["default", "tiny"],
        "torchrun",
        (1, 8),
        "default",
        NEMO,
    ),
    "pretrain/automodel": Facts(
        ["binidx"], ["checkpoint_hf"], ["default", "tiny"], "torchrun", (1, 8), "default", None
    ),
    "pretrain/megatron_bridge": Facts(
        ["binidx", "checkpoint_megatron?"],
        ["checkpoint_megatron"],
        ["default", "tiny"],
        "torchrun",
        (1, 8),
        "default",
        NEMO,
    ),
    "rl/nemo_rl/dpo": Facts(
        ["training_jsonl", "checkpoint_megatron"],
        ["checkpoint_megatron"],
        ["default", "tiny"],
        "ray",
        (1, 8),
        "default",
        NEMO_RL,
    ),
    "rl/nemo_rl/rlhf": Facts(
        ["training_jsonl", "checkpoint_megatron", "checkpoint_hf"],
        ["checkpoint_megatron"],
        ["default", "tiny"],
        "ray",
        (1, 8),
        "default",
        NEMO_RL,
    ),
    "rl/nemo_rl/rlvr": Facts(
        ["training_jsonl", "checkpoint_megatron"],
        ["checkpoint_megatron"],
        ["default", "nemo_gym", "tiny"],
        "ray",
        (1, 8),
        "default",
        NEMO_RL,
    ),
    "sft/megatron_bridge": Facts(
        ["packed_parquet", "checkpoint_megatron?"],
        ["checkpoint_megatron"],
        ["default", "tiny"],
        "torchrun",
        (1, 8),
        "default",
        NEMO,
    ),
    "translate/nemo_curator": Facts(
        ["filtered_jsonl"], ["translated_jsonl"], ["default"], "python", (1, 0), "default", None
    ),
}

# (step, consumed type) -> the step that makes it in the built-in catalog pipeline; all other ports have none.
PRODUCERS = {
    ("peft/automodel", "training_jsonl"): "curate/nemo_curator",
    ("peft/megatron_bridge", "packed_parquet"): "data_prep/sft_packing",
    ("peft/megatron_bridge", "checkpoint_megatron"): "pretrain/megatron_bridge",
    ("pretrain/automodel", "binidx"): "data_prep/pretrain_prep",
    ("pretrain/megatron_bridge", "binidx"): "data_prep/pretrain_prep",
    ("rl/nemo_rl/dpo", "training_jsonl"): "data_prep/rl_prep",
    ("rl/nemo_rl/dpo", "checkpoint_megatron"): "sft/megatron_bridge",
    ("rl/nemo_rl/rlhf", "training_jsonl"): "data_prep/rl_prep",
    ("rl/nemo_rl/rlhf", "checkpoint_megatron"): "sft/megatron_bridge",
    ("rl/nemo_rl/rlvr", "training_jsonl"): "data_prep/rl_prep",
    ("rl/nemo_rl/rlvr", "checkpoint_megatron"): "sft/megatron_bridge",
    ("sft/megatron_bridge", "packed_parquet"): "data_prep/sft_packing",
    ("sft/megatron_bridge", "checkpoint_megatron"): "pretrain/megatron_bridge",
    ("translate/nemo_curator", "filtered_jsonl"): "curate/nemo_curator",
}

each_step = pytest.mark.parametrize("step_id", sorted(FACTS))


def manifest(step_id: str) -> dict[str, Any]:
    return tomllib.loads((STEPS / step_id / "step.toml").read_text(encoding="utf-8"))


def runspec(step_id: str) -> dict[str, Any]:
    source = (STEPS / step_id / "step.py").read_text(encoding="utf-8")
    block = re.search(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", source)
    assert block, f"{step_id}/step.py: no script block"
    spec: dict[str, Any] = tomllib.loads(re.sub(r"(?m)^# ?", "", block.group(1)))["tool"]["runspec"]
    return spec


def planned(step_id: str) -> bool:
    return bool(manifest(step_id)["step"]["payload"] == "planned")


def ports(entries: list[dict[str, Any]]) -> list[str]:
    return [e["type"] + ("" if e.get("required", True) else "?") for e in entries]


@each_step
def test_manifest(step_id: str) -> None:
    found, facts = manifest(step_id), FACTS[step_id]
    assert (found["step"]["id"], found["step"]["category"]) == (step_id, step_id.split("/", maxsplit=1)[0])
    assert found["step"]["payload"] in ("planned", "ready")
    assert ports(found["consumes"]) == facts.consumes
    assert ports(found["produces"]) == facts.produces
    assert 3 <= len(found["strategies"]) <= 6
    assert found["errors"] and all(e["recovery"] for e in found["errors"])


@each_step
def test_every_port_names_its_config_key(step_id: str) -> None:
    found = manifest(step_id)
    binds = [port["bind"] for port in found["consumes"] + found["produces"]]
    entries = [e for bind in binds for e in (bind if isinstance(bind, list) else [bind])]
    keys = [e["key"] if isinstance(e, dict) else e for e in entries]
    assert all(re.fullmatch(r"\w+(\.\w+)*", key) for key in keys)
    assert len(set(keys)) == len(keys), "two ports would fill one key"


def test_default_producers() -> None:
    wired = {(s, p["type"]): p["from"] for s in FACTS for p in manifest(s)["consumes"] if "from" in p}
    assert wired == PRODUCERS


@each_step
def test_runspec(step_id: str) -> None:
    found, facts = runspec(step_id), FACTS[step_id]
    assert found["name"] == f"steps/{step_id}"
    assert found["run"]["launch"] == facts.launch
    assert "cmd" not in found["run"]
    assert (found["config"]["dir"], found["config"]["default"]) == ("./config", facts.default)
    assert (found["resources"]["nodes"], found["resources"]["gpus_per_node"]) == facts.resources
    assert found.get("image") == facts.image


@each_step
def test_configs(step_id: str) -> None:
    folder = STEPS / step_id / "config"
    assert sorted(p.stem for p in folder.iterdir()) == FACTS[step_id].configs
    if (folder / "tiny.yaml").exists():
        first = (folder / "tiny.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert ("CPU-sized values come with the payload" in first) is planned(step_id)


@each_step
def test_readme_says_whether_it_runs(step_id: str) -> None:
    text = (STEPS / step_id / "README.md").read_text(encoding="utf-8")
    assert (text.splitlines()[2] == STATUS) is planned(step_id)
    assert f"nemotron steps run {step_id} -c " in text
    assert all(f"| `{name}` |" in text for name in FACTS[step_id].configs)


def test_running_a_planned_step_exits_with_code_9() -> None:
    env = {k: v for k, v in os.environ.items() if k != "NEMOTRON_MESSAGES"} | {"PYTHONDONTWRITEBYTECODE": "1"}
    for step_id in filter(planned, FACTS):
        command = [sys.executable, str(STEPS / step_id / "step.py")]
        done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
        assert done.returncode == 9
        assert f"{step_id} is in the catalog, but its payload is not built yet" in done.stderr
