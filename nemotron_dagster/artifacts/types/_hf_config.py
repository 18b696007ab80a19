"""Do the tensors of a Hugging Face model fit its config.json?

Every rule is a row of a table and applies only where both the tensor and the config's keys are there. What does not
fit is a problem for the architectures below, whose layout is known, and a note for any other: an architecture that
nobody here has heard of is never refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from nemotron_dagster.artifacts.types._documents import whole
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.artifacts.types._safetensors import Tensor

#: Their layers all hold the same tensors.
_UNIFORM = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "granite", "olmo2", "smollm3")
_KNOWN = (*_UNIFORM, "qwen3_moe", "qwen2_moe", "nemotron", "nemotron_h", "gpt2", "gpt_neox", "olmo", "gpt_oss")
_EMBEDDING = (
    ".embed_tokens.weight",
    ".wte.weight",
    ".word_embeddings.weight",
    ".embed_in.weight",
    ".embeddings.weight",
)
_HEAD = (".lm_head.weight", ".embed_out.weight")
_OTHER_MODALITY = re.compile(r"vis|image|audio|speech|sound|video")
_LAYER = re.compile(r"^(?:model\.|transformer\.|backbone\.|gpt_neox\.|language_model\.)*(?:layers|h)\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
#: What packs several weights into one element, so that shapes say nothing.
_PACKED = ("U8", "I8", "I32", "U32", "F4")
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

_HIDDEN = ("hidden_size", "n_embd", "d_model")
_Q = ("num_attention_heads", "head_dim")
_KV = ("num_key_value_heads", "head_dim")
_SHAPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "self_attn.q_proj.weight": (_Q, ("hidden_size",)),
    "self_attn.k_proj.weight": (_KV, ("hidden_size",)),
    "self_attn.v_proj.weight": (_KV, ("hidden_size",)),
    "self_attn.o_proj.weight": (("hidden_size",), _Q),
    "mlp.gate_proj.weight": (("intermediate_size",), ("hidden_size",)),
    "mlp.up_proj.weight": (("intermediate_size",), ("hidden_size",)),
    "mlp.down_proj.weight": (("hidden_size",), ("intermediate_size",)),
    "input_layernorm.weight": (("hidden_size",),),
    "post_attention_layernorm.weight": (("hidden_size",),),
}
#: These work out the size of a head where the config does not give it.
_HEAD_FROM_HIDDEN = ("llama", "mistral", "mixtral", "qwen2", "phi3", "granite", "smollm3")
_FIX = "Save the model and its config together again."


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the config that is about the language model."""
    for key in ("text_config", "llm_config", "language_config", "thinker_config"):
        if isinstance(config.get(key), dict):
            return {**config, **config[key]}
    return dict(config)


