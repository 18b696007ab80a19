"""Minitron's importance criteria, measured on a Hugging Face model, and the cut that follows them.

The same criteria as ModelOpt's ``mcore_minitron`` mode, which measures them on Megatron models and needs Transformer
Engine: a layer counts by how much it turns the hidden state (1 - cosine of its input and output); a channel by the
mean magnitude of its activation over tokens, as an L2 norm over sequences (https://arxiv.org/abs/2407.14679).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from _runtime.optimize import shapes
from _runtime.optimize.shapes import Shape


@dataclass(frozen=True)
class Importance:
    """Scores: of layers, per layer of its FFN channels (ffn,) and attention heads (heads,), of hidden channels."""

    layers: list[float]
    ffn: list[Any]
    heads: list[Any]
    hidden: Any


def measure(model: Any, batches: list[Any]) -> Importance:
    """Run the batches, each (rows, tokens), through the model and score its parts."""
    import torch

    shape = shapes.of(model.config)
    stack = model.model.layers
    turned = [0.0] * len(stack)
    sums: dict[str, Any] = {}

    def add(key: str, activation: Any) -> None:
        per_row = activation.detach().float().abs().mean(dim=1).pow(2).sum(dim=0)
        sums[key] = sums.get(key, 0) + per_row

    def turn(number: int, before: Any, after: Any) -> None:
        after = after[0] if isinstance(after, tuple) else after
        cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        turned[number] += float(1 - cosine.mean())

    hooks = []
    for n, block in enumerate(stack):
        hooks += [
            block.register_forward_hook(
                lambda _m, args, kwargs, out, n=n: turn(n, args[0] if args else kwargs["hidden_states"], out),
                with_kwargs=True,
            ),
            block.mlp.down_proj.register_forward_pre_hook(lambda _m, args, n=n: add(f"ffn {n}", args[0])),
            block.self_attn.o_proj.register_forward_pre_hook(lambda _m, args, n=n: add(f"heads {n}", args[0])),
            block.input_layernorm.register_forward_hook(lambda _m, _a, out, n=n: add(f"hidden {n} 1", out)),
            block.post_attention_layernorm.register_forward_hook(lambda _m, _a, out, n=n: add(f"hidden {n} 2", out)),
        ]
    try:
        with torch.no_grad():
            for batch in batches:
                model(input_ids=batch)
    finally:
        for hook in hooks:
            hook.remove()
    norm = {key: total.sqrt() for key, total in sums.items()}
    per_head = [
        norm[f"heads {n}"].view(shape.num_attention_heads, shape.head_dim).norm(dim=1) for n in range(len(stack))
    ]
    return Importance(
        layers=[t / len(batches) for t in turned],
        ffn=[norm[f"ffn {n}"] for n in range(len(stack))],
        heads=per_head,
        hidden=sum(value for key, value in norm.items() if key.startswith("hidden")),
    )


def kept_layers(importance: Importance, count: int) -> list[int]:
    """The most important layers, in their order."""
    best = sorted(range(len(importance.layers)), key=lambda n: -importance.layers[n])[:count]
    return sorted(best)


def cut(model: Any, importance: Importance, shape: Shape) -> Any:
    """A new model of ``shape`` with the most important parts of ``model``."""
    from transformers import AutoModelForCausalLM

    old = shapes.of(model.config)
    kept = kept_layers(importance, shape.num_layers)
    hidden = _best(importance.hidden, shape.hidden_size)
    weights = {}
    for name, weight in model.state_dict().items():
        number = shapes.layer(name)
        if number is not None and number not in kept:
            continue
        index = {"hidden": hidden}
        if number is not None:
            heads, groups = _heads(importance.heads[number], old, shape)
            index |= {"ffn": _best(importance.ffn[number], shape.ffn_hidden_size), "heads": heads, "groups": groups}
            name = name.replace(f".layers.{number}.", f".layers.{kept.index(number)}.")
        for axis, dimension in enumerate(shapes.axes(name)):
            if dimension:
                weight = weight.index_select(axis, index[dimension])
        weights[name] = weight
    config = _config(model.config, shape, kept)
    small = AutoModelForCausalLM.from_config(config, dtype=model.dtype).to(model.device).eval()
    small.load_state_dict(weights)
    small.generation_config = copy.deepcopy(model.generation_config)
    return small


def _best(scores: Any, count: int) -> Any:
    return scores.topk(count).indices.sort().values


def _heads(scores: Any, old: Shape, new: Shape) -> tuple[Any, Any]:
    """Rows of the heads and of the key-value groups that stay; a group keeps as many of its heads as any other."""
    import torch

    per_group, keep = old.num_attention_heads // old.groups, new.num_attention_heads // new.groups
    if new.groups < old.groups:  # each head is a group of its own
        heads = groups = _best(scores, new.num_attention_heads)
    else:
        groups = torch.arange(old.groups, device=scores.device)
        best = scores.view(old.groups, per_group).topk(keep, dim=1).indices.sort(dim=1).values
        heads = (best + per_group * groups[:, None]).flatten()
    lanes = torch.arange(old.head_dim, device=scores.device)
    return tuple((chosen[:, None] * old.head_dim + lanes).flatten() for chosen in (heads, groups))  # type: ignore[return-value]


def _config(source: Any, shape: Shape, kept: list[int]) -> Any:
    config = copy.deepcopy(source)
    for ours, theirs in shapes.HF_NAMES.items():
        setattr(config, theirs, getattr(shape, ours))
    config.num_key_value_heads = shape.groups
    config.head_dim = shape.head_dim  # else it would be derived from the new sizes
    if getattr(config, "layer_types", None):
        config.layer_types = [source.layer_types[n] for n in kept]
    return config
