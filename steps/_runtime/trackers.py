"""Where a training run is followed besides its own log: Weights & Biases, MLflow, Comet, TensorBoard.

Each has a section in the config and is off without one. AutoModel drives the first three; TensorBoard is written here.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from _runtime.payload import PayloadError

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml", "tensorboard": "tensorboard"}


def check(cfg: dict[str, Any]) -> None:
    """Drop the sections that are off; refuse one that would ask for a login or whose package is not installed.

    ``wandb`` is on where it names a project, ``tensorboard`` where it is true or a mapping (``log_dir``).

    Raises:
        PayloadError: naming the section and the package.
    """
    if not (cfg.get("wandb") or {}).get("project"):
        cfg.pop("wandb", None)
    for section, package in PACKAGES.items():
        if not cfg.get(section):
            cfg.pop(section, None)
        else:
            _import(package, section)
    if "wandb" in cfg and not _can_log_in(cfg["wandb"]):
        raise PayloadError(
            "tracker_missing",
            "wandb is on in the config, and there is no login: neither WANDB_API_KEY nor ~/.netrc is there",
            "Set WANDB_API_KEY, or WANDB_MODE=offline to keep the run here, or wandb=null.",
        )


def _import(package: str, section: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as e:  # also of what the package itself needs
        raise PayloadError(
            "tracker_missing",
            f"{section} is on in the config, and the package {package} is not in this environment ({e})",
            f"Run where {package} is installed (pip install {package}), or set {section}=null.",
        ) from None


def _can_log_in(wandb: dict[str, Any]) -> bool:
    mode = wandb.get("mode") or os.environ.get("WANDB_MODE") or "online"
    return mode != "online" or bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").is_file()


def tensorboard(section: Any, output: Path, done: int | None) -> Any:
    """A writer of scalars in ``section["log_dir"]``, else ``<output>/tensorboard``; None where the section is off.

    ``done``: index of the last step that is kept; what lies there of later ones is superseded.
    """
    if not section:
        return None
    from torch.utils.tensorboard import SummaryWriter

    named = section.get("log_dir") if isinstance(section, dict) else None
    return SummaryWriter(named or output / "tensorboard", purge_step=None if done is None else done + 2)
