"""The memory estimate: counted as published, shown before a run, refusing only what cannot fit."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.cli.preview import preview
from nemotron_dagster.cli.runs_text import page
from nemotron_dagster.config.compile import JobSpec, compile_job
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.dagster.job_metadata import job_metadata
from nemotron_dagster.errors import PreflightError
from nemotron_dagster.jobs.facts import job_facts
from nemotron_dagster.jobs.ledger import Order, Record
from nemotron_dagster.jobs.memory import check_memory, memory_of
from nemotron_dagster.jobs.sync import Sight
from nemotron_dagster.project import Project
from nemotron_dagster.sizing.estimate import estimate
from nemotron_dagster.sizing.gpus import gpu_memory
from nemotron_dagster.sizing.load import GIB, Load, Parallel, Training, activations, adapter, parts
from nemotron_dagster.sizing.models import known, load_tables, of_megatron
from nemotron_dagster.sizing.shape import Shape, UnknownShape, from_config

BUNDLED = Project(None, REPO / ".nemotron")
CATALOG = load_catalog(BUNDLED)
TABLES = load_tables(BUNDLED)
MODELS: dict[str, dict[str, Any]] = TABLES["model"]
GPUS = tomllib.loads((REPO / "env/guardrails.toml").read_text())["gpus"]
NANO = from_config(MODELS["nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"])
#: The smallest that has everything: 2 layers of 4 heads, 8 wide, 100 words.
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
    "intermediate_size": 32,
}  # fmt: skip
EVERYTHING = frozenset({"attention in", "attention out", "mlp in", "mlp out", "mamba in", "mamba out"})


# ---- counts ----


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_the_table_has_the_parameters_that_its_makers_publish(name: str) -> None:
    published = MODELS[name]["published"]
    extra = "Lightning" in name  # whose published size has the layer that predicts further tokens
    assert from_config(MODELS[name]).parameters(mtp=extra) / 1e9 == pytest.approx(published, rel=0.01)


def test_every_model_that_a_manifest_names_is_in_the_table() -> None:
    listed = {n for name, numbers in MODELS.items() for n in (name, *numbers.get("same", ()))}
    named = {m["name"] for s in CATALOG.steps.values() if s.category in ("sft", "peft", "pretrain") for m in s.models}
    assert named and named <= listed


@pytest.mark.parametrize(
    ("gpus", "ep", "tp", "shared", "gib"),
    [(1, 1, 1, False, 58.8), (2, 2, 1, False, 31.5), (4, 4, 1, False, 17.8), (8, 8, 1, False, 10.9),
     (16, 8, 2, False, 8.9), (4, 4, 1, True, 14.7), (8, 8, 1, True, 7.4)],
)  # fmt: skip
def test_weights_per_gpu_are_those_of_nvidias_sizing_guide_of_nemotron_3_nano(
    gpus: int, ep: int, tp: int, shared: bool, gib: float
) -> None:
    """usage-cookbook/Nemotron-3-Nano of NVIDIA-NeMo/Nemotron: base weights per GPU, Megatron-Bridge and FSDP2."""
    load = Load("model", "nano", NANO, Parallel(gpus, tp=tp, ep=ep), shared=shared)
    assert parts(load)["weights"] / GIB == pytest.approx(gib, abs=0.06)


def test_a_lora_adapter_of_rank_8_on_all_of_nano_has_219_million_parameters_as_the_guide_says() -> None:
    assert sum(adapter(NANO, 8, EVERYTHING - {"mamba out"})) / 1e6 == pytest.approx(219, abs=1)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_the_distributed_optimizer_takes_6_plus_12_over_d_bytes_per_parameter(ranks: int) -> None:
    shape = from_config(LLAMA)
    training = Training(gradient=4, optimizer=12, shared="optimizer")
    found = parts(Load("model", "x", shape, Parallel(ranks), 2, training))
    inside = shape.parameters() - shape.hidden  # the last norm, which no stage's share counts
    assert sum(found.values()) / inside == pytest.approx(6 + 12 / ranks)


def test_activations_of_a_gpt_layer_are_the_34_sbh_of_the_paper_less_its_two_dropout_masks() -> None:
    h, s, b, layers = 64, 128, 2, 3
    shape = Shape(
        hidden=h, vocabulary=0, blocks="*-" * layers, queries=h, keys=h, ffn=4 * h, gated=False, layers=layers
    )

    def kept(parallel: Parallel, **more: Any) -> float:
        return activations(shape, parallel, Training(micro=b, sequence=s, **more)) / (s * b * h * layers)

    assert kept(Parallel(1)) == 34 - 2
    assert kept(Parallel(4, tp=4)) == 8 + 24 / 4  # equation 2, its 10 less the masks
    assert kept(Parallel(4, tp=4, sequence=True)) == (34 - 2) / 4  # equation 4
    assert kept(Parallel(2, cp=2)) == (34 - 2) / 2
    assert kept(Parallel(1), recompute="full") == pytest.approx(2 + 20 / layers)  # 2 sbh per layer, and a block at work


# ---- where a model's numbers come from ----


def test_a_model_is_known_by_its_own_config_the_hubs_cache_or_the_table(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/config.json").write_text(json.dumps(LLAMA))
    assert known(str(tmp_path / "own"), {}).shape == from_config(LLAMA)
    cached = tmp_path / "hub/models--org--m/snapshots/abc/config.json"
    cached.parent.mkdir(parents=True)
    cached.write_text(json.dumps({**LLAMA, "vocab_size": 200}))
    assert known("org/m", TABLES, tmp_path / "hub").shape.vocabulary == 200
    assert known("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16", TABLES, tmp_path).shape == NANO


def test_a_megatron_checkpoint_is_known_by_the_run_config_of_its_latest_iteration(tmp_path: Path) -> None:
    model = {"hidden_size": 8, "num_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 32, "vocab_size": 100}
    for step, words in (("iter_0000002", 50), ("iter_0000010", 100)):
        (tmp_path / step).mkdir()
        text = json.dumps({"model": {**model, "vocab_size": words, "gated_linear_unit": True, "kv_channels": None}})
        (tmp_path / step / "run_config.yaml").write_text(text)
    assert known(str(tmp_path), {}).shape == from_config(LLAMA)
    experts = of_megatron(
        {"model": {**model, "num_moe_experts": 4, "moe_ffn_hidden_size": 6, "moe_router_topk": 2}}, "x"
    )
    assert from_config(experts).blocks == "*E*E"


@pytest.mark.parametrize(
    ("config", "message"),
    [({**LLAMA, "model_type": "bert"}, "the architecture 'bert' is not counted"),
     ({**LLAMA, "vocab_size": "many"}, "vocab_size = 'many'"),
     ({"model_type": "nemotron_h", "hidden_size": 8, "num_attention_heads": 4, "vocab_size": 9}, "no pattern of")],
)  # fmt: skip
def test_a_shape_that_cannot_be_told_says_why(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownShape, match=message):
        from_config(config)


def test_a_model_that_nobody_knows_is_said_and_refuses_nothing() -> None:
    found = estimate("automodel", {"model": {"pretrained_model_name_or_path": "org/secret"}}, 8, TABLES)
    assert found is not None and "org/secret is not in the local cache" in found.told()
    assert not found.too_large(1) and not found.tight(1)


# ---- what the configs say ----


def spec(step: str, *overrides: str, config: str = "default", **profile: Any) -> JobSpec:
    table = {"executor": "lepton", "nemo_run_dir": "/m/jobs", "node_group": "g", **profile}
    return compile_job(
        CATALOG.find(step),
        config,
        overrides,
        profile="p" if profile else None,
        environment=Environment(None, {"p": table}),
    )


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SFT_PACKED_DIR", "SFT_OUTPUT_DIR", "PRETRAIN_BLEND_PATH"):
        monkeypatch.setenv(name, "/data/x")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))


def shown(*args: Any, **more: Any) -> dict[str, float]:
    """GiB by part of the first phase, to a tenth."""
    found = memory_of(BUNDLED, spec(*args, **more))
    assert found is not None and found.estimate.phases
    return {k: round(v, 1) for k, v in found.estimate.phases[0].parts.items()}


def test_automodel_shares_everything_under_fsdp_and_nothing_under_ddp() -> None:
    eight = {"nodes": 1, "gpus_per_node": 8}
    whole = shown("sft/automodel", **eight)
    assert {k: whole[k] for k in ("weights", "gradients", "optimizer")} == {
        "weights": 7.1, "gradients": 7.1, "optimizer": 14.2
    }  # fmt: skip
    assert shown("sft/automodel", nodes=2, gpus_per_node=8)["optimizer"] == 7.1
    replicated = shown("sft/automodel", "distributed.strategy=ddp", "distributed.ep_size=1", **eight)
    assert replicated["weights"] == 56.9 and "gathered weights" not in replicated
    adapted = shown("sft/automodel", "peft=lora", **eight)
    assert adapted["weights"] > whole["weights"] and adapted["optimizer"] < 1
    wide = shown("sft/automodel", "model.torch_dtype=float32", **eight)
    assert wide["weights"] == 14.2 and wide["optimizer"] == 28.4


def test_megatron_bridge_takes_sizes_from_the_model_section_else_from_the_recipe() -> None:
    eight = {"nodes": 1, "gpus_per_node": 8}
    whole = shown("sft/megatron_bridge", **eight)
    assert whole["weights"] == 7.9 and whole["gradients"] == 15.7 and whole["optimizer"] == 44.1
    assert shown("sft/megatron_bridge", nodes=2, gpus_per_node=8)["optimizer"] == 22.1
    assert (
        shown("sft/megatron_bridge", "model.recompute_granularity=null", **eight)["activations"]
        > 4 * whole["activations"]
    )
    assert (
        shown("pretrain/megatron_bridge", **eight)["weights"] == 7.9
    )  # tensor parallel 4 is an argument of the recipe
    assert shown("peft/megatron_bridge", "model.tensor_model_parallel_size=1", **eight)["weights"] == 10.9


def test_dpo_runs_each_pair_as_two_rows_and_a_policy_is_held_in_float32() -> None:
    eight = {"nodes": 1, "gpus_per_node": 8}
    pairs, prompts = shown("rl/nemo_rl/dpo", **eight), shown("rl/nemo_rl/rlvr", **eight)
    assert pairs["activations"] == pytest.approx(2 * prompts["activations"], abs=0.1)
    assert prompts["weights"] == prompts["gradients"] == round(1.2358 * 4e9 / GIB / 8, 1)
    found = memory_of(BUNDLED, spec("rl/nemo_rl/rlvr", **eight))
    assert found is not None and [p.name for p in found.estimate.phases] == ["training", "generation"]
    assert found.estimate.phases[1].share == 0.8


def test_distillation_holds_the_teacher_beside_the_student() -> None:
    found = shown("optimize/modelopt/distill", nodes=1, gpus_per_node=8)
    assert found["weights, teacher"] == 1.9 and found["weights, student"] == 0.9 and found["optimizer, student"] == 5.6
    assert shown("optimize/modelopt/quantize", nodes=2, gpus_per_node=8)["weights"] == 3.7
    assert shown("convert/hf_to_megatron", nodes=1, gpus_per_node=8)["weights"] == 10.9


def test_a_job_without_gpus_has_no_estimate() -> None:
    assert memory_of(BUNDLED, spec("sft/automodel", config="tiny")) is None
    assert memory_of(BUNDLED, spec("data_prep/sft_packing")) is None


# ---- the GPU ----


@pytest.mark.parametrize(
    ("settings", "gib", "key"),
    [({"gpu_memory_gb": 40, "resource_shape": "gpu.8xh100-80gb"}, 40, "gpu_memory_gb"),
     ({"gpu_memory_gb": "96"}, 96, "gpu_memory_gb"),
     ({"resource_shape": "gpu.8xh100-80gb"}, 80, "resource_shape"),
     ({"resource_shape": "gpu.8xh200"}, 141, "resource_shape"),
     ({"gres": "gpu:a100_40gb:4"}, 40, "gres"),
     ({"gres": "gpu:h100:8"}, 80, "gres"),
     ({"constraint": "h200&ib"}, 141, "constraint"),
     ({"node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}, 80, "node_selector")],
)  # fmt: skip
def test_a_profile_says_the_memory_of_its_gpus(settings: dict[str, Any], gib: float, key: str) -> None:
    assert gpu_memory(settings, GPUS) == (gib, key)


@pytest.mark.parametrize(
    "settings",
    [{}, {"gres": "gpu:8"}, {"gres": "gpu:a100:8"}, {"constraint": "h100|h200"}, {"resource_shape": "${oc.env:SHAPE}"}],
)
def test_a_profile_that_does_not_say_it_is_not_guessed_at(settings: dict[str, Any]) -> None:
    assert gpu_memory(settings, GPUS) is None


# ---- shown and refused ----


def test_what_cannot_fit_is_refused_with_what_to_change_and_what_is_unknown_is_not() -> None:
    small = spec("sft/megatron_bridge", nodes=1, gpus_per_node=8, resource_shape="gpu.8xa100-40gb")
    with pytest.raises(PreflightError, match=r"(?s)at least 67.7 GiB.*and 40 are there.*recompute activations.*nodes"):
        check_memory(BUNDLED, small)
    assert preview(BUNDLED, small)["memory"]["refusal"].startswith("It does not fit: training needs at least 67.7 GiB")
    assert check_memory(BUNDLED, spec("sft/megatron_bridge", nodes=1, gpus_per_node=8)) is not None
    large = check_memory(BUNDLED, spec("sft/megatron_bridge", nodes=1, gpus_per_node=8, gpu_memory_gb=80))
    assert large is not None and not large.refusal() and not large.doubt()


def test_what_only_the_activations_make_too_large_is_a_doubt_and_refuses_nothing() -> None:
    wide = ("model.recompute_granularity=null", "train.micro_batch_size=2")
    found = check_memory(BUNDLED, spec("sft/megatron_bridge", *wide, nodes=1, gpus_per_node=8, gpu_memory_gb=80))
    assert found is not None and not found.refusal()
    assert "It may not fit, by an estimate: training" in found.doubt() and "activations" in found.doubt()


def test_generation_has_only_vllms_share_of_the_gpu() -> None:
    model = "policy.model_name=Qwen/Qwen3-30B-A3B"
    with pytest.raises(
        PreflightError, match=r"generation needs at least 56.9 GiB per GPU for weights 56.9, and 48 are"
    ):
        check_memory(BUNDLED, spec("rl/nemo_rl/rlvr", model, nodes=4, gpus_per_node=8, gpu_memory_gb=60))


def test_the_estimate_goes_with_the_job_to_dagster_and_to_runs_status() -> None:
    order = Order("s", "c", "d", "c", ("a",), "raw_jsonl", ".", "/r", "/s")
    record = Record("k", None, "slurm", "x", {}, order, False, memory="training 5 GiB")
    assert job_facts(record)["memory_estimate"] == "training 5 GiB"
    assert job_metadata(record)["nemotron/job/memory_estimate"].value == "training 5 GiB"
    assert "  GPU memory      estimated: training 5 GiB" in page(Sight(record, None))
    assert "memory_estimate" not in job_facts(replace(record, memory=""))


def test_a_dry_run_shows_the_parts_and_the_refusal_and_json_has_them_as_data(
    project: Path, nemotron: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    lepton = '[l]\nexecutor = "lepton"\nnemo_run_dir = "/m"\nnode_group = "g"\nresource_shape = "gpu.8xa100-40gb"\n'
    (project / "env.toml").write_text(f"{lepton}gpus_per_node = 8\nnodes = 1\n")
    step = ("steps", "run", "sft/automodel", "model.torch_dtype=float32", "-d", "-r", "l")
    done = nemotron(*step, cwd=project)
    assert done.returncode == 0 and "# memory per GPU (an estimate)\ntraining " in done.stdout
    assert "Qwen/Qwen3-30B-A3B has 30.5 B parameters" in done.stdout and "a GPU has 40 (resource_shape)" in done.stdout
    data = json.loads(nemotron(*step, "--json", cwd=project).stdout)["memory"]
    assert data["gpu_gib"] == 40 and data["phases"]["training"]["parts"]["weights"] == pytest.approx(14.2, abs=0.1)
    assert "does not fit" in done.stdout and data["refusal"] and not data["doubt"]
    assert data["parameters"] == {"Qwen/Qwen3-30B-A3B": 30532122624}
