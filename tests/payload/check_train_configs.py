"""Holds compiled train configs against the classes of the library that reads them; runs in the train environment.

Reads ``{name: {"library": ..., "config": ...}}`` as JSON, writes ``{name: [what the library would refuse]}``.
Nothing is trained and no model is loaded: targets are imported, and their arguments bound to their signatures.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
import tempfile
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "steps"))

#: Sections that AutoModel turns into classes of its own, by the property of RecipeConfig that does it.
TYPED = (
    "step_scheduler", "lr_scheduler", "optimizer", "checkpoint", "loss_fn", "wandb", "mlflow", "comet", "freeze_config",
    "dataloader", "validation_dataloaders",
)  # fmt: skip
#: Sections whose targets are called with the arguments of the section; the recipe adds the named ones.
CALLED = {
    "model": (), "model.backend": (), "dataset": ("tokenizer",), "validation_dataset": ("tokenizer",),
    "dataloader": ("dataset",), "validation_dataloader": ("dataset",), "peft": (), "rng": (), "loss_fn": (),
    "optimizer": ("params",),
}  # fmt: skip
MEGATRON = (
    "train", "validation", "optimizer", "scheduler", "ddp", "dist", "rng", "tokenizer", "logger", "checkpoint",
    "profiling", "comm_overlap",
)  # fmt: skip


def automodel(config: dict[str, Any]) -> Iterator[str]:
    """What NeMo AutoModel 0.7.0 says: its typed sections, its distributed section, and every target."""
    from nemo_automodel.components.config.loader import ConfigNode
    from nemo_automodel.recipes._dist_utils import _distributed_cfg_to_dict, parse_distributed_section
    from nemo_automodel.recipes._typed_config import RecipeConfig

    peft = config.get("peft")
    try:  # which imports every target
        node = ConfigNode({k: v for k, v in config.items() if k != "peft" or isinstance(peft, dict)})
    except Exception as e:
        yield f"target: {e}"
        return
    typed = RecipeConfig(node)
    for name in TYPED:
        if config.get(name) or name == "validation_dataloaders":
            yield from told(name, lambda name=name: getattr(typed, name))
    yield from told("distributed", lambda: parse_distributed_section(_distributed_cfg_to_dict(node)))
    for key, added in CALLED.items():
        section = at(config, key)
        if isinstance(section, Mapping) and "_target_" in section:
            yield from told(key, lambda key=key, section=section, added=added: bound(key, section, added))


def megatron(config: dict[str, Any]) -> Iterator[str]:
    """What Megatron-Bridge 0.6.2 says: the recipe and its arguments, and the keys of its config classes."""
    from _runtime import cpu_megatron

    cpu_megatron.enable(lambda text: print(text, file=sys.stderr))
    recipe = dict(config.get("recipe") or {})
    if target := recipe.pop("_target_", None):
        yield from told("recipe", lambda: bound("recipe", {"_target_": target, **recipe}, ()))
    from megatron.bridge.models.hybrid.hybrid_provider import HybridModelProvider
    from megatron.bridge.peft.lora import LoRA
    from megatron.bridge.training import config as bridge

    classes: dict[str, Any] = {"model": HybridModelProvider, "peft": LoRA}
    hints = typing.get_type_hints(bridge.ConfigContainer)
    for name in MEGATRON:
        options = [c for c in typing.get_args(hints[name]) or (hints[name],) if dataclasses.is_dataclass(c)]
        classes |= {name: options[0]} if options else {}
    for name, cls in classes.items():
        section = config.get(name)
        known = {f.name for f in dataclasses.fields(cls)}
        for key in section if isinstance(section, Mapping) else ():
            if key not in {*known, "_target_"} and (name, key) != ("peft", "type"):
                yield f"{name}.{key}: {cls.__name__} has no such field"


def trl(config: dict[str, Any]) -> Iterator[str]:
    """What TRL 1.16.0 says of the arguments that backend=trl makes of NeMo-RL's keys."""
    from _runtime.rl import trl_dpo, trl_grpo
    from trl import DPOConfig, GRPOConfig

    mapped, cls = (trl_dpo, DPOConfig) if "dpo" in config else (trl_grpo, GRPOConfig)
    with tempfile.TemporaryDirectory() as output:
        yield from told("trl", lambda: cls(**mapped.arguments(config, Path(output), 4, 1, 2)))


def told(where: str, act: Any) -> Iterator[str]:
    """What goes wrong in ``act``, in one line."""
    try:
        act()
    except Exception as e:  # any refusal of the library is what is asked for
        yield f"{where}: {' '.join(f'{type(e).__name__}: {e}'.split())[:200]}"


def bound(where: str, section: Mapping[str, Any], added: tuple[str, ...]) -> None:
    """Import the target and bind the section's keys to its signature.

    Raises:
        Exception: there is no such target, or it takes no such argument.
    """
    target = resolved(str(section["_target_"]))
    given = {k: v for k, v in section.items() if k != "_target_"}
    inspect.signature(target).bind_partial(**{**dict.fromkeys(added), **given})
    for key, value in given.items():
        if isinstance(value, str) and key.endswith("_fn"):
            resolved(value)
        elif isinstance(value, Mapping) and "_target_" in value:
            bound(f"{where}.{key}", value, ())


def resolved(path: str) -> Any:
    """The object that a dotted path names."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ImportError(f"no module of {path}")


def at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


if __name__ == "__main__":
    readers = {"automodel": automodel, "megatron_bridge": megatron, "trl": trl}
    asked = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    json.dump({name: list(readers[a["library"]](a["config"])) for name, a in asked.items()}, out)
