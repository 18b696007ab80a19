"""An AutoModel recipe between its steps: progress, a stop at a bad loss, and resuming after a kill."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

from _runtime import cpu, metrics, payload
from _runtime.payload import PayloadError

SAVED = re.compile(r"epoch_\d+_step_(\d+)")
UNFINISHED = ".incomplete"  # AutoModel's mark inside a checkpoint that is being written
# metrics.parquet's columns: AutoModel's name of each in training.jsonl, and by what it is multiplied
MEASURED = {
    "loss": ("loss", 1),
    "lr": ("lr", 1),
    "grad_norm": ("grad_norm", 1),
    "tokens_per_second": ("tps", 1),
    "memory_mib": ("mem", 1024),
    "epoch": ("epoch", 1),
    "tokens": ("num_tokens_per_step", 1),
    "label_tokens": ("num_label_tokens", 1),
}


def reporting(recipe: type, on_cpu: bool) -> type:
    """Subclass a recipe so that it reports each step; how it trains stays untouched."""

    class Reporting(recipe):  # type: ignore[misc, valid-type]
        saved_last = False

        def _make_progress_bar(self, *args: Any, **kwargs: Any) -> None:
            return None  # progress goes through the payload protocol

        def log_train_metrics(self, log_data: Any) -> None:
            values = log_data.metrics
            for name in ("loss", "grad_norm"):
                if not math.isfinite(float(values[name])):
                    raise PayloadError(
                        "loss_not_finite",
                        f"step {log_data.step + 1}: {name} is {float(values[name])}; the last checkpoint before it "
                        "is kept",
                        "Lower optimizer.lr, add lr_scheduler.lr_warmup_steps, or look at the rows of this step.",
                    )
            if on_cpu:
                values["mem"] = cpu.peak_memory_mib() / 1024  # AutoModel asks CUDA, which says 0
            super().log_train_metrics(log_data)
            if not self.dist_env.is_main:
                return
            payload.progress(
                step=log_data.step + 1,
                total=_total(self.step_scheduler),
                loss=float(values["loss"]),
                lr=float(values["lr"]),
                grad_norm=float(values["grad_norm"]),
                tokens_per_second=float(values["tps"]),
                memory_mib=float(values["mem"]) * 1024,
                epoch=log_data.epoch,
            )

        def log_val_metrics(self, val_name: str, log_data: Any, *args: Any, **kwargs: Any) -> None:
            super().log_val_metrics(val_name, log_data, *args, **kwargs)
            if log_data is not None and self.dist_env.is_main:
                name = "validation_loss" if val_name == "default" else f"validation_loss_{val_name}"
                done = {name: float(log_data.metrics["val_loss"])}
                payload.progress(step=log_data.step + 1, total=_total(self.step_scheduler), **done)

        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            self.metric_logger_train.flush()  # the log of a kept step must outlive a kill
            last = bool(self.step_scheduler.is_last_step)
            super().save_checkpoint(*args, **kwargs)
            self.saved_last = last
            if self.dist_env.is_main:
                save_metrics(Path(self.checkpointer.config.checkpoint_dir))

    return Reporting


def save_metrics(root: Path) -> None:
    """Write metrics.parquet from AutoModel's own logs, which outlive a kill and lose what is run again."""
    rows: dict[int, dict[str, float]] = {}
    for record in read_log(root / "training.jsonl"):
        row = rows.setdefault(record["step"] + 1, {"step": record["step"] + 1})
        row |= {ours: record[theirs] * scale for ours, (theirs, scale) in MEASURED.items() if theirs in record}
    for log in sorted(root.glob("validation*.jsonl")):
        name = log.stem.replace("validation", "validation_loss", 1)
        for record in read_log(log):
            rows.setdefault(record["step"] + 1, {"step": record["step"] + 1})[name] = record["val_loss"]
    metrics.save(root, rows.values())


def _total(scheduler: Any) -> int:
    """How many steps a run has: the steps asked for, or what the epochs hold where that is less."""
    total = int(scheduler.max_steps)
    if scheduler.epoch_len and scheduler.num_epochs:
        total = min(total, int(scheduler.epoch_len) * int(scheduler.num_epochs))
    return total


def parameters(trainer: Any) -> dict[str, int]:
    """How many parameters the model has, and how many of them are trained."""
    weights = [p for part in trainer.model_parts for p in part.parameters()]
    trained = sum(p.numel() for p in weights if p.requires_grad)
    return {"parameters": sum(p.numel() for p in weights), "trained_parameters": trained}


def clean(root: Path) -> int | None:
    """Forget what a kill left behind: half-written checkpoints, and log lines of steps that will be run again.

    Returns the step of the checkpoint that training continues from, or None.
    """
    latest = root / "LATEST"
    at = SAVED.fullmatch(latest.resolve().name) if latest.is_symlink() else None
    kept = []
    for path in sorted(root.glob("epoch_*_step_*")):
        whole = SAVED.fullmatch(path.name)
        later = bool(whole and at and int(whole[1]) > int(at[1]))  # LATEST moves only once all is written
        if whole and not later and not (path / UNFINISHED).exists():
            kept.append(int(whole[1]))
        elif path.is_dir():
            shutil.rmtree(path)
            print(f"removed {path.name}: a kill left it half written", flush=True)
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
    newest = max(kept, default=None)
    for log in [root / "training.jsonl", *root.glob("validation*.jsonl")]:
        lines = [r for r in read_log(log) if newest is not None and r["step"] <= newest]
        if log.is_file():
            log.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines), encoding="utf-8")
    return newest


def resumed_from(trainer: Any, root: Path) -> int | None:
    """The step that training continues from, or None for a new start.

    Raises:
        PayloadError: checkpoints are there, but of another model or another kind of training.
    """
    step = int(trainer.step_scheduler.step)
    if step == 0 and (root / "LATEST").exists():
        raise PayloadError(
            "checkpoint_mismatch",
            f"checkpoint.checkpoint_dir={root}: holds checkpoints of another base model or of another `peft`",
            "Give an empty directory, or the settings that those checkpoints were made with.",
        )
    return step or None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a line that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
