"""A Megatron-Bridge run between its iterations: progress, metrics.parquet, a stop at a bad loss."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from _runtime import cpu, megatron_start, metrics, payload
from _runtime.payload import PayloadError


class Report:
    """What Megatron-Bridge calls at its events; it tells of each iteration, and never changes how it is trained.

    Attributes:
        step: iterations done.
        records: of metrics.parquet, by iteration.
        parameters: how many the model has on this rank; ``trained`` of them learn.
    """

    def __init__(self, save: Path, batch_tokens: int, total: int, resumed: int | None) -> None:
        self.save, self.batch_tokens, self.total = save, batch_tokens, total
        self.first = not _rank()
        kept = [r for r in metrics.load(save) if r["step"] <= (resumed or 0)]
        self.records: dict[int, dict[str, float]] = {int(r["step"]): r for r in kept}
        self.step, self.parameters, self.trained = resumed or 0, 0, 0
        self._began, self._lr = 0.0, 0.0

    def as_callback(self) -> Any:
        """Register the methods below with Megatron-Bridge's callback manager."""
        from megatron.bridge.training.callbacks import CallbackManager

        manager = CallbackManager()
        events = ("on_train_start", "on_train_step_start", "on_train_step_end", "on_eval_end", "on_checkpoint_save")
        for event in (e for e in events if e in manager.events):
            manager.register(event, getattr(self, event))
        if self.first and "on_checkpoint_save" not in manager.events:
            megatron_start.done(self.save)  # an older library does not tell of a save: its tracker has to do
        return manager

    def on_train_start(self, context: Any) -> None:
        weights = [p for part in context.model for p in part.parameters()]
        self.parameters = sum(p.numel() for p in weights)
        self.trained = sum(p.numel() for p in weights if p.requires_grad)
        self.step = int(context.state.train_state.step)

    def on_train_step_start(self, context: Any) -> None:
        groups = [g for g in context.optimizer.param_groups if g.get("params")]
        self._lr = float(groups[0]["lr"]) if groups else 0.0
        self._began = time.perf_counter()

    def on_train_step_end(self, context: Any) -> None:
        self.step = int(context.state.train_state.step) + 1  # counted up after this event
        loss = _from_last_stage(context)
        norm = None if context.grad_norm is None else float(context.grad_norm)
        for name, value in (("loss", loss), ("grad_norm", norm)):
            if value is not None and not math.isfinite(value) and not context.skipped_iter:
                raise not_finite(f"iteration {self.step}: {name} is {value}")
        seconds = max(time.perf_counter() - self._began, 1e-9)
        measured = {
            "loss": loss,
            "lr": self._lr,
            "grad_norm": norm,
            "tokens_per_second": self.batch_tokens / seconds,
            "memory_mib": _memory_mib(),
        }
        known = {k: v for k, v in measured.items() if v is not None}
        self.records[self.step] = {"step": self.step, **known}
        payload.progress(step=self.step, total=self.total, **known)

    def on_eval_end(self, context: Any) -> None:
        found = {k: float(v) for k, v in (context.total_loss_dict or {}).items()}
        if "lm loss" in found:
            loss = {"validation_loss": found["lm loss"]}
            self.records.setdefault(self.step, {"step": self.step}).update(loss)
            payload.progress(step=self.step, total=self.total, **loss)

    def on_checkpoint_save(self, context: Any) -> None:
        if self.first:
            self.keep()
            megatron_start.whole(self.save, int(context.state.train_state.step))

    def keep(self) -> None:
        """Write metrics.parquet."""
        if self.first and self.records:
            metrics.save(self.save, self.records.values())


def not_finite(what: str) -> PayloadError:
    """The stop of a run whose loss or gradient is no number."""
    return PayloadError(
        "loss_not_finite",
        f"{what}; the last checkpoint before it is kept",
        "Lower optimizer.lr, raise scheduler.lr_warmup_iters, or look at the data of this iteration.",
    )


def _rank() -> int:
    import os

    return int(os.environ.get("RANK", "0"))


def _from_last_stage(context: Any) -> float | None:
    """The loss, which only the last pipeline stage knows; its ranks tell the others."""
    import torch

    loss = (context.loss_dict or {}).get("lm loss")
    if context.state.cfg.model.pipeline_model_parallel_size > 1:
        value = torch.zeros(1, device=torch.cuda.current_device()) if loss is None else loss.detach().float().view(1)
        torch.distributed.broadcast(value, src=torch.distributed.get_world_size() - 1)
        loss = value
    return None if loss is None else float(loss)


def _memory_mib() -> float:
    import torch

    if cpu.has_cuda():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    return cpu.peak_memory_mib()
