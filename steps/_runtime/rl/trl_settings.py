"""Which of NeMo-RL's settings TRL can honour: the rest is refused where it would train something else, or said.

``dpo.*``, ``grpo.*``, ``loss_fn.*`` and ``policy.*`` are the keys of NeMo-RL's own configs. A key is honoured (the
runners read it), must have the one value that TRL has, or does nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _runtime.payload import PayloadError
from _runtime.rl.settings import at, leaves

#: Keys by their beginnings that the runners read or that say the same to both backends.
HONOURED = (
    "backend", "defaults", "checkpointing.", "logger.log_dir", "logger.wandb", "logger.tensorboard_enabled",
    "data.manifest_path", "data.allow_train_as_validation", "data.train.", "data.validation.", "data.default.",
    "data.shuffle", "data.num_workers",
    "policy.model_name", "policy.hf_model_id", "policy.tokenizer.name", "policy.train_",
    "policy.max_total_sequence_length",
    "policy.precision", "policy.max_grad_norm", "policy.optimizer", "policy.scheduler",
    "policy.dtensor_cfg.activation_checkpointing", "policy.generation.max_new_tokens", "policy.generation.temperature",
    "policy.generation.top_", "dpo.max_num_", "dpo.val_", "dpo.seed", "dpo.reference_policy_kl_penalty",
    "dpo.preference_loss_weight", "dpo.sft_loss_weight", "dpo.sft_average_log_probs", "grpo.num_", "grpo.max_num_",
    "grpo.val_", "grpo.max_val_samples", "grpo.seed", "grpo.normalize_rewards", "grpo.overlong_filtering",
    "loss_fn.reference_policy_kl_penalty", "loss_fn.ratio_clip_m", "loss_fn.token_level_loss",
    "loss_fn.sequence_level_importance_ratios", "env.math.reward_", "env.judge.", "env.should_use_nemo_gym",
    "env.nemo_gym.genrm_compare.", "env.nemo_gym.genrm_model.responses_api_models.genrm_model.model",
)  # fmt: skip

_COMPARE = "env.nemo_gym.genrm_compare.resources_servers.genrm_compare"

#: What must be so, since TRL does nothing else.
ONLY: Mapping[str, Any] = {
    "dpo.preference_average_log_probs": False,
    "grpo.use_leave_one_out_baseline": False,
    "grpo.use_dynamic_sampling": False,
    "grpo.reward_shaping.enabled": False,
    "grpo.reward_scaling.enabled": False,
    "grpo.async_grpo.enabled": False,
    "grpo.use_best_at_k": False,
    "grpo.use_combined_training": False,
    "grpo.batch_multiplier": 1,
    "grpo.max_rollout_turns": 1,
    "grpo.val_at_end": False,
    "loss_fn.reference_policy_kl_type": "k3",
    "loss_fn.kl_input_clamp_value": None,
    "loss_fn.kl_output_clamp_value": None,
    "loss_fn.ratio_clip_c": None,
    "loss_fn.use_kl_in_reward": False,
    "policy.megatron_cfg.enabled": False,
    "policy.dynamic_batching.enabled": False,
    "policy.sequence_packing.enabled": False,
    "policy.draft.enabled": False,
    "policy.tokenizer.chat_template_kwargs": None,
    "policy.generation.stop_token_ids": None,
    "policy.generation.stop_strings": None,
    "data.default.prompt_file": None,
    "data.default.system_prompt_file": None,
    "data.train.prompt_file": None,
    "data.validation.prompt_file": None,
    "checkpointing.enabled": True,
    "checkpointing.checkpoint_must_save_by": None,
    "env.use_genrm_compare": True,
    f"{_COMPARE}.aggregator_method": "simple_tiebreaker",
    **{
        f"{_COMPARE}.{name}": 0
        for name in (
            "reasoning_bonus",
            "answer_bonus",
            "group_reasoning_length_penalty_coeff",
            "group_answer_length_penalty_coeff",
            "group_style_penalty_coeff",
        )
    },
}
# DPO's objective lies below `dpo`, GRPO's below the others.
_OTHERS = {"dpo": ("grpo.", "loss_fn.", "env.", "policy.generation."), "grpo": ("dpo.",)}


def check(cfg: Mapping[str, Any], algorithm: str, on_cpu: bool) -> None:
    """Refuse what TRL would train otherwise; print what it does not use.

    Raises:
        PayloadError: naming every such key with the value that it must have.
    """
    found = {k: v for k, v in leaves(cfg).items() if not k.startswith(_OTHERS[algorithm])}
    wanted = {**ONLY, **({"policy.precision": "float32"} if on_cpu else {})}
    wrong = [f"{k}={_text(wanted[k])} (is {_text(v)})" for k, v in found.items() if k in wanted and v != wanted[k]]
    if wrong:
        raise PayloadError(
            "trl_unsupported",
            f"backend=trl trains with nothing but {', '.join(wrong)}",
            "Set these, or run with backend=nemo_rl in NeMo-RL's container.",
        )
    unused = sorted({_short(k) for k in found if k not in wanted and not k.startswith(HONOURED)})
    if unused:
        print(f"backend=trl does not use: {', '.join(unused)}", flush=True)


def batch(cfg: Mapping[str, Any]) -> tuple[int, int]:
    """(rows of a micro batch, micro batches of an optimizer step) on this one process.

    Raises:
        PayloadError: they do not divide.
    """
    whole, micro = at(cfg, "policy.train_global_batch_size"), at(cfg, "policy.train_micro_batch_size", 1)
    if not (isinstance(whole, int) and isinstance(micro, int) and whole > 0 and micro > 0) or whole % micro:
        raise PayloadError(
            "batch_shape_not_divisible",
            f"policy.train_global_batch_size={whole!r} is no multiple of policy.train_micro_batch_size={micro!r}",
            "Choose whole numbers of which the first is a multiple of the second.",
        )
    return micro, whole // micro


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short(key: str) -> str:
    """Sections that are of no use as a whole are named once."""
    parts = key.split(".")
    whole = parts[0] in ("cluster", "env") or parts[:2] in (
        ["policy", "dtensor_cfg"],
        ["policy", "generation"],
        ["logger", "mlflow"],
    )
    return ".".join(parts[: 1 if parts[0] == "cluster" else 2]) if whole else key
