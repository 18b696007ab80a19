"""Attention over packs on the CPU: equal to a slow program, and to Megatron-core's own on each sequence alone."""

from __future__ import annotations

from typing import Any

import pytest
from megatron_run import train_python

SLOW = """
import itertools, json, math, random, torch
from _runtime import packed_attention

def slowly(query, key, value, starts, scale):
    tokens, heads, width = query.shape
    of = heads // key.shape[1]
    edges = sorted({0, tokens, *(s for s in starts if 0 < s < tokens)})
    out = torch.zeros_like(query)
    for first, last in itertools.pairwise(edges):
        for h in range(heads):
            for t in range(first, last):
                scores = [float(query[t, h] @ key[s, h // of]) * scale for s in range(first, t + 1)]
                top = max(scores)
                weights = [math.exp(x - top) for x in scores]
                for s, weight in zip(range(first, t + 1), weights):
                    out[t, h] += weight / sum(weights) * value[s, h // of]
    return out

torch.manual_seed(0)
rng = random.Random(0)
worst = 0.0
for tokens, heads, groups, width in [(1, 1, 1, 4), (7, 2, 2, 4), (24, 4, 2, 8), (24, 4, 1, 8)]:
    for cuts in range(4):
        starts = [0, *sorted(rng.choices(range(tokens + 1), k=cuts)), tokens, tokens]
        q, k, v = (torch.randn(tokens, n, width, dtype=torch.float64) for n in (heads, groups, groups))
        for scale in (1 / math.sqrt(width), 0.1):
            fast = packed_attention.attend(q, k, v, starts, None if scale != 0.1 else scale)
            worst = max(worst, float((fast - slowly(q, k, v, starts, scale)).abs().max()))
padding = packed_attention.attend(*(x[:6] for x in (q, k, v)), [0, 4])
whole = packed_attention.attend(*(x[:4] for x in (q, k, v)), [0, 4])
print(json.dumps({"worst": worst, "padding_apart": float((padding[:4] - whole).abs().max())}))
"""

MEGATRON = """
import json, torch
from types import SimpleNamespace
from _runtime import cpu_megatron, packed_attention
cpu_megatron.enable(lambda text: None)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core import parallel_state
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

own = DotProductAttention.forward
on, off = torch.cuda.is_available, lambda: True
torch.cuda.is_available = off
inert = packed_attention.enable() is False and DotProductAttention.forward is own
torch.cuda.is_available = on
first = packed_attention.enable()
replaced = DotProductAttention.forward
again = packed_attention.enable() and DotProductAttention.forward is replaced

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel()
model_parallel_cuda_manual_seed(1)
settings = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2,
            "attention_dropout": 0.0, "masked_softmax_fusion": False}

def layer(**more):
    config = TransformerConfig(**settings, **more)
    return DotProductAttention(config, 1, AttnMaskType.causal, "self").eval()

attention, lengths = layer(), [5, 1, 9, 1]
q, k, v = (torch.randn(sum(lengths), heads, 8, requires_grad=True) for heads in (4, 2, 2))
edges = torch.tensor([0, 5, 6, 15, 16], dtype=torch.int32)
pack = PackedSeqParams(qkv_format="thd", cu_seqlens_q=edges, cu_seqlens_kv=edges)
packed = attention(q, k, v, None, AttnMaskType.causal, packed_seq_params=pack)
packed.square().sum().backward()
grads = [x.grad.clone() for x in (q, k, v)]
for x in (q, k, v):
    x.grad = None
parts, at = [], 0
for n in lengths:
    mask = torch.triu(torch.ones(1, 1, n, n, dtype=torch.bool), 1)
    parts.append(attention(*(x[at:at + n, None] for x in (q, k, v)), mask).squeeze(1))
    at += n
alone = torch.cat(parts)
alone.square().sum().backward()
refused = []
for more, mask in (({"window_size": (4, 0)}, AttnMaskType.causal), ({}, AttnMaskType.no_mask)):
    try:
        layer(**more)(q, k, v, None, mask, packed_seq_params=pack)
    except NotImplementedError as e:
        refused.append(str(e))
print(json.dumps({
    "inert": inert, "first": first, "again": again, "shape": list(packed.shape),
    "off": float((packed - alone).abs().max()),
    "grads_off": max(float((a - x.grad).abs().max()) for a, x in zip(grads, (q, k, v))),
    "refused": refused,
}))
"""


def test_equals_a_slow_program() -> None:
    found = train_python(SLOW)
    assert found["worst"] < 1e-12
    assert found["padding_apart"] < 1e-12


@pytest.fixture(scope="module")
def megatron() -> dict[str, Any]:
    found: dict[str, Any] = train_python(MEGATRON)
    return found


def test_equals_megatrons_own_attention_on_each_sequence_alone(megatron: dict[str, Any]) -> None:
    assert megatron["shape"] == [16, 32]
    assert megatron["off"] < 1e-5 and megatron["grads_off"] < 1e-5


def test_changes_nothing_where_cuda_is_and_only_once_elsewhere(megatron: dict[str, Any]) -> None:
    assert megatron["inert"] and megatron["first"] and megatron["again"]


def test_what_it_would_ignore_is_refused(megatron: dict[str, Any]) -> None:
    window, mask = megatron["refused"]
    assert "window_size" in window and "attn_mask_type" in mask
