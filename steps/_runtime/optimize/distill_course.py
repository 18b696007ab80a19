"""A run of distillation: its numbers, and its steps from where the last checkpoint ends."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _runtime import cpu, payload
from _runtime.optimize import distill_state, models
from _runtime.optimize.distill_state import State
from _runtime.payload import PayloadError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers of a run; ``gbs`` samples of ``seq_length`` tokens make one step, ``mbs`` of them at once."""

    seed: int
    seq_length: int
    mbs: int
    gbs: int
    train_iters: int
    lr: float
    min_lr: float
    lr_warmup_iters: int
    eval_interval: int
    eval_iters: int
    save_interval: int
    kd_loss_scale: float
    with_lm_loss: bool

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0: a linear warm-up, then half a cosine down to ``min_lr``."""
        if step < self.lr_warmup_iters:
            return self.lr * (step + 1) / self.lr_warmup_iters
        part = (step - self.lr_warmup_iters) / max(1, self.train_iters - self.lr_warmup_iters)
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * part)) / 2


class Course:
    """One run of training: it starts where the last checkpoint ends."""

    def __init__(
        self,
        numbers: Plan,
        teacher: Any,
        student: Any,
        take: Callable[[int], Any],
        held_out: Callable[[int], Any] | None,
        output: Path,
    ) -> None:
        import modelopt.torch.distill as mtd
        import torch

        self.numbers, self.take, self.held_out = numbers, take, held_out
        self.folder = output / "resume"
        self.device = student.device
        settings = ("seed", "seq_length", "gbs", "train_iters", "lr", "lr_warmup_iters")
        self.settings = {k: getattr(numbers, k) for k in settings}
        found = distill_state.load(self.folder, self.settings)
        if found:
            try:
                student.load_state_dict(found.student)
            except RuntimeError as e:
                raise PayloadError(
                    "checkpoint_mismatch",
                    f"args.output_dir: its checkpoints are of another student ({' '.join(str(e).split())[:200]})",
                    "Give an empty directory, or the student that they were made of.",
                ) from None
        self.resumed_from = found.step if found else None
        self.records: list[dict[str, float]] = list(found.metrics) if found else []

        class LogitsOfModels(mtd.LogitsDistillationLoss):  # type: ignore[misc]
            def forward(self, ours: Any, theirs: Any) -> Any:
                return super().forward(ours.logits, theirs.logits)

        mode = ("kd_loss", {"teacher_model": teacher, "criterion": LogitsOfModels(reduction="none")})
        self.pair = mtd.convert(student, mode=[mode])
        self.trained = [p for p in self.pair.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=numbers.lr, betas=(0.9, 0.95), weight_decay=0.1)
        if found:
            self.optimizer.load_state_dict(found.optimizer)

    def student(self) -> Any:
        """The student alone, as a model of transformers."""
        import modelopt.torch.distill as mtd

        return mtd.export(self.pair)

    def train(self) -> bool:
        """Run the steps that are left; returns True if SIGTERM ended it early."""
        asked: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
        try:
            n = self.numbers
            if not self.records:
                self._validate(0)
            for step in range(self.resumed_from or 0, n.train_iters):
                self._step(step)
                done = step + 1
                if done % n.eval_interval == 0 or done == n.train_iters:
                    self._validate(done)
                if asked or done % n.save_interval == 0 or done == n.train_iters:
                    self._save(done)
                if asked:
                    return True
            return False
        finally:
            signal.signal(signal.SIGTERM, before)

    def _step(self, step: int) -> None:
        import torch

        n, began, rate = self.numbers, time.monotonic(), self.numbers.rate(step)
        self.pair.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        kd, lm = 0.0, 0.0
        for first in range(step * n.gbs, (step + 1) * n.gbs, n.mbs):
            losses = self._losses(self.take, first)
            share = n.mbs / n.gbs
            total = losses[0] * n.kd_loss_scale + (losses[1] if n.with_lm_loss else 0.0)
            (total * share).backward()
            kd, lm = kd + float(losses[0].detach()) * share, lm + float(losses[1].detach()) * share
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, 1.0))
        if not (math.isfinite(kd) and math.isfinite(norm)):
            raise PayloadError(
                "loss_not_finite",
                f"step {step + 1}: loss is {kd}, grad_norm {norm}; the last checkpoint before it is kept",
                "Lower args.lr, raise args.lr_warmup_iters, or look at teacher and data.",
            )
        self.optimizer.step()
        found = {
            "loss": kd,
            "lm_loss": lm,
            "lr": rate,
            "grad_norm": norm,
            "tokens_per_second": n.gbs * n.seq_length / max(1e-9, time.monotonic() - began),
            "memory_mib": cpu.peak_memory_mib(),
        }
        self.records.append({"step": float(step + 1), **found})
        payload.progress(step + 1, n.train_iters, **found)

    def _losses(self, take: Callable[[int], Any], first: int) -> tuple[Any, Any]:
        """Per token of ``mbs`` samples: KL divergence of the student from the teacher, the student's cross-entropy."""
        import torch

        batch = torch.stack([take(first + n) for n in range(self.numbers.mbs)]).to(self.device)
        ours = self.pair(input_ids=batch).logits
        kd = self.pair.compute_kd_loss(loss_reduction_fn=lambda per_token: per_token.mean())
        lm = torch.nn.functional.cross_entropy(ours[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        return kd, lm

    def _validate(self, step: int) -> None:
        import torch

        if self.held_out is None or not self.numbers.eval_iters:
            return
        self.pair.eval()
        with torch.no_grad():
            starts = range(0, self.numbers.eval_iters * self.numbers.mbs, self.numbers.mbs)
            found = [float(self._losses(self.held_out, first)[0]) for first in starts]
        value = sum(found) / len(found)
        if step and self.records and self.records[-1]["step"] == step:
            self.records[-1]["validation_loss"] = value
        else:
            self.records.append({"step": float(step), "validation_loss": value})
        payload.progress(step, self.numbers.train_iters, validation_loss=value)

    def _save(self, step: int) -> None:
        weights = {k: v.detach().cpu() for k, v in self.pair.state_dict().items()}
        state = State(step, weights, self.optimizer.state_dict(), self.records, self.settings)
        with models.saving(self.folder):
            distill_state.save(self.folder, state)
