"""The shape of a model: its blocks and their parameters, from a config alone.

A transformer layer is two blocks, attention and feed-forward; a hybrid model has one block per layer. Each block is
one character, as NVIDIA's hybrid patterns write them: ``*`` attention, ``-`` feed-forward, ``E`` mixture of experts,
``M`` Mamba-2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Families whose weights are counted tensor by tensor as transformers makes them.
DENSE = ("llama", "mistral", "qwen2", "qwen3")
MIXTURES = ("qwen3_moe",)
HYBRIDS = ("nemotron_h",)
_QK_NORM = ("qwen3", "qwen3_moe")
_CHARACTER = {
    "full_attention": "*", "attention": "*", "mlp": "-", "moe": "E", "linear_attention": "M", "mamba": "M"
}  # fmt: skip


class UnknownShape(Exception):
    """A config does not tell the shape; the message says why."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; ``blocks`` and ``mtp`` (the layers that predict further tokens) are patterns.

    Attributes:
        queries, keys: width of all query heads, and of all key heads.
        ffn: width of a feed-forward block; ``gated`` ones have three matrices, others two.
        experts, active: routed experts of a mixture, and how many see a token.
        expert_ffn, shared_ffn: width of one routed expert, and of the experts that see every token.
        latent: width in which the routed experts work, where it is not ``hidden``.
        mamba_heads, mamba_width: heads, and width of all of them; ``groups`` share ``state`` numbers per channel.
        biases: which matrices have a bias: ``q``, ``o``, ``f`` (feed-forward), ``m`` (Mamba's projections).
    """

    hidden: int
    vocabulary: int
    blocks: str
    queries: int = 0
    keys: int = 0
    head: int = 0
    ffn: int = 0
    gated: bool = True
    tied: bool = False
    qk_norm: bool = False
    experts: int = 0
    active: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    latent: int = 0
    mamba_heads: int = 0
    mamba_width: int = 0
    groups: int = 0
    state: int = 0
    kernel: int = 4
    biases: str = ""
    mtp: str = ""
    layers: int = 0

    @property
    def matrices(self) -> int:
        """Weight matrices of a feed-forward network."""
        return 3 if self.gated else 2

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding; an output layer of its own has as many."""
        return self.hidden * self.vocabulary

    @property
    def convolved(self) -> int:
        """Channels that Mamba's convolution sees."""
        return self.mamba_width + 2 * self.groups * self.state

    def routed(self, block: str) -> int:
        """Parameters of a block's routed experts, which expert parallelism shares out."""
        return self.experts * self.matrices * (self.latent or self.hidden) * self.expert_ffn if block == "E" else 0

    def dense(self, block: str) -> int:
        """The other parameters of a block, its norm among them."""
        h, norm = self.hidden, self.hidden
        if block == "*":
            count = h * (2 * self.queries + 2 * self.keys) + (2 * self.head if self.qk_norm else 0)
            count += self.queries + 2 * self.keys if "q" in self.biases else 0
            return norm + count + (h if "o" in self.biases else 0)
        if block == "-":
            bias = (self.matrices - 1) * self.ffn + h if "f" in self.biases else 0
            return norm + self.matrices * h * self.ffn + bias
        if block == "E":
            latent = 2 * h * self.latent
            return norm + h * self.experts + latent + self.matrices * h * self.shared_ffn
        inside = self.mamba_width + self.convolved + self.mamba_heads
        count = h * inside + self.convolved * (self.kernel + 1) + 3 * self.mamba_heads
        count += self.mamba_width + self.mamba_width * h + (inside + h if "m" in self.biases else 0)
        return norm + count

    def parameters(self, mtp: bool = False) -> int:
        """All of them; with ``mtp`` also those of the multi-token-prediction layers, each with its projection."""
        found = sum(self.dense(b) + self.routed(b) for b in self.blocks) + self.hidden
        found += self.embedding * (1 if self.tied else 2)
        if mtp and self.mtp:
            found += sum(self.dense(b) + self.routed(b) for b in self.mtp) + 2 * self.hidden**2 + 3 * self.hidden
        return found


def from_config(config: Mapping[str, Any]) -> Shape:
    """The shape of a Hugging Face config (https://huggingface.co/docs/transformers/main_classes/configuration).

    Raises:
        UnknownShape: an architecture that is not counted here, or a size that is missing or no whole number.
    """
    kind = str(config.get("model_type") or "?")
    if kind not in (*DENSE, *MIXTURES, *HYBRIDS):
        raise UnknownShape(f"the architecture {kind!r} is not counted ({', '.join((*DENSE, *MIXTURES, *HYBRIDS))} are)")
    hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    head = _whole(config, "head_dim", hidden // max(heads, 1))
    groups = _whole(config, "num_key_value_heads", heads)
    biased = bool(config.get("attention_bias"))
    common: dict[str, Any] = {
        "hidden": hidden,
        "vocabulary": _whole(config, "vocab_size"),
        "queries": heads * head,
        "keys": groups * head,
        "head": head,
        "tied": bool(config.get("tie_word_embeddings")),
        "qk_norm": kind in _QK_NORM or bool(config.get("qk_layernorm")),
        "gated": bool(config.get("gated", kind not in HYBRIDS)),
        "ffn": _whole(config, "intermediate_size", 0),
    }
    if kind in HYBRIDS:
        return _hybrid(config, common)
    layers = _whole(config, "num_hidden_layers")
    biases = ("q" if kind == "qwen2" or biased else "") + ("o" if biased and kind != "qwen2" else "")
    biases += "f" if config.get("mlp_bias") else ""
    if kind in DENSE:
        return Shape(**common, blocks="*-" * layers, biases=biases, layers=layers)
    every, dense = _whole(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    experts = _whole(config, "num_experts", _whole(config, "num_local_experts", 0))  # as transformers 5 saves it
    sparse = [experts > 0 and i not in dense and (i + 1) % max(every, 1) == 0 for i in range(layers)]
    return Shape(
        **common,
        blocks="".join("*E" if s else "*-" for s in sparse),
        biases=biases,
        experts=experts,
        active=_whole(config, "num_experts_per_tok"),
        expert_ffn=_whole(config, "moe_intermediate_size"),
        layers=layers,
    )


def _hybrid(config: Mapping[str, Any], common: dict[str, Any]) -> Shape:
    blocks = _pattern(config, "hybrid_override_pattern", "layers_block_type")
    further = _whole(config, "num_nextn_predict_layers", 0)
    heads = _whole(config, "mamba_num_heads", 0)
    biases = ("f" if config.get("mlp_bias") else "") + ("m" if config.get("use_bias") else "")
    return Shape(
        **common,
        blocks=blocks,
        biases=biases,
        experts=_whole(config, "n_routed_experts", _whole(config, "num_local_experts", 0)) if "E" in blocks else 0,
        active=_whole(config, "num_experts_per_tok", 0),
        expert_ffn=_whole(config, "moe_intermediate_size", 0),
        shared_ffn=_whole(config, "moe_shared_expert_intermediate_size", 0),
        latent=_whole(config, "moe_latent_size", 0),
        mamba_heads=heads,
        mamba_width=heads * _whole(config, "mamba_head_dim", 0),
        groups=_whole(config, "n_groups", 0),
        state=_whole(config, "ssm_state_size", 0),
        kernel=_whole(config, "conv_kernel", 4),
        mtp=_pattern(config, "mtp_hybrid_override_pattern", "mtp_layers_block_type", "*E") * further,
        layers=len(blocks),
    )


def _pattern(config: Mapping[str, Any], text: str, listed: str, default: str = "") -> str:
    found = config.get(text)
    if not isinstance(found, str):
        words = config.get(listed)
        found = "".join(_CHARACTER.get(str(w), "?") for w in words) if isinstance(words, list) else default
    pattern = found.replace("|", "").partition("/")[0]
    if not pattern or set(pattern) - set("*-EM"):
        raise UnknownShape(f"{text} = {found!r} is no pattern of the blocks * - E M")
    return pattern


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UnknownShape(f"its config has {key} = {value!r}, and a whole number is needed")
    return value
