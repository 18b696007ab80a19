"""The public contract of steps that people already build on: what their folders must say, whoever edits them.

The facts are typed here, not derived, so that a change of a manifest, a runspec or a config is noticed. Values of
configs are held by digest; `tiny` is left out, because its values change when the payload arrives.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

STEPS = Path(__file__).resolve().parents[1] / "steps"
NEMO = "nvcr.io/nvidia/nemo:26.04"
RAY = "anyscale/ray:2.49.2-py312"
MODELOPT = "/opt/Model-Optimizer/examples/megatron_bridge"


class Port(NamedTuple):
    type: str
    bind: str
    source: str | None = None
    required: bool = True


class Step(NamedTuple):
    consumes: list[Port]
    produces: list[Port]
    configs: str
    launch: str = "python"
    gpus: int = 0
    image: str | None = None
    cmd: str | None = None
    workdir: str | None = None
    default: str = "default"
    format: str = "omegaconf"


TABLE: dict[str, Step] = {
    "byob/mcq": Step(
        [
            Port("benchmark_source_corpus", "input_dir"),
            Port("benchmark_parquet", "dataset_path", required=False),
        ],
        [
            Port("mcq_benchmark_parquet", "output_dir"),
            Port("translated_mcq_benchmark_parquet", "output_dir", required=False),
        ],
        "default tiny translate",
        format="yaml",
    ),
    "convert/hf_to_megatron": Step(
        [Port("checkpoint_hf", "hf_model_id", "sft/automodel")],
        [Port("checkpoint_megatron", "megatron_path")],
        "default tiny",
        "torchrun",
        8,
        NEMO,
    ),
    "convert/megatron_to_hf": Step(
        [Port("checkpoint_megatron", "megatron_path", "sft/megatron_bridge")],
        [Port("checkpoint_hf", "hf_path")],
        "default tiny",
        "torchrun",
        8,
        NEMO,
    ),
    "convert/merge_lora": Step(
        [
            Port("checkpoint_lora", "lora_checkpoint", "peft/automodel"),
            Port("checkpoint_hf", "base_hf_path"),
            Port("checkpoint_megatron", "base_megatron_path", required=False),
        ],
        [
            Port("checkpoint_hf", "output_hf_path"),
            Port("checkpoint_megatron", "output_megatron_path", required=False),
        ],
        "default tiny",
        "python",
        8,
        "nvcr.io/nvidia/nemo:25.11.nemotron_3_nano",
    ),
    "data_prep/pretrain_prep": Step(
        [Port("filtered_jsonl", "blend_path", "curate/nemo_curator")],
        [Port("binidx", "output_dir")],
        "default tiny",
        image=RAY,
    ),
    "data_prep/rl_prep": Step(
        [Port("training_jsonl", "blend_path", "sdg/data_designer")],
        [Port("training_jsonl", "output_dir")],
        "default tiny",
        image=RAY,
    ),
    "data_prep/sft_packing": Step(
        [Port("training_jsonl", "blend_path", "curate/nemo_curator")],
        [Port("packed_parquet", "output_dir")],
        "default tiny",
        image=RAY,
    ),
    "env/env_toml": Step(
        [], [Port("env_toml", "output_path")], "dgxcloud kubernetes lepton local slurm tiny", default="lepton"
    ),
    "optimize/modelopt/distill": Step(
        [
            Port("checkpoint_hf", "args.teacher_hf_path", "sft/automodel"),
            Port("checkpoint_hf", "args.student_hf_path", required=False),
            Port("binidx", "args.data_paths", "data_prep/pretrain_prep", required=False),
        ],
        [Port("checkpoint_megatron", "args.output_dir")],
        "default tiny",
        "python",
        8,
        NEMO,
        workdir=MODELOPT,
    ),
    "optimize/modelopt/prune": Step(
        [Port("checkpoint_hf", "args.hf_model_name_or_path", "sft/automodel")],
        [Port("checkpoint_hf", "args.output_hf_path")],
        "default tiny",
        "python",
        8,
        NEMO,
        workdir=MODELOPT,
    ),
    "optimize/modelopt/quantize": Step(
        [Port("checkpoint_hf", "args.hf_model_id", "sft/automodel")],
        [Port("checkpoint_megatron", "args.megatron_save_path")],
        "default fp8 nvfp4 tiny",
        "torchrun",
        8,
        NEMO,
        workdir="/opt/Megatron-Bridge",
    ),
    "sdg/data_designer": Step(
        [Port("training_jsonl", "seed_dataset.path", required=False)],
        [Port("synthetic_jsonl", "output_dir")],
        "customer_support_tools default rl_pref tiny",
    ),
}

ERRORS = {
    "byob/mcq": "missing_byob_source_documents unsupported_hf_dataset mcq_schema_mismatch "
    "new_family_keeps_mcq_assumptions resume_cache_missing translation_row_count_drift",
    "convert/hf_to_megatron": "source_not_clean_hf_checkpoint output_path_overlaps_source "
    "unsupported_or_custom_architecture model_invalid conversion_script_missing parallel_sizes_mismatch "
    "cpu_model_too_large cpu_unsupported disk_full oom",
    "convert/megatron_to_hf": "bad_megatron_checkpoint_path missing_hf_config_or_tokenizer "
    "incomplete_or_async_checkpoint output_path_overlaps_source unsupported_or_custom_architecture model_invalid "
    "conversion_script_missing parallel_sizes_mismatch cpu_model_too_large cpu_unsupported disk_full "
    "oom",
    "convert/merge_lora": "base_model_mismatch adapter_not_validated output_path_overlaps_inputs base_model_missing "
    "adapter_missing adapter_ambiguous adapter_invalid vocabulary_mismatch backend_mismatch "
    "merge_script_missing bad_megatron_checkpoint_path incomplete_or_async_checkpoint "
    "missing_hf_config_or_tokenizer unsupported_or_custom_architecture model_invalid "
    "cpu_model_too_large cpu_unsupported disk_full oom",
    "data_prep/pretrain_prep": "tokenizer_mismatch missing_or_invalid_blend split_leakage_or_empty_validation "
    "empty_or_overlong_documents",
    "data_prep/rl_prep": "missing_or_invalid_blend invalid_dpo_preference_schema missing_rlvr_verifier_fields "
    "split_names_do_not_match_rl_config",
    "data_prep/sft_packing": "tokenizer_mismatch seq_length_mismatch too_many_tiny_shards bad_loss_masks",
    "env/env_toml": "missing_parent_profile env_vars_clobbered rlhf_genrm_server_missing",
    "optimize/modelopt/distill": "mock_data_used_as_quality_signal teacher_student_or_tokenizer_mismatch "
    "output_dir_overlaps_checkpoint_roots wandb_not_inherited "
    "world_size_not_divisible data_missing data_invalid loss_not_finite checkpoint_mismatch "
    "script_missing model_missing model_invalid output_missing architecture_unsupported "
    "cpu_model_too_large cpu_unsupported disk_full oom",
    "optimize/modelopt/prune": "target_and_export_config_both_set output_path_overlaps_input modelopt_package_drift "
    "invalid_parallel_divisibility "
    "target_missing target_larger_than_model target_unreachable script_missing model_missing "
    "model_invalid output_missing architecture_unsupported calibration_missing calibration_invalid "
    "dataset_missing dataset_invalid cpu_model_too_large disk_full oom",
    "optimize/modelopt/quantize": "unsupported_quant_recipe world_size_not_divisible source_checkpoint_overwritten "
    "tiny_calibration_used_as_quality_signal "
    "script_missing model_missing model_invalid output_missing architecture_unsupported "
    "calibration_missing calibration_invalid dataset_missing dataset_invalid cpu_model_too_large "
    "cpu_unsupported disk_full oom",
    "sdg/data_designer": "provider_secret_resolved_into_yaml unknown_model_provider projection_schema_mismatch "
    "unvalidated_generation_scaled",
}

# name, then "=default" where there is one, then "(choice|choice)".
PARAMETERS = {
    "byob/mcq": 'family="mcq"(mcq) stage="generate"(prepare|generate|translate|all) config target_source_mapping '
    "filtering_model_configs skip_until",
    "convert/hf_to_megatron": 'hf_model_id megatron_path torch_dtype="bfloat16"(bfloat16|float16|float32) dtype '
    'device_map="" trust_remote_code=true distributed=true tp=1 pp=1 ep=8 etp=1 torchrun.nproc_per_node=8',
    "convert/megatron_to_hf": "megatron_path hf_model_id hf_path trust_remote_code=true show_progress=true strict=true "
    "distributed=true tp=1 pp=1 ep=8 etp=1 distributed_save=true save_every_n_ranks=1 torchrun.nproc_per_node=8",
    "convert/merge_lora": 'backend="auto"(auto|hf_peft|megatron_bridge) lora_checkpoint base_hf_path '
    "base_megatron_path hf_model_id output_hf_path output_megatron_path cpu=true tp=1 pp=1 ep=1",
    "data_prep/pretrain_prep": 'blend_path tokenizer.model="nvidia/NVIDIA-Nemotron-Nano-9B-v2" '
    'dtype="int32"(auto|int32|uint16) num_shards=128 max_doc_tokens long_documents="truncate"(truncate|split|drop) '
    'on_bad_row="skip"(skip|fail) max_rows="null" sample="null" reuse="null" launch="auto"(auto|processes|ray) '
    'workers="null" ray_address="null" valid_shards=1 test_shards=1 split_seed=42 text_field="text"',
    "data_prep/rl_prep": "blend_path num_shards_per_split=1 resolve_hf_placeholders=true placeholder_datasets "
    'compression="none"(none|zstd) row_format="auto"(auto|preference|gym|verifier|chat|prompt) '
    'preference_format="auto"(auto|binary|ranked) answer_field="null" on_bad_row="skip"(skip|fail) '
    'splits="auto"(auto|ratios) valid_ratio=0.05 test_ratio=0.0 split_seed=42 dedup_across_splits=false '
    'max_rows="null" launch="auto"(auto|processes|ray) workers="null"',
    "data_prep/sft_packing": 'tokenizer="nvidia/NVIDIA-Nemotron-Nano-9B-v2" pack_size=4096 '
    'algorithm="first_fit_shuffle"(first_fit_decreasing|first_fit_shuffle|best_fit_decreasing|concatenative) '
    'chat_template="nano3" num_shards=128 train_ratio=0.98 valid_ratio=0.01 test_ratio=0.01',
    "env/env_toml": 'output_path="env.lepton.toml, env.slurm.toml, or env.dgxcloud.toml from the selected config" '
    "force=false sections",
    "optimize/modelopt/distill": 'backend="script"(script|inprocess) '
    "args.teacher_hf_path args.student_hf_path args.data_paths args.output_dir "
    "args.use_mock_data=false args.hf_export_path extra_args=[]",
    "optimize/modelopt/prune": 'backend="script"(script|inprocess) '
    "args.hf_model_name_or_path args.output_hf_path args.prune_target_params=6000000000.0 "
    "args.prune_export_config args.hparams_to_skip args.pp_size extra_args=[]",
    "optimize/modelopt/quantize": 'backend="script"(script|inprocess) args.hf_model_id args.export_quant_cfg="fp8" '
    "args.calib_size=512 args.megatron_save_path args.tp args.pp extra_args=[]",
    "sdg/data_designer": "num_records=1000 seed_dataset.path providers models.provider columns "
    "output_projection.type(openai_messages|structured_messages|dpo_preference)",
}

DIGESTS = {
    "byob/mcq/default": "2b5e0d9bf772",
    "byob/mcq/translate": "166838eb4fff",
    "convert/hf_to_megatron/default": "57eaeb791ea6",
    "convert/megatron_to_hf/default": "83f3b465ba9a",
    "convert/merge_lora/default": "62c151d71743",
    "data_prep/pretrain_prep/default": "28b395658c1a",
    "data_prep/rl_prep/default": "78158c948ea0",
    "data_prep/sft_packing/default": "9e1b9730e23d",
    "env/env_toml/dgxcloud": "3ec4af24a95b",
    "env/env_toml/kubernetes": "44a2a87d9cc5",
    "env/env_toml/lepton": "6fc73de25903",
    "env/env_toml/local": "65503d8134b4",
    "env/env_toml/slurm": "f1e7f22d7152",
    "optimize/modelopt/distill/default": "9b87a03618f1",
    "optimize/modelopt/prune/default": "e0a27414515c",
    "optimize/modelopt/quantize/default": "2adb25b0bd9a",
    "optimize/modelopt/quantize/fp8": "53626c011b1c",
    "optimize/modelopt/quantize/nvfp4": "b605b0154e96",
    "sdg/data_designer/customer_support_tools": "dcc519cc5965",
    "sdg/data_designer/default": "ccf4b8eb829f",
    "sdg/data_designer/rl_pref": "66dc6d8d7c57",
}

IDS = sorted(TABLE)
READY = {
    *("convert/hf_to_megatron", "convert/megatron_to_hf", "convert/merge_lora"),
    *("data_prep/pretrain_prep", "data_prep/rl_prep", "data_prep/sft_packing", "env/env_toml"),
    *("optimize/modelopt/distill", "optimize/modelopt/prune", "optimize/modelopt/quantize"),
}
PLANNED = sorted(set(IDS) - READY)


def manifest(step: str) -> dict[str, Any]:
    return tomllib.loads((STEPS / step / "step.toml").read_text(encoding="utf-8"))


def runspec(step: str) -> dict[str, Any]:
    source = (STEPS / step / "step.py").read_text(encoding="utf-8")
    block = re.search(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", source)
    assert block, f"{step}/step.py has no script block"
    spec: dict[str, Any] = tomllib.loads("\n".join(line[2:] for line in block[1].splitlines()))["tool"]["runspec"]
    return spec


def config(step: str, name: str) -> dict[str, Any]:
    """A config with the file it names under `defaults` merged below it."""
    loaded: dict[str, Any] = yaml.safe_load((STEPS / step / "config" / f"{name}.yaml").read_text(encoding="utf-8"))
    base = loaded.pop("defaults", None)
    return merge(config(step, base.removesuffix(".yaml")), loaded) if base else loaded


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    both = {k: merge(low[k], v) if isinstance(low.get(k), dict) and isinstance(v, dict) else v for k, v in high.items()}
    return {**low, **both}


def without_prose(value: Any) -> Any:
    """Prompts and file headers are wording; the rest is contract."""
    if isinstance(value, dict):
        return {k: without_prose(v) for k, v in value.items() if k not in ("prompt", "preamble")}
    return [without_prose(v) for v in value] if isinstance(value, list) else value


def digest(step: str, name: str) -> str:
    text = json.dumps(without_prose(config(step, name)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def has_key(data: dict[str, Any], dotted: str) -> bool:
    node: Any = data
    for part in dotted.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def ports(entries: list[dict[str, Any]]) -> list[Port]:
    return [Port(e["type"], first(e["bind"]), e.get("from"), e.get("required", True)) for e in entries]


def first(bind: str | list[str | dict[str, str]]) -> str:
    """The key that decides who fills the port; the same artifact may fill more."""
    entry = bind[0] if isinstance(bind, list) else bind
    return entry["key"] if isinstance(entry, dict) else entry


def parameter(entry: dict[str, Any]) -> str:
    default = "=" + json.dumps(entry["default"]) if "default" in entry else ""
    choices = "(" + "|".join(entry["choices"]) + ")" if "choices" in entry else ""
    return str(entry["name"]) + default + choices


@pytest.mark.parametrize("step", IDS)
def test_manifest_says_what_the_table_says(step: str) -> None:
    facts, found = TABLE[step], manifest(step)
    assert found["step"]["id"] == step
    assert found["step"]["category"] == step.split("/", maxsplit=1)[0]
    assert found["step"]["payload"] == ("ready" if step in READY else "planned")
    assert ports(found.get("consumes", [])) == facts.consumes
    assert ports(found["produces"]) == facts.produces
    assert " ".join(parameter(p) for p in found["parameters"]) == PARAMETERS[step]
    assert [e["name"] for e in found["errors"]] == ERRORS[step].split()
    assert all(e["recovery"] for e in found["errors"])
    assert 3 <= len(found["strategies"]) <= 6
    assert all(url.startswith("https://") for url in found["reference"].values())


@pytest.mark.parametrize("step", IDS)
def test_runspec_says_what_the_table_says(step: str) -> None:
    facts, found = TABLE[step], runspec(step)
    run = {"launch": facts.launch, "cmd": facts.cmd, "workdir": facts.workdir}
    expected = {
        "schema": "1",
        "name": f"steps/{step}",
        "image": facts.image,
        "run": {k: v for k, v in run.items() if v},
        "config": {"dir": "./config", "default": facts.default, "format": facts.format},
        "resources": {"nodes": 1, "gpus_per_node": facts.gpus},
    }
    assert found == {k: v for k, v in expected.items() if v is not None}


@pytest.mark.parametrize("step", IDS)
def test_configs_are_those_of_the_table(step: str) -> None:
    names = sorted(p.stem for p in (STEPS / step / "config").iterdir())
    assert names == TABLE[step].configs.split()
    assert TABLE[step].default in names
    loaded = [config(step, name) for name in names]
    for port in TABLE[step].consumes + TABLE[step].produces:
        assert any(has_key(c, port.bind) for c in loaded), f"no config of {step} has the key {port.bind}"


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_config_values_are_unchanged(name: str) -> None:
    step, _, config_name = name.rpartition("/")
    assert digest(step, config_name) == DIGESTS[name], f"{name}: people's overlays build on these values"


def test_every_config_but_tiny_has_a_digest() -> None:
    assert sorted(DIGESTS) == sorted(f"{s}/{c}" for s in IDS for c in TABLE[s].configs.split() if c != "tiny")


@pytest.mark.parametrize("step", IDS)
def test_bundled_data_is_there(step: str) -> None:
    for path in (STEPS / step / "config").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "nemotron/steps/" not in text, f"{path}: use ${{oc.env:NEMOTRON_STEP_DIR}}"
        for tail in re.findall(r"\$\{oc\.env:NEMOTRON_STEP_DIR\}/(\S+)", text):
            assert (STEPS / step / tail).exists(), f"{path.name} of {step} names {tail}"
    for path in (STEPS / step).glob("data/*.json") if step in PLANNED else ():
        assert json.loads(path.read_text(encoding="utf-8"))["datasets"][0]["path"].startswith("hf://")


@pytest.mark.parametrize("name", ["customer_support_tools", "default", "rl_pref"])
def test_seed_rows_have_the_fields_that_the_config_names(name: str) -> None:
    seeds = config("sdg/data_designer", name)["seed_dataset"]
    path = STEPS / "sdg/data_designer" / seeds["path"].split("}/")[1]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 5
    assert all(list(row) == seeds["fields"] for row in rows)


@pytest.mark.parametrize("name", ["customer_support_tools", "default", "rl_pref", "tiny"])
def test_prompts_use_only_columns_above_them(name: str) -> None:
    loaded = config("sdg/data_designer", name)
    known = set(loaded["seed_dataset"]["fields"])
    aliases = {m["alias"] for m in loaded["models"]}
    for column in loaded["columns"]:
        assert set(re.findall(r"\{\{ (\w+) \}\}", column.get("prompt", ""))) <= known
        assert column.get("model_alias") in aliases | {None}
        known.add(column["name"])


@pytest.mark.parametrize("cloud", ["dgxcloud", "kubernetes", "lepton", "slurm"])
def test_env_profiles(cloud: str) -> None:
    loaded = config("env/env_toml", cloud)
    profiles = {k: v for k, v in loaded["sections"].items() if k != "wandb"}
    assert loaded["output_path"] == f"env.{cloud}.toml"
    assert len(profiles) == 29
    assert set(loaded["checks"]["required_profiles"]) == set(profiles)
    for name, profile in profiles.items():
        assert name.startswith(f"{cloud}_")
        if name == f"{cloud}_base":
            assert profile["executor"] == cloud
        else:
            assert profile["extends"] in profiles and profile["extends"] != name
        assert not isinstance(profile.get("time", ""), int), f"{name}: quote time, YAML reads it in base 60"


@pytest.mark.parametrize("step", PLANNED)
def test_readme_tells_the_state_and_names_every_config(step: str) -> None:
    text = (STEPS / step / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {step}\n\nStatus: the payload is not built yet; running it exits with code 9.\n")
    assert 25 <= len(text.splitlines()) <= 60
    for name in TABLE[step].configs.split():
        assert f"| `{name}` |" in text
    example = re.search(rf"(?m)^nemotron steps run {step} -c (\w+) \S+=\S+", text)
    assert example and example[1] in TABLE[step].configs.split()


@pytest.mark.parametrize("step", PLANNED)
def test_running_a_planned_step_says_so(step: str, tmp_path: Path) -> None:
    messages = tmp_path / "messages.jsonl"
    script = STEPS / step / "step.py"
    env = {**os.environ, "NEMOTRON_MESSAGES": str(messages), "RANK": "0"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 9
    assert step in done.stderr
    assert json.loads(messages.read_text(encoding="utf-8"))["name"] == "payload_not_built"
    assert len(script.read_text(encoding="utf-8").split('"""')[2].strip().splitlines()) <= 12
