"""The optimizer and the learning-rate schedule that a NeMo-RL config names: classes of torch with their arguments.

optimizer: {name: torch.optim.AdamW, kwargs: {lr: 1e-6, ...}}    or, in short, {name: adamw, lr: 1e-6}
scheduler: one {name, kwargs} of torch.optim.lr_scheduler, or a list of them that ends with {milestones: [...]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _runtime.payload import PayloadError
from _runtime.rl.settings import at


def build(cfg: Mapping[str, Any], model: Any) -> tuple[Any, Any]:
    """(optimizer, scheduler) for all weights of the model.

    Raises:
        PayloadError: a class that torch does not have, or arguments that it does not take.
    """
    import torch

    said = at(cfg, "policy.optimizer")
    if not isinstance(said, Mapping) or not said.get("name"):
        raise PayloadError("config_invalid", f"policy.optimizer={said!r}: must have `name` and `kwargs`", _WRITE)
    name = {"adamw": "torch.optim.AdamW"}.get(str(said["name"]).lower(), str(said["name"]))
    given = said.get("kwargs")
    arguments = dict(given) if isinstance(given, Mapping) else {k: v for k, v in said.items() if k != "name"}
    if "betas" in arguments:
        arguments["betas"] = tuple(arguments["betas"])
    optimizer = _make("policy.optimizer", name, "torch.optim.", torch.optim, model.parameters(), arguments)
    return optimizer, _schedule(at(cfg, "policy.scheduler"), optimizer)


def _schedule(said: Any, optimizer: Any) -> Any:
    from torch.optim import lr_scheduler

    if said is None:
        return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=1)
    listed = said if isinstance(said, list) else [said]
    milestones = next((s["milestones"] for s in listed if isinstance(s, Mapping) and "milestones" in s), None)
    parts = []
    for part in listed:
        if isinstance(part, Mapping) and "milestones" in part:
            continue
        if not isinstance(part, Mapping) or not str(part.get("name", "")).startswith(_SCHEDULES):
            raise PayloadError("config_invalid", f"policy.scheduler: {part!r}: must name a class of torch", _WRITE)
        arguments = dict(part.get("kwargs") or {})
        parts.append(_make("policy.scheduler", str(part["name"]), _SCHEDULES, lr_scheduler, optimizer, arguments))
    if len(parts) == 1:
        return parts[0]
    if not isinstance(milestones, list) or len(milestones) != len(parts) - 1:
        raise PayloadError("config_invalid", f"policy.scheduler: {len(parts)} need {len(parts) - 1} milestones", _WRITE)
    return lr_scheduler.SequentialLR(optimizer, parts, milestones)


def _make(key: str, name: str, prefix: str, module: Any, first: Any, arguments: dict[str, Any]) -> Any:
    short = name.removeprefix(prefix)
    cls = getattr(module, short, None) if "." not in short else None
    if not isinstance(cls, type):
        raise PayloadError("config_invalid", f"{key}.name={name}: {prefix} has no such class", _WRITE)
    try:
        return cls(first, **arguments)
    except (TypeError, ValueError) as e:
        raise PayloadError("config_invalid", f"{key}: {name}: {e}", "Mend its kwargs.") from None


_SCHEDULES = "torch.optim.lr_scheduler."
_WRITE = "Write them as NeMo-RL has them: `name: torch.optim.AdamW` and `kwargs:`; see config tiny."
