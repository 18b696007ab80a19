"""A TRL trainer between its steps: progress, metrics under our names, a stop at a bad loss, SIGTERM."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from typing import Any

from _runtime import cpu, payload
from _runtime.payload import PayloadError

#: TRL's names of what both backends report, and ours; DPO's "rewards" are beta times the log-probability ratios.
NAMES = {
    "loss": "loss",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "accuracy": "accuracy",
    "judge_unparseable": "judge_unparseable",
    "frac_reward_zero_std": "groups_without_signal",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "truncated",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "tokens_per_second": "tokens_per_second",
    "memory_mib": "memory_mib",
}
STOPPED = 143  # exit status after SIGTERM


def named(log: Mapping[str, Any]) -> dict[str, float]:
    """A record of TRL's log under our names; those of a validation begin with ``validation_``."""
    found: dict[str, float] = {}
    for key, value in log.items():
        validation = key.startswith("eval_")
        name = NAMES.get(key.removeprefix("eval_"))
        if name and isinstance(value, int | float):
            found[f"validation_{name}" if validation else name] = float(value)
    return found


def records(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """One record per step of a trainer's log history, its validation with it."""
    rows: dict[int, dict[str, float]] = {}
    for log in history:
        found = named(log)
        if found:
            rows.setdefault(int(log["step"]), {}).update(found)
    return [{"step": step, **row} for step, row in rows.items()]


def reporter(total: int) -> Any:
    """The callback that does it, for a run of ``total`` steps. Its ``stopped`` is True after SIGTERM."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.stopped = False
            self.since: tuple[float, float] | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.since = None
            signal.signal(signal.SIGTERM, self._stop)

        def _stop(self, *_: Any) -> None:
            self.stopped = True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any) -> None:
            said = state.log_history[-1]
            for name in ("loss", "grad_norm"):
                if name in said and not math.isfinite(float(said[name])):
                    raise PayloadError(
                        "loss_not_finite",
                        f"step {state.global_step}: {name} is {float(said[name])}; the checkpoint before it is kept",
                        "Lower policy.optimizer's lr, or raise the KL penalty; a rerun continues from that checkpoint.",
                    )
            if "loss" in said:
                said["memory_mib"] = _memory_mib()
                self._count_tokens(said)
            values = named(said)
            if values:
                payload.progress(step=state.global_step, total=total, **values)

        def _count_tokens(self, said: dict[str, Any]) -> None:
            tokens, now = float(said.get("num_tokens") or 0), time.monotonic()
            if self.since and tokens > self.since[1] and now > self.since[0]:
                said["tokens_per_second"] = (tokens - self.since[1]) / (now - self.since[0])
            self.since = (now, tokens)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.stopped or state.global_step >= total:
                control.should_save = True
                control.should_training_stop = True

    return Reporter()


def _memory_mib() -> float:
    if not cpu.has_cuda():
        return cpu.peak_memory_mib()
    import torch

    return float(torch.cuda.max_memory_allocated() / 2**20)
