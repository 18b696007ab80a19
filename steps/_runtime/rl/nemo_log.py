"""Reads the steps that NeMo-RL prints, so that they are reported under the same names as those of TRL."""

from __future__ import annotations

import math
import re

from _runtime import failures, payload
from _runtime.payload import PayloadError

_STEP = re.compile(r"=====\s*Step (\d+)/(\d+)\s*=====")
_VALUE = re.compile(r"•\s*([\w ]+?):\s*(-?(?:\d[\d.]*(?:e[+-]?\d+)?|nan|inf))", re.IGNORECASE)
_END = "total step time"
NAMES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "rewards_chosen_mean": "reward_chosen",
    "rewards_rejected_mean": "reward_rejected",
    "sft_loss": "sft_loss",
    "preference_loss": "preference_loss",
    "avg reward": "reward",
    "avg filtered reward": "reward",
    "generation kl error": "generation_kl_error",
    "mean generation length": "completion_tokens",
}


class Reader:
    """Takes the output line by line; ``records`` holds one record per step that ended."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self._step, self._total = 0, 0
        self._values: dict[str, float] = {}
        self._open = False
        self._tail: list[str] = []

    def read(self, line: str) -> None:
        """Take one line.

        Raises:
            PayloadError: the loss is no number.
        """
        self._tail = [*self._tail[-50:], line]
        if found := _STEP.search(line):
            self._step, self._total = int(found[1]), int(found[2])
            self._values, self._open = {}, True
            return
        found = _VALUE.search(line)
        if not found or not self._open:
            return
        name, value = found[1].strip().lower(), float(found[2])
        if name == _END:
            self._finish()
        elif name in NAMES:
            self._values[NAMES[name]] = value
            if name == "loss" and not math.isfinite(value):
                raise PayloadError(
                    "loss_not_finite",
                    f"step {self._step}: loss is {value}; the checkpoint before it is kept",
                    "Lower policy.optimizer's lr, or raise the KL penalty; a rerun continues from that checkpoint.",
                )

    def _finish(self) -> None:
        values, self._open = self._values, False
        if "reward_chosen" in values and "reward_rejected" in values:
            values["margin"] = values["reward_chosen"] - values["reward_rejected"]
        if values:
            self.records.append({"step": self._step, **values})
            payload.progress(step=self._step, total=self._total, **values)

    def explain(self, status: int) -> BaseException:
        """Why NeMo-RL ended with ``status``: what a person can mend, or its status."""
        text = "".join(self._tail)
        name = failures.named_in(text)
        if name == "oom":
            return PayloadError(
                "oom",
                f"NeMo-RL ran out of memory (exit {status})",
                "Lower policy.train_micro_batch_size or policy.max_total_sequence_length, or use more GPUs.",
            )
        if name == "disk_full":
            return PayloadError("disk_full", f"no space is left (exit {status})", "Free space and run again.")
        return SystemExit(status if status > 0 else 128 - status)
