"""Builds Megatron-Bridge's ConfigContainer from a step's config: a recipe, and sections that are merged into it."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from _runtime.payload import PayloadError
from _runtime.sections import section

#: Arguments that recipes took before Megatron-Bridge 0.3, and the keys that stand for them since.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "seq_length": ("model.seq_length", "dataset.seq_length"),
    "tensor_model_parallel_size": ("model.tensor_model_parallel_size",),
    "tensor_parallelism": ("model.tensor_model_parallel_size",),
    "pipeline_model_parallel_size": ("model.pipeline_model_parallel_size",),
    "pipeline_parallelism": ("model.pipeline_model_parallel_size",),
    "virtual_pipeline_parallelism": ("model.virtual_pipeline_model_parallel_size",),
    "context_parallel_size": ("model.context_parallel_size",),
    "context_parallelism": ("model.context_parallel_size",),
    "expert_model_parallel_size": ("model.expert_model_parallel_size",),
    "expert_tensor_parallel_size": ("model.expert_tensor_parallel_size",),
    "sequence_parallel": ("model.sequence_parallel",),
    "sequence_parallelism": ("model.sequence_parallel",),
    "train_iters": ("train.train_iters",),
    "global_batch_size": ("train.global_batch_size",),
    "micro_batch_size": ("train.micro_batch_size",),
    "eval_interval": ("validation.eval_interval",),
    "lr": ("optimizer.lr",),
    "min_lr": ("optimizer.min_lr",),
    "lr_warmup_iters": ("scheduler.lr_warmup_iters",),
    "lr_decay_iters": ("scheduler.lr_decay_iters",),
    "save_interval": ("checkpoint.save_interval",),
    "precision_config": ("mixed_precision",),
    "packed_sequence": (),  # the steps that fine-tune read packs and nothing else
    "peft": (),  # see `scheme`
}
#: Endings of a recipe's name: of the one that fine-tuned both ways, and of the two that came for it in 0.3.
BOTH, WHOLE, ADAPTER = "_finetune_config", "_sft_config", "_peft_config"
PEFT_HOMES = ("megatron.bridge.recipes.utils.dataset_utils", "megatron.bridge.recipes.utils.finetune_utils")
#: Root keys that are this step's own; all others are sections of the ConfigContainer.
OWN_KEYS = {"mode", "recipe", "hf_model_path", "load_hf_weights", "trust_remote_code", "hf_load", "checkpoint_patch"}


def scheme(cfg: dict[str, Any]) -> str | None:
    """The adapter method that ``peft`` asks for, a name or a mapping with ``type``; None trains all weights."""
    peft = cfg.get("peft")
    if "peft" not in cfg and isinstance(cfg.get("recipe"), dict):
        peft = cfg["recipe"].get("peft")
    found = (peft.get("type") or peft.get("scheme")) if isinstance(peft, dict) else peft
    if found in (None, False, "", "none", "null"):
        return None
    if found not in ("lora", "dora"):
        raise PayloadError("config_invalid", f"peft.type={found!r}: must be lora or dora", "Set peft.type=lora.")
    return str(found)


def from_recipe(cfg: dict[str, Any], default: str, adapter: bool) -> Any:
    """Call the recipe that ``recipe._target_`` names; arguments that it does not take become keys of their sections.

    Raises:
        PayloadError: no such recipe, or an argument that neither it nor a section knows.
    """
    arguments = dict(section(cfg, "recipe"))
    target = str(arguments.pop("_target_", None) or default)
    recipe = _find(target, adapter)
    taken = set(inspect.signature(recipe).parameters)
    for name in [n for n in arguments if n not in taken]:
        value = arguments.pop(name)
        if name not in ARGUMENTS:
            raise unknown(f"recipe.{name}", name, [*taken, *ARGUMENTS])
        for key in ARGUMENTS[name]:
            root, _, leaf = key.partition(".")
            if leaf:
                section(cfg, root).setdefault(leaf, value)
            else:
                cfg.setdefault(root, value)
    return recipe(**arguments)


def _find(target: str, adapter: bool) -> Any:
    names = [target]
    for ending in (BOTH, WHOLE, ADAPTER):
        if target.endswith(ending):
            stem = target.removesuffix(ending)
            names += [stem + (ADAPTER if adapter else WHOLE), stem + BOTH]
    problem: Exception | None = None
    for name in names:
        module, _, function = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as e:
            problem = problem or e
            continue
        if name != target:
            print(f"recipe {target} is {name} in this Megatron-Bridge", flush=True)
        return found
    raise PayloadError(
        "recipe_missing", f"recipe._target_={target}: {problem}", "Name a function of megatron.bridge.recipes."
    )


def check_roots(container: Any, cfg: Mapping[str, Any]) -> None:
    """Refuse a root key that is neither a section of the container nor the step's own."""
    known = [*_names(container), *OWN_KEYS]
    for key in cfg:
        if key not in known:
            raise unknown(key, key, known)


