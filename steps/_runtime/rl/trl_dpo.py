"""DPO with TRL, by the keys of a NeMo-RL config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _runtime import cpu
from _runtime.rl import data, layouts, optimizing, trl_settings, trl_train
from _runtime.rl import policy as policies
from _runtime.rl.settings import at, real, whole


def run(cfg: dict[str, Any], output: Path) -> None:
    """Train the policy on preference pairs, with itself at the start as the reference.

    Raises:
        PayloadError: input that a person must mend.
    """
    trl_settings.check(cfg, "dpo", not cpu.has_cuda())
    source = data.own(cfg)
    pairs = layouts.read(source.train, data.TRAIN, layouts.preference)
    held_out = layouts.read(source.validation, data.VALIDATION, layouts.preference) if source.validation else []
    seed = whole(cfg, "dpo.seed", 42, least=0)
    micro, accumulate = trl_settings.batch(cfg)
    steps = trl_train.steps_of(cfg, "dpo", len(pairs), micro * accumulate)
    trl_train.prepare_environment()
    policy = policies.find(cfg, output, seed)
    trl_train.go_offline(policy)
    tokenizer = policies.tokenizer(cfg, policy)
    model = policies.load(cfg, policy)

    from trl import DPOConfig, DPOTrainer

    validate_every = whole(cfg, "dpo.val_period", 0, least=0) if held_out else 0
    args = DPOConfig(**arguments(cfg, output, steps, seed, validate_every))
    trainer = DPOTrainer(
        model=model,
        args=args,
        train_dataset=_dataset(pairs),
        eval_dataset=_dataset(_limited(cfg, held_out)) if held_out else None,
        processing_class=tokenizer,
        optimizers=optimizing.build(cfg, model),
    )
    trl_train.run(
        trainer,
        output,
        policy,
        tokenizer,
        {"algorithm": "dpo", "rows": len(pairs), "validation_rows": len(held_out), "beta": args.beta},
    )


def arguments(cfg: Mapping[str, Any], output: Path, steps: int, seed: int, validate_every: int) -> dict[str, Any]:
    """Fields of TRL's ``DPOConfig``, from NeMo-RL's keys; ``validate_every`` is 0 for never."""
    return {
        **trl_train.arguments(cfg, output, steps, seed, validate_every),
        **_loss(cfg),
        "beta": real(cfg, "dpo.reference_policy_kl_penalty"),
        "max_length": whole(cfg, "policy.max_total_sequence_length"),
        "per_device_eval_batch_size": whole(cfg, "dpo.val_micro_batch_size", trl_settings.batch(cfg)[0]),
        "eval_on_start": bool(validate_every and at(cfg, "dpo.val_at_start", False)),
        "train_sampling_strategy": "random" if at(cfg, "data.shuffle", True) else "sequential",
    }


def _loss(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The weighted sum of the preference loss and, where it has a weight, the loss of plain fine-tuning."""
    preference, plain = real(cfg, "dpo.preference_loss_weight", 1), real(cfg, "dpo.sft_loss_weight", 0)
    if not plain:
        return {"loss_type": ["sigmoid"], "loss_weights": [preference]}
    return {"loss_type": ["sigmoid", "sft"], "loss_weights": [preference, plain]}


def _limited(cfg: Mapping[str, Any], rows: list[Any]) -> list[Any]:
    """The rows of ``dpo.val_batches`` batches; a number below 1 means all, as in NeMo-RL."""
    batches, size = at(cfg, "dpo.val_batches", -1), at(cfg, "dpo.val_global_batch_size", len(rows))
    return rows[: batches * size] if isinstance(batches, int) and batches > 0 and isinstance(size, int) else rows


def _dataset(pairs: list[tuple[layouts.Messages, layouts.Messages, layouts.Messages]]) -> Any:
    from datasets import Dataset

    names = ("prompt", "chosen", "rejected")
    return Dataset.from_list([dict(zip(names, pair, strict=True)) for pair in pairs])
