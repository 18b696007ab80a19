"""What DPO and GRPO share under backend=trl: arguments of the trainer, resuming, and what is left behind.

Below ``checkpointing.checkpoint_dir``:

    megatron/          the artifact: the trained policy as a Megatron checkpoint
    hf/                the same as a Hugging Face model
    checkpoint-N/      to resume from: model, optimizer, schedule, random states
    metrics.parquet    one row per optimizer step
    base/, policy_hf/  the policy at the start, where it had to be made or exported
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _runtime import cpu, failures, hf_checkpoint, metrics, payload
from _runtime.payload import PayloadError
from _runtime.rl import checkpoints, publish, trl_report, trl_settings
from _runtime.rl.policy import Policy
from _runtime.rl.settings import at, real, whole

_ADVICE = {
    "disk_full": "Free space, or lower checkpointing.keep_top_k; the same command continues from the last whole one.",
    "oom": "Lower policy.train_micro_batch_size, policy.max_total_sequence_length or the generations per prompt.",
}


def prepare_environment() -> None:
    """Send nothing anywhere, and draw no bars into the log."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def go_offline(policy: Policy) -> None:
    """Do not wait for a hub that nothing is asked of. Call it before transformers is imported."""
    if hf_checkpoint.is_local(policy.path):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def arguments(cfg: Mapping[str, Any], output: Path, steps: int, seed: int, validate_every: int) -> dict[str, Any]:
    """Arguments of a TRL config that follow from NeMo-RL's keys; ``validate_every`` is 0 for never."""
    micro, accumulate = trl_settings.batch(cfg)
    trackers = [name for name in ("wandb", "tensorboard") if at(cfg, f"logger.{name}_enabled", False)]
    for variable, key in {"WANDB_PROJECT": "project", "WANDB_ENTITY": "entity", "WANDB_NAME": "name"}.items():
        if "wandb" in trackers and at(cfg, f"logger.wandb.{key}"):
            os.environ.setdefault(variable, str(at(cfg, f"logger.wandb.{key}")))
    if "tensorboard" in trackers:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(at(cfg, "logger.log_dir", output / "logs")))
    on_cpu = not cpu.has_cuda()
    keep = at(cfg, "checkpointing.keep_top_k")
    return {
        "output_dir": str(output),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": 0.0,  # the optimizer is ours
        "max_grad_norm": real(cfg, "policy.max_grad_norm", 1.0),
        "seed": seed,
        "dataloader_drop_last": True,
        "dataloader_num_workers": whole(cfg, "data.num_workers", 0, least=0),
        "dataloader_pin_memory": not on_cpu,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": trackers or "none",
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": whole(cfg, "checkpointing.save_period", steps),
        "save_total_limit": None if keep is None else max(2, int(keep)),  # one may be torn by a kill
        "save_only_model": at(cfg, "checkpointing.save_optimizer", True) is False,
        "eval_strategy": "steps" if validate_every else "no",
        "eval_steps": validate_every or None,
        "use_cpu": on_cpu,
        "bf16": not on_cpu and at(cfg, "policy.precision") == "bfloat16",
        "gradient_checkpointing": bool(at(cfg, "policy.dtensor_cfg.activation_checkpointing", False)),
    }


def steps_of(cfg: Mapping[str, Any], section: str, rows: int, rows_per_step: int) -> int:
    """How many steps the run has: those asked for, or what the epochs hold where that is less.

    Raises:
        PayloadError: the rows do not fill one step.
    """
    per_epoch = rows // rows_per_step
    if not per_epoch:
        raise PayloadError(
            "dataset_empty",
            f"{rows} rows do not fill one step of {rows_per_step}",
            "Give more rows, or lower the batch size.",
        )
    return min(whole(cfg, f"{section}.max_num_steps"), per_epoch * whole(cfg, f"{section}.max_num_epochs", 1))


def run(trainer: Any, output: Path, policy: Policy, tokenizer: Any, facts: Mapping[str, Any]) -> None:
    """Train from the last whole checkpoint on, publish the result, report its facts.

    Raises:
        PayloadError: a loss that is no number, a full disk, too little memory.
        SystemExit: 143 after SIGTERM, once a checkpoint is saved.
    """
    from transformers import PrinterCallback

    total = int(trainer.args.max_steps)
    reporter = trl_report.reporter(total)
    trainer.add_callback(reporter)
    trainer.remove_callback(PrinterCallback)  # it would print what the reporter reports
    trainer.get_eval_dataloader = _whole(trainer)
    found = checkpoints.latest(output)
    resumed_from = found[0] if found else None
    if found is None or found[0] < total:
        with failures.told(output, **_ADVICE):
            trainer.train(resume_from_checkpoint=str(found[1]) if found else None)
        found = checkpoints.latest(output)
    if reporter.stopped:
        print("stopped by SIGTERM after a checkpoint; the same command continues from it", flush=True)
        raise SystemExit(trl_report.STOPPED)
    if found is None:
        raise RuntimeError("training ended without a whole checkpoint")
    log = trl_report.records(publish.history(found[1]))
    metrics.save(output, log)
    with failures.told(output, **_ADVICE):
        publish.from_hf(found[1], found[1], output)
    losses = [r for r in log if "loss" in r]
    payload.result(
        backend="trl",
        **policy.facts,
        **facts,
        parameters=int(trainer.model.num_parameters()),
        steps=found[0],
        first_loss=losses[0]["loss"] if losses else None,
        final_loss=losses[-1]["loss"] if losses else None,
        **_ends(losses, ("reward", "margin", "accuracy", "kl", "judge_unparseable")),
        resumed_from=resumed_from,
        seed=int(trainer.args.seed),
        processes=1,
        **hf_checkpoint.tokenizer_facts(output / publish.HF),
    )


def _whole(trainer: Any) -> Callable[..., Any]:
    """Validation on all rows: ``dataloader_drop_last``, which is meant for training, would cut off its last ones."""
    make = trainer.get_eval_dataloader

    def get_eval_dataloader(*args: Any) -> Any:
        trainer.args.dataloader_drop_last = False
        try:
            return make(*args)
        finally:
            trainer.args.dataloader_drop_last = True

    return get_eval_dataloader


def _ends(log: list[dict[str, float]], names: tuple[str, ...]) -> dict[str, float]:
    """First and last value of each metric; the mean of up to three steps, since a batch is small."""
    found: dict[str, float] = {}
    for name in names:
        values = [r[name] for r in log if name in r]
        if values:
            size = min(3, len(values))
            found[f"first_{name}"] = round(sum(values[:size]) / size, 6)
            found[f"final_{name}"] = round(sum(values[-size:]) / size, 6)
    return found