def context_length(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model takes."""
    return whole(text_config(config), "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def sizes(config: Mapping[str, Any]) -> dict[str, int | None]:
    """vocab_size, hidden_size, layers, heads and kv_heads, None where the config does not say."""
    text = text_config(config)
    heads = whole(text, "num_attention_heads", "n_head", "n_heads")
    return {
        "vocab_size": whole(text, "vocab_size"),
        "hidden_size": whole(text, *_HIDDEN),
        "layers": whole(text, "num_hidden_layers", "n_layer", "n_layers") or _listed_layers(text),
        "heads": heads,
        "kv_heads": whole(text, "num_key_value_heads", "n_kv_heads") or heads,
    }


def _listed_layers(text: Mapping[str, Any]) -> int | None:
    """Hybrid models name the kind of every layer, in a list or in a text of one letter each."""
    found = text.get("layers_block_type") or text.get("hybrid_override_pattern")
    return len(found) if isinstance(found, list | str) and found else None


def embedding_rows(config: Mapping[str, Any], tensors: Iterable[Tensor]) -> int | None:
    """How many tokens the input embedding has rows for, as far as that is certain."""
    found = _embedding(tensors)
    if found:
        return found.shape[0]
    return sizes(config)["vocab_size"] if config.get("model_type") in _KNOWN else None


def is_tied(tensors: Iterable[Tensor]) -> bool:
    """Is there no output layer of its own?"""
    return not any(f".{t.name}".endswith(_HEAD) for t in tensors)


def check(config: Mapping[str, Any], tensors: Sequence[Tensor], where: str, problems: Problems) -> list[str]:
    """Compare config and tensors; what does not fit goes to ``problems``, or for an unknown model is returned."""
    found = list(_misfits(config, tensors))
    if config.get("model_type") in _KNOWN:
        for misfit in found:
            problems.add(f"{where}: {misfit}. {_FIX}")
        return []
    return found


def _embedding(tensors: Iterable[Tensor]) -> Tensor | None:
    return next(
        (
            t
            for t in tensors
            if len(t.shape) == 2 and f".{t.name}".endswith(_EMBEDDING) and not _OTHER_MODALITY.search(t.name)
        ),
        None,
    )


def _misfits(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> Iterable[str]:
    text = text_config(config)
    known = sizes(config)
    kind = config.get("model_type")
    if kind in _HEAD_FROM_HIDDEN and known["hidden_size"] and known["heads"] and not whole(text, "head_dim"):
        text["head_dim"] = known["hidden_size"] // known["heads"]
    embedding, rows = _embedding(tensors), known["vocab_size"]
    if embedding:
        if rows and embedding.shape[0] < rows:
            yield f"{embedding.name} has {embedding.shape[0]:,} rows for a vocab_size of {rows:,}"
        width = whole(text, "embedding_size", "word_embed_proj_dim") or known["hidden_size"]
        if width and embedding.shape[1] != width and embedding.dtype not in _PACKED:
            yield f"{embedding.name} is {embedding.shape[1]:,} wide, and hidden_size is {width:,}"
    yield from _head(config, text, embedding, tensors)
    layers: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for t in tensors:
        if m := _LAYER.match(t.name):
            if len(m[1]) > 6:
                yield f"{t.name}: that is no number of a layer"
                continue
            layers[int(m[1])][m[2]] = t
    if layers and known["layers"]:
        yield from _numbers("layer", set(layers), known["layers"], whole(text, "num_nextn_predict_layers") or 0)
    # of a quantized model some layers may be left as they were
    yield from _inside(layers, text, kind in _UNIFORM and "quantization_config" not in config)


def _head(
    config: Mapping[str, Any], text: Mapping[str, Any], embedding: Tensor | None, tensors: Sequence[Tensor]
) -> Iterable[str]:
    head = next((t for t in tensors if f".{t.name}".endswith(_HEAD)), None)
    named = config.get("architectures")
    causal = isinstance(named, list) and named and str(named[0]).endswith(_CAUSAL)
    if head is None and causal and text.get("tie_word_embeddings") is False:
        yield "there is no lm_head.weight, and tie_word_embeddings is false"
    if head is not None and embedding is not None and head.shape != embedding.shape and text.get("tie_word_embeddings"):
        yield f"{head.name} is {list(head.shape)}, {embedding.name} is {list(embedding.shape)}, and they are tied"


def _numbers(what: str, there: set[int], count: int, more: int = 0) -> Iterable[str]:
    missing = count - len([n for n in there if n < count])
    if missing:
        first = [n for n in range(min(count, len(there) + 10)) if n not in there][:10]
        yield f"the weights lack {missing:,} of {count:,} {what}s: {', '.join(map(str, first))}"
    if extra := sorted(n for n in there if n >= count + more):
        yield f"the weights have {what} {extra[0]}, and the config counts {count:,}"


def _inside(layers: Mapping[int, Mapping[str, Tensor]], text: Mapping[str, Any], uniform: bool) -> Iterable[str]:
    experts = whole(text, "num_local_experts", "num_experts", "n_routed_experts")
    whole_set = set().union(*layers.values()) if uniform else set()
    for number, layer in sorted(layers.items()):
        lacking = sorted(whole_set - layer.keys())
        if lacking:
            yield f"layer {number} lacks {', '.join(lacking[:3])}, which others have"
        numbers = {int(m[1]) for name in layer if (m := _EXPERT.search(f".{name}")) and len(m[1]) <= 6}
        if numbers and experts:
            for misfit in _numbers("expert", numbers, experts):
                yield f"layer {number}: {misfit}"
        for name, rule in _SHAPES.items():
            t = layer.get(name)
            if t is None or t.dtype in _PACKED:
                continue
            keys = [key for side in rule for key in side]
            if all(whole(text, key) for key in keys):
                shape = tuple(prod(text[key] for key in side) for side in rule)
                if t.shape != shape:
                    yield f"{t.name} is {list(t.shape)}, and {', '.join(dict.fromkeys(keys))} make it {list(shape)}"
