"""optimize/modelopt/prune as it is started for real: a subprocess in the train environment, on the CPU, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optimize_run import Run, python, refusals

from nemotron_dagster.artifacts.types import checkpoint_hf

TARGET, SHAPE = "args.prune_target_params", "args.prune_export_config"
MODEL, DATA = "args.hf_model_name_or_path", "args.calib_dataset_name"
ROWS = Path(__file__).resolve().parents[2] / "steps/optimize/modelopt/prune/data/tiny.jsonl"

ANSWER = """
import sys, json
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = tokenizer("What is 12 in Roman numerals?", return_tensors="pt")["input_ids"]
print(json.dumps([model.num_parameters(), model.generate(ids, max_new_tokens=5).shape[1] - ids.shape[1]]))
"""


def test_tiny_meets_its_budget_and_leaves_a_model_that_generates(tmp_path: Path) -> None:
    run = Run("prune", tmp_path).finish(cold=True)
    facts, found = run.facts(), checkpoint_hf.validate(run.out)
    assert facts["parameters"] == found["parameters"] <= 350_000 < facts["parameters_before"]
    assert facts["backend"] == "inprocess" and facts["base_model"] == "untrained tiny_llama"
    assert facts["shape"]["hidden_size"] == found["hidden_size"] and facts["shape"]["num_layers"] == found["layers"]
    assert len(facts["tokenizer_sha256"]) == 64
    assert not list(run.out.glob("base*"))
    scored = run.messages("progress")
    assert [m["step"] for m in scored] == list(range(1, 11))
    chosen = min(scored, key=lambda m: m["metrics"]["loss"])["metrics"]
    assert chosen["parameters"] == facts["parameters"]
    assert chosen["loss"] == pytest.approx(facts["loss_after"], rel=1e-5)
    parameters, generated = json.loads(python(ANSWER, run.out))
    assert parameters == facts["parameters"] and generated > 0


def test_parts_that_do_nothing_go_and_the_model_computes_the_same(tmp_path: Path) -> None:
    code = """
import sys, torch
from _runtime import tiny_model
from transformers import AutoModelForCausalLM
tiny_model.save(sys.argv[1], 3, layers=3)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    idle = model.model.layers[1]
    idle.self_attn.o_proj.weight.zero_()
    idle.mlp.down_proj.weight.zero_()
    for layer in (model.model.layers[0], model.model.layers[2]):
        layer.mlp.gate_proj.weight[torch.arange(0, 384, 3)] = 0
        layer.self_attn.v_proj.weight[32:96] = 0
model.save_pretrained(sys.argv[1])
"""
    python(code, tmp_path / "model")
    sizes = {"num_layers": 2, "ffn_hidden_size": 256, "num_attention_heads": 2}
    run = Run("prune", tmp_path, {MODEL: str(tmp_path / "model"), TARGET: None, SHAPE: sizes}).finish()
    facts = run.facts()
    assert facts["kept_layers"] == [0, 2] and facts["shape"] == {"hidden_size": 128, **sizes}
    assert facts["parameters"] < facts["parameters_before"] / 1.8
    compare = """