def apply(container: Any, cfg: Mapping[str, Any], leave: Iterable[str] = ()) -> None:
    """Merge the config's sections into the container, but those in ``leave``.

    Raises:
        PayloadError: a key that a section does not have, or a value that cannot be one of it.
    """
    roots = {k: v for k, v in cfg.items() if k in _names(container) and k not in leave}
    merge(container, roots, "")


def merge(target: Any, values: Mapping[str, Any], where: str) -> None:
    """Set the fields of a dataclass, and of those within it, from plain data; ``where`` is its key, for messages."""
    known = _names(target)
    for name, value in values.items():
        key = f"{where}.{name}" if where else name
        if name == "_target_":
            continue
        if name not in known:
            raise unknown(key, name, known)
        now = getattr(target, name)
        if isinstance(value, Mapping) and "_target_" in value and not is_dataclass(now):
            value = _made(value, key)
        elif isinstance(value, Mapping) and is_dataclass(now):
            merge(now, value, key)
            continue
        elif isinstance(value, Mapping) and isinstance(now, dict):
            value = {**now, **value}
        elif isinstance(value, Mapping) and now is None and (kind := _kind(target, name)):
            now = kind()
            merge(now, value, key)
            value = now
        setattr(target, name, _converted(now, value, key))


def _made(value: Mapping[str, Any], key: str) -> Any:
    from megatron.bridge.utils.instantiate_utils import InstantiationException, instantiate

    try:
        return instantiate(dict(value))
    except InstantiationException as e:
        raise PayloadError("config_invalid", f"{key}: {e}", "Mend _target_ or its arguments.") from None


def _kind(target: Any, name: str) -> type | None:
    """The dataclass that an empty optional section would hold, where only one can."""
    import typing

    hints = typing.get_type_hints(type(target))
    kinds = [k for k in typing.get_args(hints.get(name)) if isinstance(k, type) and is_dataclass(k)]
    return kinds[0] if len(kinds) == 1 else None


def _converted(now: Any, value: Any, key: str) -> Any:
    import torch

    if isinstance(now, torch.dtype) and isinstance(value, str):
        found = getattr(torch, value.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise PayloadError("config_invalid", f"{key}={value}: no type of torch", "Write torch.bfloat16, say.")
        return found
    if callable(now) and isinstance(value, str):
        from megatron.bridge.utils.activation_map import str_to_callable

        try:
            return str_to_callable(value)
        except ValueError as e:
            raise PayloadError("config_invalid", f"{key}={value}: {e}", "Name a known function.") from None
    if isinstance(now, int | float) and value is not None and not isinstance(value, int | float):
        wanted = "true or false" if isinstance(now, bool) else "a number"
        raise PayloadError("config_invalid", f"{key}={value!r}: must be {wanted}", f"Set {key} to {wanted}.")
    return value


def _names(target: Any) -> list[str]:
    return [f.name for f in fields(target) if not f.name.startswith("_")]


def unknown(key: str, name: str, known: Iterable[str]) -> PayloadError:
    """The refusal of a key, with the closest that there is."""
    close = difflib.get_close_matches(name, sorted(set(known)), 1)
    advice = f"Did you mean {key[: len(key) - len(name)]}{close[0]}?" if close else "Remove it."
    return PayloadError("config_unknown_key", f"{key}: Megatron-Bridge has no such key", advice)


def add_adapter(container: Any, cfg: Mapping[str, Any], method: str) -> None:
    """Put the adapter that ``peft`` describes into the container."""
    for home in PEFT_HOMES:
        try:
            make = importlib.import_module(home).default_peft_config
            break
        except (ImportError, AttributeError):
            continue
    else:
        raise PayloadError(
            "cpu_unsupported", f"none of {', '.join(PEFT_HOMES)} makes adapters", "Use Megatron-Bridge 0.6."
        )
    container.peft = make(method)
    given = cfg.get("peft")
    if isinstance(given, Mapping):
        merge(container.peft, {k: v for k, v in given.items() if k not in ("type", "scheme")}, "peft")
