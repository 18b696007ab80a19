"""The shape of a dense Hugging Face decoder, under the names that Megatron has for it, and what it costs.

``AXES`` says for every weight which of its axes is which dimension of the shape. Counting parameters and cutting the
weights both follow it, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from _runtime.payload import PayloadError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
HPARAMS = ("hidden_size", "ffn_hidden_size", "num_attention_heads", "num_layers")
HF_NAMES = {
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
}

# End of a weight's name -> the dimension of each of its axes; None stays as it is.
AXES: dict[str, tuple[str | None, ...]] = {
    "embed_tokens.weight": (None, "hidden"),
    "lm_head.weight": (None, "hidden"),
    "q_proj.weight": ("heads", "hidden"),
    "k_proj.weight": ("groups", "hidden"),
    "v_proj.weight": ("groups", "hidden"),
    "o_proj.weight": ("hidden", "heads"),
    "gate_proj.weight": ("ffn", "hidden"),
    "up_proj.weight": ("ffn", "hidden"),
    "down_proj.weight": ("hidden", "ffn"),
    "q_proj.bias": ("heads",),
    "k_proj.bias": ("groups",),
    "v_proj.bias": ("groups",),
    "o_proj.bias": ("hidden",),
    "gate_proj.bias": ("ffn",),
    "up_proj.bias": ("ffn",),
    "down_proj.bias": ("hidden",),
    "q_norm.weight": (None,),
    "k_norm.weight": (None,),
    "layernorm.weight": ("hidden",),
    "model.norm.weight": ("hidden",),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``groups`` (key-value heads) and ``head_dim`` follow from it and its source."""

    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_layers: int
    groups: int
    head_dim: int

    def chosen(self) -> dict[str, int]:
        """The sizes that pruning changes."""
        return {k: v for k, v in asdict(self).items() if k in HPARAMS}

    def smaller(self, sizes: Mapping[str, int]) -> Shape:
        """This shape with other sizes; where every head has its own keys and values, those go with it."""
        merged = {**asdict(self), **sizes}
        if self.groups == self.num_attention_heads:
            merged["groups"] = merged["num_attention_heads"]
        return Shape(**merged)


def of(config: Any) -> Shape:
    """The shape of a model's config.

    Raises:
        PayloadError: a family that is not cut here.
    """
    if config.model_type not in FAMILIES:
        raise PayloadError(
            "architecture_unsupported",
            f"args.hf_model_name_or_path: a {config.model_type} model; backend=inprocess prunes {', '.join(FAMILIES)}",
            "Take backend=script, where Minitron prunes Megatron's GPT and Mamba models.",
        )
    heads = int(config.num_attention_heads)
    return Shape(
        hidden_size=int(config.hidden_size),
        ffn_hidden_size=int(config.intermediate_size),
        num_attention_heads=heads,
        num_layers=int(config.num_hidden_layers),
        groups=int(config.num_key_value_heads or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
    )


def axes(name: str) -> tuple[str | None, ...]:
    """Which dimension each axis of a weight is.

    Raises:
        PayloadError: a weight that these families do not have.
    """
    for ending, found in AXES.items():
        if name.endswith(ending):
            return found
    raise PayloadError(
        "architecture_unsupported",
        f"args.hf_model_name_or_path: the weight {name} is not one that backend=inprocess can cut",
        "Take backend=script.",
    )


def layer(name: str) -> int | None:
    """The number of the layer that a weight is in."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else None


def parameters(model: Any, shape: Shape) -> int:
    """How many parameters the model would have in another shape."""
    size = {
        "hidden": shape.hidden_size,
        "ffn": shape.ffn_hidden_size,
        "heads": shape.num_attention_heads * shape.head_dim,
        "groups": shape.groups * shape.head_dim,
    }
    total = 0
    for name, weight in model.named_parameters():
        if (layer(name) or 0) >= shape.num_layers:  # every layer costs the same
            continue
        count = 1
        for axis, length in zip(axes(name), weight.shape, strict=True):
            count *= size[axis] if axis else length
        total += count
    return total