import sys, torch
from transformers import AutoModelForCausalLM
ids = torch.randint(3, 390, (2, 60), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    one, other = (AutoModelForCausalLM.from_pretrained(p)(ids).logits for p in sys.argv[1:])
print(float((one - other).abs().max()))
"""
    assert float(python(compare, tmp_path / "model", run.out)) < 1e-5


def test_what_is_kept_is_worth_more_than_what_is_cut(roman_model: Path) -> None:
    code = """
import sys, json
from dataclasses import replace
from pathlib import Path
from _runtime.optimize import minitron, models, shapes
loaded = models.load(sys.argv[1], "model", Path("unused"), 0)
batches = models.blocks(models.rows(sys.argv[2], "rows", 160), loaded, 96)
found, shape = minitron.measure(loaded.model, batches), shapes.of(loaded.model.config)
upside_down = replace(
    found, layers=[-s for s in found.layers], ffn=[-s for s in found.ffn], heads=[-s for s in found.heads],
    hidden=-found.hidden,
)
def loss(importance, **sizes):
    return models.loss(minitron.cut(loaded.model, importance, shape.smaller(sizes)), batches)
cuts = [{"ffn_hidden_size": 192}, {"num_attention_heads": 2}, {"num_layers": 1}]
print(json.dumps([models.loss(loaded.model, batches), [(loss(found, **c), loss(upside_down, **c)) for c in cuts]]))
"""
    whole, pairs = json.loads(python(code, roman_model, ROWS))
    assert whole < 1.5
    for best, worst in pairs:
        assert whole - 0.01 < best < worst - 0.05


def test_hidden_channels_that_carry_nothing_are_the_first_to_go(tmp_path: Path) -> None:
    code = """
import sys, json, torch
from pathlib import Path
from _runtime.optimize import minitron, models
loaded = models.load("tiny_llama", "model", Path(sys.argv[1]), 5)
batches = models.blocks(models.rows(sys.argv[2], "rows", 40), loaded, 96)
idle = list(range(0, 128, 4))
with torch.no_grad():
    loaded.model.model.embed_tokens.weight[:, idle] = 0
    for layer in loaded.model.model.layers:
        layer.self_attn.o_proj.weight[idle] = 0
        layer.mlp.down_proj.weight[idle] = 0
scores = minitron.measure(loaded.model, batches).hidden
print(json.dumps([sorted(scores.argsort()[:32].tolist()), float(scores[idle].max()), float(scores.mean())]))
"""
    least, idle, mean = json.loads(python(code, tmp_path / "model", ROWS))
    assert least == list(range(0, 128, 4)) and idle < 1e-6 < mean


def test_heads_are_cut_evenly_from_every_group_of_a_grouped_query_model(tmp_path: Path) -> None:
    code = """
import sys
from transformers import LlamaForCausalLM, LlamaConfig, Qwen3Config, Qwen3ForCausalLM
from _runtime import tiny_model
words = tiny_model.build_tokenizer()
config = Qwen3Config(
    vocab_size=len(words), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=False,
    eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, bos_token_id=None,
)
Qwen3ForCausalLM(config).save_pretrained(sys.argv[1])
words.save_pretrained(sys.argv[1])
"""
    python(code, tmp_path / "model")
    shape = {"num_attention_heads": 4, "hidden_size": 48}
    run = Run("prune", tmp_path, {MODEL: str(tmp_path / "model"), TARGET: None, SHAPE: shape}).finish()
    config = json.loads((run.out / "config.json").read_text())
    sizes = [config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")]
    assert sizes == [4, 2, 16, 48]
    checkpoint_hf.validate(run.out)
    groups = """
import sys, torch
from transformers import AutoModelForCausalLM
old, new = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in sys.argv[1:])
kept = new["model.layers.1.self_attn.q_norm.weight"].equal(old["model.layers.1.self_attn.q_norm.weight"])
name = "model.layers.1.self_attn.q_proj.weight"
rows = {tuple(r.tolist()) for r in old[name][:, :4]}
where = lambda weight: [int((old[name].view(8, 16, 64) - 0).flatten(1).shape[0])]
hidden = [i for i in range(64) if any(torch.equal(old["model.norm.weight"][i], v) for v in new["model.norm.weight"])]
heads = []
for block in new[name].view(4, 16, 48):
    matches = [h for h, full in enumerate(old[name].view(8, 16, 64)) if set(block[0].tolist()) <= set(full[0].tolist())]
    heads += matches
