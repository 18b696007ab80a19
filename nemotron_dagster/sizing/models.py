"""The shape of the model that a config names: from its own files where they are here, else from ``env/models.toml``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dagster.project import Project
from nemotron_dagster.sizing.shape import Shape, UnknownShape, from_config

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ITERATION = re.compile(r"iter_(\d+)")
#: Megatron's names of what a Hugging Face config calls otherwise; the model section of run_config.yaml has them.
_MEGATRON = {
    "hidden_size": "hidden_size", "num_layers": "num_hidden_layers", "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads", "kv_channels": "head_dim", "ffn_hidden_size": "intermediate_size",
    "vocab_size": "vocab_size", "share_embeddings_and_output_weights": "tie_word_embeddings",
    "qk_layernorm": "qk_layernorm", "gated_linear_unit": "gated", "moe_ffn_hidden_size": "moe_intermediate_size",
    "moe_shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
    "moe_router_topk": "num_experts_per_tok", "moe_latent_size": "moe_latent_size",
    "mamba_num_heads": "mamba_num_heads", "mamba_head_dim": "mamba_head_dim", "mamba_num_groups": "n_groups",
    "mamba_state_dim": "ssm_state_size",
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A model whose shape is known. ``source`` says from where: a file, or the table of public numbers."""

    name: str
    shape: Shape
    source: str


def known(name: str, tables: Mapping[str, Any], cache: Path | None = None) -> Known:
    """The shape of a model: a directory, a Megatron checkpoint, or a Hub id.

    ``tables`` are those of ``load_tables``; ``cache`` is the Hub's local one (default: where its client keeps it).

    Raises:
        UnknownShape: saying why it cannot be told.
    """
    path = Path(name).expanduser()
    if path.exists() or name.startswith(("/", ".", "~")):
        return _local(path)
    if not _HUB_ID.fullmatch(name):
        raise UnknownShape(f"{name!r} is neither a directory here nor a Hub id")
    refs = sorted((cache or hub_cache()).glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json"))
    if refs:
        return Known(name, from_config(_json(refs[-1])), str(refs[-1]))
    for model, numbers in tables.get("model", {}).items():
        if name == model or name in numbers.get("same", ()):
            return Known(name, from_config(numbers), "public numbers of the model")
    raise UnknownShape(f"{name} is not in the local cache, and its numbers are not among those we know")


def hub_cache() -> Path:
    """Where the Hub's client keeps what it fetched (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME)."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named)
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def load_tables(project: Project) -> dict[str, Any]:
    """``env/models.toml``, the project's own over the bundled one.

    Raises:
        ConfigError: one is no valid TOML.
    """
    from nemotron_dagster.config.profiles import merge_tables
    from nemotron_dagster.config.source import read_toml

    tables: dict[str, Any] = {}
    for folder in reversed(project.folders("env")):
        if (folder / "models.toml").exists():
            tables = merge_tables(tables, read_toml(folder / "models.toml"))
    return tables


def _local(path: Path) -> Known:
    if (path / "config.json").is_file():
        return Known(str(path), from_config(_json(path / "config.json")), str(path / "config.json"))
    iterations = sorted((int(m[1]), p) for p in path.glob("iter_*") if (m := _ITERATION.fullmatch(p.name)))
    file = (iterations[-1][1] if iterations else path) / "run_config.yaml"
    if file.is_file():
        return Known(str(path), from_config(of_megatron(_yaml(file), str(file))), str(file))
    raise UnknownShape(f"{path} has no config.json and no run_config.yaml that could be read here")


def of_megatron(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The model section of Megatron-Bridge's run_config.yaml, in the words of a Hugging Face config.

    Raises:
        UnknownShape: it has none.
    """
    model = config.get("model")
    if not isinstance(model, Mapping):
        raise UnknownShape(f"{name} has no model section")
    found: dict[str, Any] = {ours: model[theirs] for theirs, ours in _MEGATRON.items() if model.get(theirs) is not None}
    pattern = model.get("hybrid_layer_pattern") or model.get("hybrid_override_pattern")
    experts = model.get("num_moe_experts") or 0
    if pattern:
        return {**found, "model_type": "nemotron_h", "hybrid_override_pattern": pattern, "n_routed_experts": experts}
    found["attention_bias"] = bool(model.get("add_qkv_bias") or model.get("add_bias_linear"))
    if experts:
        return {**found, "model_type": "qwen3_moe", "num_experts": experts, "qk_layernorm": True}
    return {**found, "model_type": "qwen2" if model.get("add_qkv_bias") else "llama"}


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        raise UnknownShape(f"{file} cannot be read ({e})") from None
    if not isinstance(found, dict):
        raise UnknownShape(f"{file} holds no object")
    return found


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise UnknownShape(f"{file} cannot be read ({e})") from None
    if not isinstance(found, dict):
        raise UnknownShape(f"{file} holds no mapping")
    return found
