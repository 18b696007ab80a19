"""The engine counts a model's parameters from its config alone; transformers, building it without memory, agrees."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from interpreters import payload_python

from nemotron_dagster.sizing.shape import from_config

BUILD = """
import json, sys, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
found = []
for given in json.load(sys.stdin):
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found.append([model.num_parameters(), config.to_dict()])
print("\\n" + json.dumps(found, default=str))
"""
SIZES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 300,
}  # fmt: skip
DEEP = {**SIZES, "num_hidden_layers": 3}
MIXTURE = {**DEEP, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
HYBRID = {
    **SIZES, "hybrid_override_pattern": "ME*-M", "head_dim": 16, "mamba_num_heads": 4, "mamba_head_dim": 8,
    "n_groups": 2, "ssm_state_size": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 28,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **DEEP},
    "llama, tied, with biases": {
        "model_type": "llama", **DEEP, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
    },
    "mistral": {"model_type": "mistral", **DEEP, "head_dim": 32},
    "qwen2": {"model_type": "qwen2", **DEEP},
    "qwen3": {"model_type": "qwen3", **DEEP, "head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": {"model_type": "qwen3_moe", **MIXTURE},
    "qwen3_moe, with dense layers": {"model_type": "qwen3_moe", **MIXTURE, "mlp_only_layers": [1]},
    "nemotron_h": {"model_type": "nemotron_h", **HYBRID},
    "nemotron_h, latent experts": {"model_type": "nemotron_h", **HYBRID, "moe_latent_size": 16, "use_bias": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def built() -> dict[str, tuple[int, dict[str, Any]]]:
    """Name -> what transformers counts, and the config as it would be saved."""
    done = subprocess.run(
        [payload_python("train"), "-c", BUILD],
        input=json.dumps(list(CONFIGS.values())),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return dict(zip(CONFIGS, map(tuple, found), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_count_is_that_of_transformers(name: str, built: dict[str, tuple[int, dict[str, Any]]]) -> None:
    count, saved = built[name]
    assert from_config(CONFIGS[name]).parameters() == count
    assert from_config(saved).parameters() == count  # as config.json has it: other names, and defaults written out
