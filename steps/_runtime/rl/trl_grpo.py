"""GRPO with TRL, by the keys of a NeMo-RL config: with verifiable rewards (rlvr), or with those of a judge (rlhf)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _runtime import cpu
from _runtime.payload import PayloadError
from _runtime.rl import data, genrm, layouts, optimizing, rewards, trl_settings, trl_train
from _runtime.rl import policy as policies
from _runtime.rl.settings import at, real, whole

Score = Callable[[Sequence[int], Sequence[str], Callable[[str, float], None]], list[float]]


def run(cfg: dict[str, Any], output: Path, algorithm: str) -> None:
    """Train the policy on prompts; ``algorithm`` is ``rlvr`` or ``rlhf``.

    Raises:
        PayloadError: input that a person must mend.
    """
    trl_settings.check(cfg, "grpo", not cpu.has_cuda())
    source = data.own(cfg)
    read = _prompts if algorithm == "rlhf" else _tasks
    tasks, held_out = (read(cfg, source, files, key) if files else [] for files, key in
                       ((source.train, data.TRAIN), (source.validation, data.VALIDATION)))  # fmt: skip
    held_out = held_out[: at(cfg, "grpo.max_val_samples")]
    updates = _shape(cfg)["generation_batch_size"] // at(cfg, "policy.train_global_batch_size")
    prompts = whole(cfg, "grpo.num_prompts_per_step")
    steps = trl_train.steps_of(cfg, "grpo", len(tasks), prompts) * updates
    seed = whole(cfg, "grpo.seed", 42, least=0)
    trl_train.prepare_environment()
    with contextlib.ExitStack() as until_done:
        policy = policies.find(cfg, output, seed)
        trl_train.go_offline(policy)
        tokenizer = policies.tokenizer(cfg, policy)
        model = policies.load(cfg, policy)
        model.generation_config.max_length = None  # max_new_tokens decides
        if algorithm == "rlhf":
            endpoint, facts = until_done.enter_context(genrm.judge(cfg, output, seed, policy.path))
            score = genrm.score(cfg, endpoint, [t.prompt for t in [*tasks, *held_out]])
        else:
            score, facts = _verified(cfg, [*tasks, *held_out]), {"verifiers": sorted({t.verifier for t in tasks})}
        every = whole(cfg, "grpo.val_period", 0, least=0) * updates if held_out else 0
        settings = arguments(cfg, output, steps, seed, every)
        trainer = _trainer(cfg, settings, model, tokenizer, score, tasks, held_out if every else [])
        facts = {"algorithm": algorithm, "rows": len(tasks), "validation_rows": len(held_out), **facts}
        trl_train.run(trainer, output, policy, tokenizer, {**facts, "updates_per_step": updates})


def _trainer(
    cfg: Mapping[str, Any],
    settings: Mapping[str, Any],
    model: Any,
    tokenizer: Any,
    score: Score,
    tasks: Sequence[Any],
    held_out: Sequence[Any],
) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions: Any, row: Sequence[int], log_metric: Callable[[str, float], None], **_: Any) -> list[float]:
        return score(row, [turns[-1]["content"] for turns in completions], log_metric)

    def dataset(rows: Sequence[Any], first: int) -> Any:
        return Dataset.from_list([{"prompt": t.prompt, "row": first + i} for i, t in enumerate(rows)])

    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(**settings),
        train_dataset=dataset(tasks, 0),
        eval_dataset=dataset(held_out, len(tasks)) if held_out else None,
        processing_class=tokenizer,
        optimizers=optimizing.build(cfg, model),
    )


def arguments(cfg: Mapping[str, Any], output: Path, steps: int, seed: int, validate_every: int) -> dict[str, Any]:
    """Fields of TRL's ``GRPOConfig``, from NeMo-RL's keys; ``validate_every`` is 0 for never."""
    generations = whole(cfg, "grpo.num_val_generations_per_prompt", 1)
    batch = whole(cfg, "grpo.val_batch_size", 32)
    return {
        **trl_train.arguments(cfg, output, steps, seed, validate_every),
        **_shape(cfg),
        "num_generations_eval": generations,
        "per_device_eval_batch_size": max(generations, batch - batch % generations),
        "eval_on_start": bool(validate_every and at(cfg, "grpo.val_at_start", False)),
        "max_completion_length": whole(cfg, "policy.generation.max_new_tokens"),
        "temperature": real(cfg, "policy.generation.temperature", 1.0),
        "top_p": real(cfg, "policy.generation.top_p", 1.0),
        "top_k": at(cfg, "policy.generation.top_k", 0),
        "beta": real(cfg, "loss_fn.reference_policy_kl_penalty", 0.0),
        "epsilon": real(cfg, "loss_fn.ratio_clip_min", 0.2),
        "epsilon_high": real(cfg, "loss_fn.ratio_clip_max", 0.2),
        "loss_type": "dapo" if at(cfg, "loss_fn.token_level_loss", True) else "grpo",
        "importance_sampling_level": "sequence" if at(cfg, "loss_fn.sequence_level_importance_ratios") else "token",
        "scale_rewards": "group" if at(cfg, "grpo.normalize_rewards", True) else "none",
        "mask_truncated_completions": bool(at(cfg, "grpo.overlong_filtering", False)),
        "shuffle_dataset": bool(at(cfg, "data.shuffle", True)),
        "use_vllm": False,
    }


def _shape(cfg: Mapping[str, Any]) -> dict[str, int]:
    """Answers per prompt and per generation; each generation makes whole optimizer steps.

    Raises:
        PayloadError: they do not divide.
    """
    prompts, group = whole(cfg, "grpo.num_prompts_per_step"), whole(cfg, "grpo.num_generations_per_prompt", least=2)
    trl_settings.batch(cfg)
    size = at(cfg, "policy.train_global_batch_size")
    if (prompts * group) % size:
        raise PayloadError(
            "rollout_batch_not_divisible",
            f"grpo.num_prompts_per_step={prompts} x grpo.num_generations_per_prompt={group} is no multiple of "
            f"policy.train_global_batch_size={size}",
            "Change one of them; equal sizes make one optimizer step per generation.",
        )
    return {"num_generations": group, "generation_batch_size": prompts * group}


def _tasks(cfg: Mapping[str, Any], source: data.Source, files: Sequence[Path], key: str) -> list[rewards.Task]:
    split = key.rpartition(".")[0]
    default = at(cfg, f"{split}.env_name") or at(cfg, "data.default.env_name", "math")
    asked = at(cfg, f"{split}.input_key") or at(cfg, "data.default.input_key") or source.reader.get("input_key")
    answer = at(cfg, f"{split}.output_key") or at(cfg, "data.default.output_key") or source.reader.get("output_key")
    return layouts.read(files, key, lambda row: rewards.task(row, str(default), asked, answer))


def _prompts(cfg: Mapping[str, Any], source: data.Source, files: Sequence[Path], key: str) -> list[genrm.Asked]:
    return layouts.read(files, key, lambda row: genrm.Asked(layouts.prompt(row, source.reader.get("input_key"))))


def _verified(cfg: Mapping[str, Any], tasks: Sequence[rewards.Task]) -> Score:
    worth = {True: real(cfg, "env.math.reward_correct", 1.0), False: real(cfg, "env.math.reward_wrong", 0.0)}

    def score(rows: Sequence[int], answers: Sequence[str], log_metric: Callable[[str, float], None]) -> list[float]:
        right = [rewards.right(tasks[row], answer) for row, answer in zip(rows, answers, strict=True)]
        log_metric("accuracy", sum(right) / len(right))
        return [worth[r] for r in right]

    return score
