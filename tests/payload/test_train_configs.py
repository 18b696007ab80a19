"""Every shipped train config, compiled, is what the library that reads it takes: its targets, arguments and keys.

NeMo-RL and ModelOpt's scripts are in their containers only and cannot be asked here; of the RL configs TRL is asked
what backend=trl makes of them.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from interpreters import payload_python

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.config.compile import compile_job
from nemotron_dagster.project import Project

ROOT = Path(__file__).resolve().parents[2]
CATALOG = load_catalog(Project(None, ROOT / ".nemotron"))
LIBRARIES = {"automodel": "automodel", "megatron_bridge": "megatron_bridge", "dpo": "trl", "rlvr": "trl", "rlhf": "trl"}
SHIPPED = [
    (step.id, config)
    for step in CATALOG.steps.values()
    if step.id.rpartition("/")[2] in LIBRARIES
    for config in step.configs
]
#: Recipes of Megatron-Bridge 0.6.2 take no arguments. These are of the containers that the configs name; what stands
#: for each since is a key of a section, which is checked like any other.
OLDER = {
    "packed_sequence": None,
    "peft": None,
    "seq_length": "model.seq_length",
    "tensor_model_parallel_size": "model.tensor_model_parallel_size",
    "pipeline_model_parallel_size": "model.pipeline_model_parallel_size",
    "context_parallelism": "model.context_parallel_size",
    "sequence_parallelism": "model.sequence_parallel",
}


def modern(library: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config with an older recipe's name and arguments as Megatron-Bridge 0.6.2 spells them."""
    recipe = config.get("recipe")
    if library != "megatron_bridge" or not isinstance(recipe, dict):
        return config
    kept = {k: v for k, v in recipe.items() if k not in OLDER}
    moved = {OLDER[k]: v for k, v in recipe.items() if OLDER.get(k)}
    name = str(kept["_target_"])
    tuned = "_peft_config" if recipe.get("peft") else "_sft_config"
    kept["_target_"] = name.replace("_finetune_config", tuned)
    model = {**(config.get("model") or {}), **{key.partition(".")[2]: v for key, v in moved.items() if key}}
    return {**config, "recipe": kept, "model": model}


@pytest.fixture(scope="module")
def refused() -> dict[str, list[str]]:
    """What the libraries refuse of each shipped config, and of some that are wrong on purpose."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SFT_PACKED_DIR", "SFT_OUTPUT_DIR", "PRETRAIN_BLEND_PATH"):
            patch.setenv(name, "/data/given")
        asked: dict[str, Any] = {}
        for step, config in SHIPPED:
            library = LIBRARIES[step.rpartition("/")[2]]
            train = compile_job(CATALOG.find(step), config).train
            asked[f"{step} {config}"] = {"library": library, "config": modern(library, train)}
    wrong = json.loads(json.dumps(asked["sft/automodel default"]))
    wrong["config"]["dataset"]["rows"] = 3
    wrong["config"]["distributed"]["shards"] = 2
    wrong["config"]["step_scheduler"]["stop"] = 1
    asked["wrong automodel"] = wrong
    wrong = json.loads(json.dumps(asked["sft/automodel default"]))
    wrong["config"]["optimizer"]["_target_"] = "torch.optim.AdamZ"
    asked["wrong target"] = wrong
    wrong = json.loads(json.dumps(asked["sft/megatron_bridge default"]))
    wrong["config"]["recipe"]["layers"] = 2
    wrong["config"]["train"]["iterations"] = 5
    asked["wrong megatron_bridge"] = wrong
    wrong = json.loads(json.dumps(asked["rl/nemo_rl/rlvr tiny"]))
    wrong["config"]["grpo"]["num_generations_per_prompt"] = 1
    asked["wrong trl"] = wrong
    done = subprocess.run(
        [payload_python("train"), str(Path(__file__).with_name("check_train_configs.py"))],
        input=json.dumps(asked, default=str),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("step", "config"), SHIPPED)
def test_the_library_takes_the_config(step: str, config: str, refused: dict[str, list[str]]) -> None:
    assert refused[f"{step} {config}"] == []


def test_what_a_library_does_not_take_is_found(refused: dict[str, list[str]]) -> None:
    found = {line.partition(":")[0] for line in refused["wrong automodel"]}
    assert {"dataset", "distributed", "step_scheduler"} <= found, refused["wrong automodel"]
    assert "AdamZ" in refused["wrong target"][0]
    assert "num_generations_per_prompt" in refused["wrong trl"][0]
    assert any("'layers'" in line for line in refused["wrong megatron_bridge"])
    assert "train.iterations: TrainingConfig has no such field" in refused["wrong megatron_bridge"]