print(kept and heads == sorted(heads) and sum(h < 4 for h in heads) == 2 and len(heads) == 4)
"""
    assert python(groups, tmp_path / "model", run.out) == "True"
    generated = json.loads(python(ANSWER, run.out))
    assert generated[0] == run.facts()["parameters"]


def test_dimensions_to_skip_stay(tmp_path: Path) -> None:
    skipped = ["hidden_size", "num_layers", "num_attention_heads"]
    run = Run("prune", tmp_path, {TARGET: 420e3, "args.hparams_to_skip": skipped}).finish()
    shape = run.facts()["shape"]
    assert shape.pop("ffn_hidden_size") < 384
    assert shape == {"hidden_size": 128, "num_attention_heads": 4, "num_layers": 2}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({MODEL: None}, "model_missing", f"{MODEL} is not set"),
    ({MODEL: "{}/none"}, "model_missing", "none: no such directory"),
    ({MODEL: "{}/empty"}, "model_invalid", "has no config.json"),
    ({SHAPE: {"num_layers": 1}}, "target_and_export_config_both_set", "args.prune_target_params=350000.0"),
    ({TARGET: None}, "target_missing", "neither"),
    ({TARGET: "many"}, "config_invalid", "args.prune_target_params='many'"),
    ({TARGET: None, SHAPE: {"layers": 1}}, "config_invalid", "has the key layers"),
    ({TARGET: None, SHAPE: {"num_layers": 1.5}}, "config_invalid", "num_layers=1.5"),
    ({"args.output_hf_path": "{}/empty/below", MODEL: "{}/empty"}, "model_invalid", "config.json"),
    ({"args.output_hf_path": "{}/torn/below", MODEL: "{}/torn"}, "output_path_overlaps_input", "overlaps"),
    ({DATA: None}, "calibration_missing", f"{DATA} is not set"),
    ({DATA: "{}/none.jsonl"}, "dataset_missing", "none.jsonl"),
    ({DATA: "{}/blank.jsonl"}, "calibration_missing", "no rows"),
    ({DATA: "{}/bad.jsonl"}, "calibration_invalid", "bad.jsonl, line 1"),
    ({"args.max_width_pruning": 1}, "config_invalid", "args.max_width_pruning=1"),
    ({"args.hparams_to_skip": ["width"]}, "config_invalid", "width is none of"),
    ({"args.ss_divisor": 8}, "config_invalid", "args.ss_divisor=8: backend=inprocess does not know it"),
    ({"backend": "gpu"}, "config_invalid", "backend=gpu"),
]


def filled(overrides: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {k: v.format(folder) if isinstance(v, str) else v for k, v in overrides.items()}


def test_bad_input_is_told_before_pruning(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "torn/model.safetensors").write_text("torn")
    (tmp_path / "blank.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n')
    said = refusals("prune", tmp_path / "runs", [filled(o, tmp_path) for o, _, _ in WRONG], cold=True)
    for n, ((overrides, name, part), told) in enumerate(zip(WRONG, said, strict=True)):
        assert told.name == name and part in told.message, (overrides, told)
        assert not list((tmp_path / f"runs/{n}").rglob("*.safetensors")), overrides


def test_targets_that_the_model_cannot_meet_are_told(tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.json").write_text('{"model_type": "llama"}')
    (torn / "model.safetensors").write_text("torn")
    cases = [
        ({TARGET: 6e9}, "target_larger_than_model", "the model has 477,056 parameters"),
        ({TARGET: 100}, "target_unreachable", "args.prune_target_params=100"),
        ({TARGET: None, SHAPE: {"num_layers": 3}}, "target_larger_than_model", "num_layers=3: the model has 2"),
        ({TARGET: None, SHAPE: {"hidden_size": 100, "num_attention_heads": 3}}, "invalid_parallel_divisibility", "100"),
        ({MODEL: str(torn)}, "model_invalid", "torn"),
    ]
    said = refusals("prune", tmp_path, [case for case, _, _ in cases])
    for (_, name, part), told in zip(cases, said, strict=True):
        assert told.name == name and part in told.message, told
