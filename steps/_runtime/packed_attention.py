"""Attention over packed sequences in plain PyTorch, where Megatron's own needs Transformer Engine.

A pack is one row of tokens that holds several sequences; none may see another. Megatron-core's own attention refuses
such rows. Where CUDA exists nothing is touched: Transformer Engine has the kernels there.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from _runtime import cpu

if TYPE_CHECKING:
    from torch import Tensor


def enable() -> bool:
    """Teach megatron-core's attention to take packs; False, having changed nothing, where CUDA is available.

    Call it after ``cpu_megatron.enable()``.
    """
    if cpu.has_cuda():
        return False
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    whole_rows = DotProductAttention.forward
    if getattr(whole_rows, "takes_packs", False):
        return True

    def forward(
        self: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        if packed_seq_params is None:
            return whole_rows(self, query, key, value, attention_mask, attn_mask_type, attention_bias)
        _refuse_what_is_left_out(self, attn_mask_type, attention_bias)
        starts = packed_seq_params.cu_seqlens_q_padded  # where sequences lie, if they were padded to a multiple
        if starts is None:
            starts = packed_seq_params.cu_seqlens_q
        dropout = self.attention_dropout.p if self.training else 0.0
        tokens = query.shape[0]
        heads = [x.reshape(tokens, -1, x.shape[-1]) for x in (query, key, value)]
        out = attend(*heads, starts.flatten().tolist(), scale=self.softmax_scale, dropout=dropout)
        return out.reshape(tokens, -1)

    forward.takes_packs = True  # type: ignore[attr-defined]
    DotProductAttention.forward = forward
    return True


def attend(
    query: Tensor, key: Tensor, value: Tensor, starts: list[int], scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Causal attention within each sequence of one pack.

    Args:
        query: (tokens, heads, width).
        key: (tokens, groups, width); each group serves heads / groups neighbouring heads.
        value: (tokens, groups, width).
        starts: ascending offsets, from 0; sequence i is ``starts[i]:starts[i + 1]``. Equal neighbours are no sequence.
            What follows the last offset is padding, and one more sequence.
        scale: of the scores; 1 / sqrt(width) where it is None.
        dropout: the share of attention weights that are dropped.

    Returns:
        (tokens, heads, width).
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    tokens, heads = query.shape[:2]
    repeat = heads // key.shape[1]
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    bounds = sorted({0, tokens, *(s for s in starts if 0 < s < tokens)})
    of_length: dict[int, list[int]] = {}
    for first, last in pairwise(bounds):
        of_length.setdefault(last - first, []).append(first)
    places, parts = [], []
    for length, firsts in of_length.items():  # sequences of one length at once: packs hold many short ones
        place = torch.tensor(firsts)[:, None] + torch.arange(length)
        q, k, v = (x[place].transpose(1, 2) for x in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=dropout)
        parts.append(out.transpose(1, 2).flatten(0, 1))
        places.append(place.flatten())
    return torch.cat(parts)[torch.cat(places).argsort()]


def _refuse_what_is_left_out(attention: Any, mask_type: Any, bias: Any) -> None:
    """Rather no result than one that a setting should have changed."""
    settings = attention.config
    found = {
        "attention_bias": bias is not None,
        "window_size": settings.window_size is not None,
        "softmax_type": settings.softmax_type != "vanilla",
        "attn_mask_type": "causal" not in str((mask_type or attention.attn_mask_type).name),
    }
    for name in (name for name, wrong in found.items() if wrong):
        raise NotImplementedError(
            f"attention over packs on the CPU is causal and plain; {name} asks for something else"
        )
