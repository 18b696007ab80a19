"""Preflight rules about numbers of the config: lengths, batches, layers, recipes."""

from __future__ import annotations

from collections.abc import Mapping

from nemotron_dagster.config.keys import ABSENT, get
from nemotron_dagster.jobs.preflight_case import Case
from nemotron_dagster.sizing.models import known
from nemotron_dagster.sizing.shape import UnknownShape

_LENGTHS = (
    "recipe.seq_length",
    "model.seq_length",
    "dataset.seq_length",
    "seq_length",
    "validation_dataset.seq_length",
)
#: What examples/quantization/quantize_utils.py of Megatron-Bridge lists.
_RECIPES = (
    "int8_sq", "fp8", "fp8_blockwise", "int4_awq", "w4a8_awq", "nvfp4", "mamba_moe_fp8_aggressive",
    "mamba_moe_fp8_conservative", "mamba_moe_nvfp4_aggressive", "mamba_moe_nvfp4_conservative",
)  # fmt: skip


def one_length(case: Case) -> str:
    """Lengths that must be one number."""
    found = {k: v for k in _LENGTHS if isinstance(v := case.value(k), int)}
    if len(set(found.values())) < 2:
        return ""
    return f"sequence lengths differ: {', '.join(f'{k}={v}' for k, v in found.items())}."


def scheduler_keys(case: Case) -> str:
    """Keys of schedules that other trainers have."""
    return (
        "lr_scheduler.warmup_steps is set."
        if get(case.spec.train, "lr_scheduler.warmup_steps", ABSENT) is not ABSENT
        else ""
    )


def batch(case: Case) -> str:
    """Megatron and NeMo-RL split a batch into micro batches of every data-parallel rank, without a rest."""
    parallel = case.parallel
    if parallel is None:
        return ""
    ranks = max(parallel.world // (parallel.tp * parallel.pp * parallel.cp), 1)
    at = "policy.train_" if case.family == "nemo_rl" else "train."
    size, micro = case.value(f"{at}global_batch_size"), case.value(f"{at}micro_batch_size") or 1
    if isinstance(size, int) and isinstance(micro, int) and size % (micro * ranks):
        unit = f"{micro} rows x {ranks} data-parallel ranks"
        return f"{at}global_batch_size={size} is no multiple of {unit} = {micro * ranks}."
    prompts, answers = case.value("grpo.num_prompts_per_step"), case.value("grpo.num_generations_per_prompt")
    if isinstance(prompts, int) and isinstance(answers, int) and prompts * answers % ranks:
        return f"{prompts} prompts x {answers} answers do not split over {ranks} data-parallel ranks."
    return ""


def one_target(case: Case) -> str:
    """A budget and a shape contradict each other."""
    budget, shape = case.value("args.prune_target_params"), case.value("args.prune_export_config")
    return f"args.prune_target_params={budget} and args.prune_export_config are both set." if budget and shape else ""


def layers(case: Case) -> str:
    """Stages of a pipeline have as many layers each, unless the first or the last is told otherwise."""
    stages = case.value("args.pp_size")
    own = (case.value(f"args.num_layers_in_{end}_pipeline_stage") for end in ("first", "last"))
    if not isinstance(stages, int) or stages < 2 or any(own):
        return ""
    target = case.value("args.prune_export_config")
    count = target.get("num_layers") if isinstance(target, Mapping) else None
    name = case.value("args.hf_model_name_or_path")
    if count is None and isinstance(name, str):
        try:
            count = known(name, case.tables).shape.layers
        except UnknownShape:
            return ""
    wrong = isinstance(count, int) and count % stages
    return f"args.pp_size={stages} does not divide the {count} layers." if wrong else ""


def quant_recipe(case: Case) -> str:
    """A recipe that the script's own choices lack."""
    name = case.value("args.export_quant_cfg")
    return "" if name in _RECIPES else f"args.export_quant_cfg={name} is none of {', '.join(_RECIPES)}."
