"""examples/post_training_graph for real: every edge between the steps closes, on a CPU and offline.

It is one test: the pipeline costs minutes, and what is asked of it afterwards costs seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from helpers import REPO
from interpreters import STEPS, payload_python

EXAMPLE = REPO / "examples/post_training_graph"
TYPES = {
    "source/numerals": "raw_jsonl",
    "curate/nemo_curator": "filtered_jsonl",
    "data_prep/pretrain_prep": "binidx",
    "data_prep/sft_packing": "packed_parquet",
    "data_prep/rl_prep": "training_jsonl",
    "pretrain/automodel": "checkpoint_hf",
    "pretrain/megatron_bridge": "checkpoint_megatron",
    "convert/hf_to_megatron": "checkpoint_megatron",
    "convert/megatron_to_hf": "checkpoint_hf",
    "convert/merge_lora": "checkpoint_hf",
    "sft/automodel": "checkpoint_hf",
    "sft/megatron_bridge": "checkpoint_megatron",
    "peft/automodel": "checkpoint_lora",
    "peft/megatron_bridge": "checkpoint_lora",
    "rl/nemo_rl/dpo": "checkpoint_megatron",
    "rl/nemo_rl/rlvr": "checkpoint_megatron",
    "rl/nemo_rl/rlhf": "checkpoint_megatron",
    "optimize/modelopt/quantize": "checkpoint_megatron",
    "optimize/modelopt/prune": "checkpoint_hf",
    "optimize/modelopt/distill": "checkpoint_megatron",
    "eval/model_eval": "eval_results",
}
TRAINED = ("pretrain/", "sft/", "peft/", "rl/nemo_rl/dpo", "optimize/modelopt/distill")
REWARDED = ("rl/nemo_rl/rlvr", "rl/nemo_rl/rlhf")
GENERATE = """
import json, sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
said = {}
for folder in sys.argv[1:]:
    words, found = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    turns = [{"role": "user", "content": "What is 12 in Roman numerals?"}]
    asked = words.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = found.generate(**asked, max_new_tokens=8, do_sample=False)
    said[folder] = words.decode(out[0, asked["input_ids"].shape[1]:], skip_special_tokens=True)
print(json.dumps(said))
"""
ADAPT = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter = sys.argv[1:]
assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).peft_config
"""


def in_train_environment(code: str, *arguments: Path) -> str:
    done = subprocess.run(
        [payload_python("train"), "-c", code, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_edge_of_the_graph_closes_and_every_model_learns(tmp_path: Path) -> None:
    for family in ("data", "train", "eval"):
        payload_python(family)
    folder = tmp_path / EXAMPLE.name
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(".nemotron", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "nemotron_dagster.cli.main", "pipelines", "run", folder.name, "--project", str(folder)],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith(("NEMOTRON_", "DAGSTER_"))},
        check=False,
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-5000:]
    assert "Traceback (most recent call last)" not in said

    nodes = yaml.safe_load((folder / "pipelines/post_training_graph.yaml").read_text("utf-8"))["nodes"]
    root = folder / ".nemotron/artifacts" / folder.name
    where = {n: root / n / json.loads((root / n / "latest.json").read_text())["uri"] for n in nodes}
    made: dict[str, dict[str, Any]] = {n: json.loads((where[n] / "artifact.json").read_text()) for n in nodes}

    for name, node in nodes.items():
        assert made[name]["type"] == TYPES[node["step"]], name
        used = {i["port"]: (i["asset"], i["content"]) for i in made[name]["inputs"]}
        wired = {p: ([folder.name, s], made[s]["content"]) for p, s in node.get("inputs", {}).items()}
        assert used == wired, name
        facts = made[name]["reported"]
        if node["step"].startswith(TRAINED):
            assert facts["final_loss"] < facts["first_loss"], name
        if node["step"] in REWARDED:
            assert facts["final_reward"] > facts["first_reward"], name

    # every step that trains, converts or optimizes is in it
    heavy = ("pretrain", "sft", "peft", "convert", "rl", "optimize")
    catalog = {str(f.parent.relative_to(STEPS)) for kind in heavy for f in (STEPS / kind).rglob("step.toml")}
    assert len(catalog) == 15 and catalog <= {node["step"] for node in nodes.values()}

    path = {n: where[n] / made[n]["path"] for n in nodes}
    models = [path[n] for n in nodes if made[n]["type"] == "checkpoint_hf"]
    beside = [where[n] / "hf" for n in ("preferring", "verified", "judged", "distilled")]
    answers = json.loads(in_train_environment(GENERATE, *models, *beside))
    assert len(answers) == len(models) + len(beside)
    for name in ("merged_automodel", "final"):
        assert answers[str(path[name])] and set(answers[str(path[name])].upper()) <= set("IVXLCDM"), answers
    in_train_environment(ADAPT, path["chat_automodel"], path["adapter_automodel"])

    (score,) = made["after"]["facts"]["scores"]
    (earlier,) = made["before"]["facts"]["scores"]
    assert score["task"] == "roman_numerals_choice" and score["baseline"]["value"] == earlier["value"]
