"""Every error that a manifest marks with a check is refused before submission, with the manifest's recovery."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO

from nemotron_dagster.artifacts.port_locks import Subject, check_all
from nemotron_dagster.catalog import Step, load_catalog
from nemotron_dagster.catalog.locks import LOCKS
from nemotron_dagster.catalog.preflight import CHECKS, known
from nemotron_dagster.config.compile import JobSpec, compile_job
from nemotron_dagster.config.guardrails import check_job
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.errors import ArtifactError, NemotronError, PreflightError
from nemotron_dagster.jobs.memory import check_memory
from nemotron_dagster.jobs.preflight import case_of, examine, problems, refuse
from nemotron_dagster.jobs.preflight_rules import RULES
from nemotron_dagster.project import Project

BUNDLED = Project(None, REPO / ".nemotron")
CATALOG = load_catalog(BUNDLED)
STEPS = [s for s in CATALOG.steps.values() if s.category in ("convert", "optimize", "peft", "pretrain", "rl", "sft")]
MARKED = {(s.id, e["name"]): e for s in STEPS for e in s.errors if e.get("check")}
A, B = frozenset({"a" * 64}), frozenset({"b" * 64})
GPUS = {"executor": "lepton", "nemo_run_dir": "/m/jobs", "node_group": "g", "nodes": 1, "gpus_per_node": 8}


@dataclass(frozen=True)
class Fault:
    """How an error comes about: overrides, or what is known of inputs. ``{tmp}`` is the test's directory.

    Attributes:
        found: what the message must say beside the recovery.
        right: overrides that put it right, where they alone do.
        files: relative path -> text, below ``{tmp}``.
    """

    found: str
    overrides: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    subjects: Mapping[str, Subject] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def rows(facts: dict[str, Any], type_name: str = "training_jsonl", **more: Any) -> Subject:
    return Subject(name="up/stream", type=type_name, path="/data/x", facts=facts, **more)


def model(type_name: str = "checkpoint_hf", **more: Any) -> Subject:
    return Subject(name="a/model", type=type_name, path="/models/a", facts=more.pop("facts", {}), **more)


MISMATCH = {"tokens": rows({}, "binidx", tokenizers=A), "m": model("checkpoint_megatron", tokenizers=B)}
PACKED = {"packed_parquet": rows({}, "packed_parquet", tokenizers=A), "checkpoint_megatron": MISMATCH["m"]}
PACKS_2K = {"packed_parquet": rows({}, "packed_parquet", reported={"pack_size": 2048})}
SAME = (
    "policy.model_name={tmp}/policy",
    "env.nemo_gym.genrm_model.responses_api_models.genrm_model.model={tmp}/policy/",
)
SPLIT = json.dumps({"train": "a.jsonl", "val": "", "rows": {"train": 3, "val": 0}})
EMPTY = json.dumps({"train": "", "val": "b.jsonl", "rows": {"train": 0, "val": 3}})
NO_MODEL = {"m/notes.txt": ""}
INVERTED = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 2}
DATA = "data.train.data_path={tmp}/prep"
BOTH = (DATA, "data.validation.data_path={tmp}/prep")
FAULTS: dict[tuple[str, str], Fault] = {
    ("convert/hf_to_megatron", "source_not_clean_hf_checkpoint"): Fault("has no config.json", ("hf_model_id={tmp}",)),
    ("convert/hf_to_megatron", "output_path_overlaps_source"): Fault(
        "overlap", ("hf_model_id={tmp}/m", "megatron_path={tmp}/m/out"), ("megatron_path={tmp}/n",)),
    ("convert/hf_to_megatron", "parallel_sizes_mismatch"): Fault("needs a multiple of 3 GPUs", ("ep=3",), ("ep=4",)),
    ("convert/megatron_to_hf", "bad_megatron_checkpoint_path"): Fault(
        "nothing is there", ("megatron_path={tmp}/iter_0000001",)),
    ("convert/megatron_to_hf", "missing_hf_config_or_tokenizer"): Fault(
        "names no model", ("hf_model_id=null", "megatron_path={tmp}/c"), ("hf_model_id=org/m",),
        files={"c/run_config.yaml": "model: {num_layers: 2}\n"}),
    ("convert/megatron_to_hf", "incomplete_or_async_checkpoint"): Fault(
        "iter_0000003", ("megatron_path={tmp}/iter_0000003",), files={"iter_0000003/run_config.yaml": "model: {}\n"}),
    ("convert/megatron_to_hf", "parallel_sizes_mismatch"): Fault("needs a multiple of 3 GPUs", ("ep=3",), ("ep=4",)),
    ("convert/megatron_to_hf", "output_path_overlaps_source"): Fault(
        "overlap", ("megatron_path={tmp}/c/iter_0000001", "hf_path={tmp}/c"), ("hf_path={tmp}/hf",)),
    ("convert/merge_lora", "adapter_missing"): Fault("nothing is there", ("lora_checkpoint={tmp}/none",)),
    ("convert/merge_lora", "base_model_mismatch"): Fault(
        "belongs to org/m, but org/n", ("base_hf_path=org/n",), ("base_hf_path=org/m",),
        {"checkpoint_lora": rows({"base": "org/m"}, "checkpoint_lora")}),
    ("convert/merge_lora", "output_path_overlaps_inputs"): Fault(
        "overlap", ("base_hf_path={tmp}/base", "output_hf_path={tmp}/base"), ("output_hf_path={tmp}/merged",)),
    ("optimize/modelopt/distill", "mock_data_used_as_quality_signal"): Fault(
        "asks for a model to use", ("args.use_mock_data=true", "args.hf_export_path=/out/hf"),
        ("args.use_mock_data=false",)),
    ("optimize/modelopt/distill", "teacher_student_or_tokenizer_mismatch"): Fault(
        "was made with the tokenizer", subjects={"binidx": MISMATCH["tokens"], "checkpoint_hf": model(tokenizers=B)}),
    ("optimize/modelopt/distill", "output_dir_overlaps_checkpoint_roots"): Fault(
        "overlap", ("args.student_hf_path={tmp}/s", "args.output_dir={tmp}"), ("args.output_dir={tmp}/run",)),
    ("optimize/modelopt/distill", "world_size_not_divisible"): Fault(
        "needs a multiple of 3 GPUs", ("args.tp_size=3",), ("args.tp_size=4",)),
    ("optimize/modelopt/distill", "data_missing"): Fault("nothing is there", ("args.data_paths={tmp}/none.json",)),
    ("optimize/modelopt/distill", "data_invalid"): Fault(
        "b.json", ("args.teacher_hf_path=org/m", "args.data_paths={tmp}/b.json"), files={"b.json": "{"}),
    ("optimize/modelopt/distill", "model_missing"): Fault("nothing is there", ("args.teacher_hf_path={tmp}/none",)),
    ("optimize/modelopt/distill", "model_invalid"): Fault(
        "has no config.json", ("args.teacher_hf_path={tmp}/m",), files=NO_MODEL),
    ("optimize/modelopt/prune", "model_missing"): Fault(
        "nothing is there", ("args.hf_model_name_or_path={tmp}/none",)),
    ("optimize/modelopt/prune", "model_invalid"): Fault(
        "has no config.json", ("args.hf_model_name_or_path={tmp}/m",), files=NO_MODEL),
    ("optimize/modelopt/prune", "target_and_export_config_both_set"): Fault(
        "both set", ("args.prune_export_config={num_layers: 24}",), ("args.prune_target_params=null",)),
    ("optimize/modelopt/prune", "output_path_overlaps_input"): Fault(
        "overlap", ("args.hf_model_name_or_path={tmp}/link", "args.output_hf_path={tmp}/m/small"),
        ("args.output_hf_path={tmp}/small",), files={"m/config.json": "{}"}),
    ("optimize/modelopt/prune", "invalid_parallel_divisibility"): Fault(
        "args.pp_size=5 does not divide the 36 layers", ("args.pp_size=5",), ("args.pp_size=4",)),
    ("optimize/modelopt/quantize", "unsupported_quant_recipe"): Fault(
        "fp7", ("args.export_quant_cfg=fp7",), ("args.export_quant_cfg=nvfp4",)),
    ("optimize/modelopt/quantize", "world_size_not_divisible"): Fault("needs a multiple of 16 GPUs"),
    ("optimize/modelopt/quantize", "source_checkpoint_overwritten"): Fault(
        "overlap", ("args.hf_model_id={tmp}/m", "args.megatron_save_path={tmp}/m"),
        ("args.megatron_save_path={tmp}/q",)),
    ("optimize/modelopt/quantize", "model_missing"): Fault("nothing is there", ("args.hf_model_id={tmp}/none",)),
    ("optimize/modelopt/quantize", "model_invalid"): Fault(
        "has no config.json", ("args.hf_model_id={tmp}/m",), files=NO_MODEL),
    ("peft/automodel", "oom"): Fault("weights 7.3", ("distributed.strategy=fsdp2",)),
    ("peft/automodel", "packed_parquet_used_with_automodel"): Fault(
        "is Parquet", ("dataset.path_or_dataset_id={tmp}/p",), ("dataset.path_or_dataset_id={tmp}",),
        files={"p/shard.parquet": "", "rows.jsonl": ""}),
    ("peft/automodel", "dataset_missing"): Fault("nothing is there", ("dataset.path_or_dataset_id={tmp}/none",)),
    ("peft/automodel", "dataset_invalid"): Fault(
        "r.jsonl:1: is not JSON", ("dataset.path_or_dataset_id={tmp}/r.jsonl",), files={"r.jsonl": "{broken\n"}),
    ("peft/automodel", "unsupported_scheduler_kwargs"): Fault("warmup_steps", ("lr_scheduler.warmup_steps=10",)),
    ("peft/megatron_bridge", "tokenizer_mismatch"): Fault("was made with the tokenizer", subjects=PACKED),
    ("peft/megatron_bridge", "sequence_length_mismatch"): Fault(
        "model.seq_length=2048", ("model.seq_length=2048",), ("model.seq_length=4096",)),
    ("peft/megatron_bridge", "bad_parallel_batch_shape"): Fault(
        "needs a multiple of 3 GPUs", ("model.pipeline_model_parallel_size=3",),
        ("model.pipeline_model_parallel_size=1",)),
    ("peft/megatron_bridge", "missing_packed_data"): Fault(
        "nothing is there", ("dataset.packed_sequence_specs.packed_train_data_path={tmp}/none",)),
    ("peft/megatron_bridge", "missing_base_checkpoint"): Fault("checkpoint.pretrained_checkpoint is not given"),
    ("peft/megatron_bridge", "base_and_adapter_paths_mixed"): Fault(
        "overlap", ("checkpoint.pretrained_checkpoint={tmp}/b", "checkpoint.save={tmp}/b/lora"),
        ("checkpoint.save={tmp}/l",)),
    ("pretrain/automodel", "missing_blend_json"): Fault("nothing is there", ("dataset.paths={tmp}/blend.json",)),
    ("pretrain/automodel", "tokenizer_or_sequence_mismatch"): Fault(
        "validation_dataset.seq_length=4096", ("dataset.seq_length=2048",), ("validation_dataset.seq_length=2048",)),
    ("pretrain/automodel", "unsupported_scheduler_kwargs"): Fault("warmup_steps", ("lr_scheduler.warmup_steps=10",)),
    ("pretrain/megatron_bridge", "missing_blend_json"): Fault(
        "nothing is there", ("dataset.data_paths={tmp}/blend.json",)),
    ("pretrain/megatron_bridge", "sequence_length_mismatch"): Fault(
        "recipe.seq_length=8192", ("model.seq_length=4096",), ("model.seq_length=8192",)),
    ("pretrain/megatron_bridge", "tokenizer_mismatch"): Fault(
        "was made with the tokenizer",
        subjects={"binidx": MISMATCH["tokens"], "checkpoint_megatron": MISMATCH["m"]}),
    ("pretrain/megatron_bridge", "bad_parallel_batch_shape"): Fault(
        "needs a multiple of 3 GPUs", ("model.context_parallel_size=3",), ("model.context_parallel_size=1",)),
    ("pretrain/megatron_bridge", "missing_base_checkpoint"): Fault(
        "nothing is there", ("checkpoint.pretrained_checkpoint={tmp}/none",)),
    ("pretrain/megatron_bridge", "base_and_adapter_paths_mixed"): Fault(
        "overlap", ("checkpoint.pretrained_checkpoint={tmp}/b", "checkpoint.save={tmp}/b"),
        ("checkpoint.save={tmp}/run",)),
    ("rl/nemo_rl/dpo", "train_used_as_validation_unintentionally"): Fault(
        "has no validation split of its own", BOTH, ("data.validation.data_path=null",),
        files={"prep/manifest.json": SPLIT}),
    ("rl/nemo_rl/dpo", "dataset_empty"): Fault("'train' is empty", BOTH, files={"prep/manifest.json": EMPTY}),
    ("rl/nemo_rl/dpo", "model_missing"): Fault("nothing is there", ("policy.model_name={tmp}/none",)),
    ("rl/nemo_rl/dpo", "model_invalid"): Fault("{tmp}/m", ("policy.model_name={tmp}/m",), files=NO_MODEL),
    ("rl/nemo_rl/dpo", "inverted_preference_pairs"): Fault(
        "chosen_score 1 is below rejected_score 2", (DATA,),
        files={"prep/r.jsonl": json.dumps(INVERTED) + "\n"}),
    ("rl/nemo_rl/dpo", "batch_shape_not_divisible"): Fault(
        "no multiple of 3 rows x 8", ("policy.train_micro_batch_size=3",), ("policy.train_micro_batch_size=4",)),
    ("rl/nemo_rl/rlhf", "responses_api_schema_missing"): Fault(
        "2 rows of up/stream have no responses_create_params",
        subjects={"training_jsonl": rows({"kinds": {"prompt": 2}})}),
    ("rl/nemo_rl/rlhf", "reward_model_policy_confused"): Fault("are both", SAME, ("policy.model_name={tmp}/other",)),
    ("rl/nemo_rl/rlhf", "train_used_as_validation_unintentionally"): Fault(
        "are both {tmp}/t.jsonl", ("data.train.data_path={tmp}/t.jsonl", "data.validation.data_path={tmp}/t.jsonl"),
        ("data.validation.data_path={tmp}/v.jsonl",), files={"t.jsonl": "", "v.jsonl": ""}),
    ("rl/nemo_rl/rlhf", "dataset_empty"): Fault(
        "'train' is empty", ("data.manifest_path={tmp}/manifest.json",), files={"manifest.json": EMPTY}),
    ("rl/nemo_rl/rlhf", "model_missing"): Fault("nothing is there", ("policy.model_name={tmp}/none",)),
    ("rl/nemo_rl/rlhf", "model_invalid"): Fault("{tmp}/m", ("policy.model_name={tmp}/m",), files=NO_MODEL),
    ("rl/nemo_rl/rlvr", "train_used_as_validation_unintentionally"): Fault(
        "has no validation split of its own", BOTH, ("data.validation.data_path=null",),
        files={"prep/manifest.json": SPLIT}),
    ("rl/nemo_rl/rlvr", "dataset_empty"): Fault("'train' is empty", BOTH, files={"prep/manifest.json": EMPTY}),
    ("rl/nemo_rl/rlvr", "model_missing"): Fault("nothing is there", ("policy.model_name={tmp}/none",)),
    ("rl/nemo_rl/rlvr", "model_invalid"): Fault("{tmp}/m", ("policy.model_name={tmp}/m",), files=NO_MODEL),
    ("rl/nemo_rl/rlvr", "missing_verifier_fields"): Fault(
        "has no field with an answer (it has prompt)",
        subjects={"training_jsonl": rows({"kinds": {"prompt": 2}, "columns": [["prompt", "str"]]})}),
    ("rl/nemo_rl/rlvr", "rollout_batch_not_divisible"): Fault(
        "do not split over 8", ("grpo.num_prompts_per_step=3", "grpo.num_generations_per_prompt=7"),
        ("grpo.num_generations_per_prompt=8",)),
    ("rl/nemo_rl/rlvr", "mixed_nemo_gym_and_upstream_config"): Fault(
        "dataset_name is DAPOMath17K", ("env.should_use_nemo_gym=true",),
        ("data.default.dataset_name=NemoGymDataset",)),
    ("sft/automodel", "chat_template_missing"): Fault(
        "has no chat template", subjects={"checkpoint_hf": model(facts={"chat_template": False})},
        right=("dataset.chat_template=chatml",)),
    ("sft/automodel", "oom"): Fault("weights 7.11, gradients 7.11, optimizer 14.2"),
    ("sft/automodel", "packed_parquet_used_with_automodel"): Fault(
        "is Parquet", ("dataset.path_or_dataset_id={tmp}/x.parquet",), ("dataset.path_or_dataset_id={tmp}/x.jsonl",),
        files={"x.parquet": "", "x.jsonl": ""}),
    ("sft/automodel", "dataset_missing"): Fault("is a placeholder"),
    ("sft/automodel", "dataset_invalid"): Fault(
        "r.jsonl:1: is not JSON", ("dataset.path_or_dataset_id={tmp}/r.jsonl",), files={"r.jsonl": "{broken\n"}),
    ("sft/automodel", "model_missing"): Fault(
        "nothing is there", ("model.pretrained_model_name_or_path={tmp}/none",)),
    ("sft/automodel", "model_invalid"): Fault(
        "has no config.json",
        ("model.pretrained_model_name_or_path={tmp}/m", "dataset.path_or_dataset_id={tmp}/r.jsonl"),
        files={"m/notes.txt": "", "r.jsonl": '{"messages": [{"role": "user", "content": "a"}]}\n'}),
    ("sft/automodel", "unsupported_scheduler_kwargs"): Fault("warmup_steps", ("lr_scheduler.warmup_steps=10",)),
    ("sft/megatron_bridge", "tokenizer_mismatch"): Fault(
        "was made with the tokenizer", subjects=PACKED),
    ("sft/megatron_bridge", "sequence_length_mismatch"): Fault(
        "dataset.seq_length=2048", ("dataset.seq_length=2048",), ("dataset.seq_length=4096",)),
    ("sft/megatron_bridge", "missing_base_checkpoint"): Fault(
        "nothing is there", ("checkpoint.pretrained_checkpoint={tmp}/none",)),
    ("sft/megatron_bridge", "base_and_adapter_paths_mixed"): Fault(
        "overlap", ("checkpoint.pretrained_checkpoint={tmp}/b", "checkpoint.save={tmp}/b"),
        ("checkpoint.save={tmp}/run",)),
    ("sft/megatron_bridge", "oom"): Fault("weights 7.87, gradients 15.7, optimizer 44.1"),
    ("sft/megatron_bridge", "missing_packed_data"): Fault(
        "nothing is there", ("dataset.packed_sequence_specs.packed_train_data_path={tmp}/none",)),
    ("sft/megatron_bridge", "bad_parallel_batch_shape"): Fault(
        "no multiple of 1 rows x 2", ("train.global_batch_size=7",), ("train.global_batch_size=6",)),
}  # fmt: skip


#: Further ways in which a marked error comes about.
MORE: list[tuple[tuple[str, str], Fault]] = [
    (("sft/megatron_bridge", "sequence_length_mismatch"), Fault("was packed to 2,048 tokens", subjects=PACKS_2K)),
    (("peft/megatron_bridge", "sequence_length_mismatch"), Fault("was packed to 2,048 tokens", subjects=PACKS_2K)),
    (("pretrain/megatron_bridge", "missing_base_checkpoint"), Fault(
        "{tmp}/m", ("checkpoint.pretrained_checkpoint={tmp}/m", "dataset.data_paths=org/x"), files=NO_MODEL)),
    (("rl/nemo_rl/dpo", "train_used_as_validation_unintentionally"), Fault(
        "are both {tmp}/t.jsonl", ("data.train.data_path={tmp}/t.jsonl", "data.validation.data_path={tmp}/t.jsonl"),
        ("data.validation.data_path={tmp}/v.jsonl",), files={"t.jsonl": "", "v.jsonl": ""})),
    (("convert/merge_lora", "base_model_mismatch"), Fault(
        "base_model_name_or_path", ("lora_checkpoint={tmp}/l",),
        files={"l/adapter_config.json": '{"r": 8, "lora_alpha": 8, "peft_type": "LORA"}'})),
    (("rl/nemo_rl/rlhf", "dataset_empty"), Fault(
        "'val' is empty", ("data.manifest_path={tmp}/manifest.json", "data.allow_train_as_validation=true"),
        files={"manifest.json": SPLIT})),
    (("rl/nemo_rl/rlhf", "train_used_as_validation_unintentionally"), Fault(
        "has no validation split of its own", ("data.manifest_path={tmp}/manifest.json",),
        files={"manifest.json": SPLIT})),
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's directory, with the variables of the default configs, and a link to ``m``."""
    for name in ("SFT_PACKED_DIR", "SFT_OUTPUT_DIR", "PRETRAIN_BLEND_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "given"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))
    (tmp_path / "given").mkdir()
    (tmp_path / "link").symlink_to("m")
    return tmp_path


def job(step: Step, overrides: tuple[str, ...], place: Path) -> JobSpec:
    """The step's default config on 8 GPUs."""
    told = tuple(o.replace("{tmp}", str(place)) for o in overrides)
    return compile_job(step, None, told, profile="p", environment=Environment(None, {"p": GPUS}))


def refusal(step: Step, fault: Fault, place: Path, check: str, overrides: tuple[str, ...]) -> str:
    """What is said before submission; "" where nothing is refused for this fault's kind of check."""
    spec = job(step, overrides, place)
    kind = check.partition(":")[0]
    try:
        if check == "memory":
            check_memory(BUNDLED, replace(spec, run={**spec.run, "env": {**spec.environment, "gpu_memory_gb": 5}}))
        elif check == "parallel":
            found = check_job(BUNDLED, Environment(None, {"p": GPUS}), spec)
            raise PreflightError("\n".join(f.message for f in found if f.level == "error"))
        elif kind == "input":
            if not any(problems(case_of(BUNDLED, spec))):  # else it is refused before inputs are read
                examine(BUNDLED, spec, {})
        elif check in LOCKS:
            refuse(step, list(check_all(step, fault.subjects, spec.train)))
        else:
            return "\n".join(problems(replace(case_of(BUNDLED, spec), subjects=fault.subjects)))
    except NemotronError as e:
        assert isinstance(e, ArtifactError if kind == "input" else PreflightError)
        return str(e)
    return ""


def test_every_marked_error_has_a_case_here_and_no_other() -> None:
    assert set(FAULTS) == set(MARKED)
    assert len({step for step, _ in FAULTS}) == 15


@pytest.mark.parametrize(
    ("key", "fault"), [*FAULTS.items(), *MORE], ids=["-".join(k) for k in [*FAULTS, *(k for k, _ in MORE)]]
)
def test_the_error_is_refused_with_its_recovery(key: tuple[str, str], fault: Fault, place: Path) -> None:
    step, error = CATALOG.find(key[0]), MARKED[key]
    for name, text in fault.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    said = [refusal(step, fault, place, check, fault.overrides) for check in error["check"]]
    told = next((s for s in said if fault.found.replace("{tmp}", str(place)) in s), "")
    assert error["recovery"] in told, said
    if fault.right:
        right = [refusal(step, fault, place, c, (*fault.overrides, *fault.right)) for c in error["check"]]
        assert not any(error["recovery"] in text for text in right), right


def test_no_shipped_config_is_refused_for_what_it_says_itself(place: Path) -> None:
    """Nothing is refused but what is not given: placeholders, and the base of an adapter."""
    for step in STEPS:
        for config in step.configs:
            spec = compile_job(step, config, profile="p", environment=Environment(None, {"p": GPUS}))
            for text in problems(case_of(BUNDLED, spec)):
                assert "is a placeholder" in text or "is not given" in text, f"{step.id} -c {config}: {text}"


def test_every_rule_has_a_description_and_a_step_that_names_it() -> None:
    names = {name.partition(":")[0] for error in MARKED.values() for name in error["check"]}
    assert set(RULES) <= set(CHECKS) and set(RULES) <= names
    assert all(known(name) for error in MARKED.values() for name in error["check"])
    text = (REPO / "docs/steps.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` | {description} |" in text for name, description in CHECKS.items())


def test_a_link_does_not_hide_an_overlap_and_names_that_begin_alike_do_not_overlap(place: Path) -> None:
    step = CATALOG.find("convert/hf_to_megatron")
    (place / "m").mkdir()
    fault = Fault("overlap")
    assert "overlap" in refusal(step, fault, place, "apart", ("hf_model_id={tmp}/link", "megatron_path={tmp}/m/x"))
    assert "overlap" in refusal(step, fault, place, "apart", ("hf_model_id={tmp}/m/x", "megatron_path={tmp}/link"))
    assert not refusal(step, fault, place, "apart", ("hf_model_id={tmp}/m", "megatron_path={tmp}/m2"))


def test_a_run_is_refused_with_exit_code_5_and_a_dry_run_says_so(
    project: Path, nemotron: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    step = ("steps", "run", "sft/automodel", "-c", "tiny", "dataset.path_or_dataset_id=packed.parquet")
    (project / "packed.parquet").write_text("")
    recovery = MARKED["sft/automodel", "packed_parquet_used_with_automodel"]["recovery"]
    shown = nemotron(*step, "-d", "--json", cwd=project)
    assert shown.returncode == 0 and recovery in json.loads(shown.stdout)["submission"]["refused"]
    done = nemotron(*step, cwd=project)
    assert done.returncode == 5 and recovery in " ".join(done.stderr.split()), done.stderr
    assert not (project / ".nemotron/ledger").exists()
