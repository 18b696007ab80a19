"""The model section of a Megatron-Bridge run: from the recipe, a Hugging Face model or a Megatron checkpoint."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from _runtime import cpu, cpu_megatron, hf_checkpoint, megatron_config, megatron_start
from _runtime.megatron_start import SCRATCH, Start
from _runtime.payload import PayloadError

#: What recipes ask for that needs CUDA; what the config says of them still comes after.
SETTINGS_OF_CPU: dict[str, dict[str, Any]] = {
    "dist": {"distributed_backend": "gloo", "use_decentralized_pg": False, "use_gloo_process_groups": True},
    "ddp": {
        "use_distributed_optimizer": False,
        "overlap_grad_reduce": False,
        "overlap_param_gather": False,
        "average_in_collective": False,  # gloo only sums
        "data_parallel_sharding_strategy": "no_shard",
    },
    "optimizer": {
        "bf16": False,
        "fp16": False,
        "use_distributed_optimizer": False,
        "use_precision_aware_optimizer": False,
        "overlap_param_gather": False,
    },
    "checkpoint": {"async_save": False, "fully_parallel_save": False},
    "train": {"manual_gc": False},
}


def settings_of_cpu(container: Any) -> None:
    """Take back what a recipe assumes of GPUs."""
    for name, values in SETTINGS_OF_CPU.items():
        megatron_config.merge(getattr(container, name), values, name)
    container.mixed_precision = container.comm_overlap = None
    if hasattr(container.dataset, "num_workers"):
        container.dataset.num_workers, container.dataset.pin_memory = 0, False
        container.dataset.persistent_workers = False


def for_cpu(model: Any) -> None:
    """Describe the model so that plain PyTorch can run it, in float32.

    Raises:
        PayloadError: layers that only CUDA has, or too many parameters.
    """
    import torch

    cpu_megatron.local_spec(model)
    size = _parameters(model)
    if size > cpu.MAX_PARAMETERS:
        raise PayloadError(
            "cpu_model_too_large",
            f"the model has about {size / 1e6:,.0f} M parameters; without a CUDA device at most "
            f"{cpu.MAX_PARAMETERS / 1e6:,.0f} M are trained",
            "Run it with a profile whose target has GPUs, or take the `tiny` config to try the step out.",
        )
    cpu.choose_threads(size)
    model.bf16 = model.fp16 = False
    model.params_dtype = model.pipeline_dtype = torch.float32
    model.autocast_dtype = None
    model.attention_backend = None


def _parameters(model: Any) -> int:
    """About how many parameters: embedding, attention and MLP matrices, of every expert."""
    hidden, ffn = int(model.hidden_size), int(model.ffn_hidden_size or 4 * model.hidden_size)
    experts = int(getattr(model, "num_moe_experts", None) or 1)
    wide = int(getattr(model, "moe_ffn_hidden_size", None) or ffn) if experts > 1 else ffn
    matrices = 3 if model.gated_linear_unit else 2
    embedding = int(model.vocab_size or 0) * hidden * (1 if model.share_embeddings_and_output_weights else 2)
    return embedding + int(model.num_layers) * (4 * hidden * hidden + experts * matrices * hidden * wide)


def describe(container: Any, cfg: dict[str, Any], start: Start, save: Path) -> str | None:
    """Set the container's model, and its tokenizer; returns where the tokenizer lies, or its name.

    A model that comes from Hugging Face takes the place of the recipe's. A Megatron checkpoint describes itself, where
    the recipe has no model of its own.
    """
    source: Path | None = None
    if start.hf or start.scratch:
        path = _scratch(save) if start.scratch else str(start.hf)
        adapter = (
            start.scratch and start.hf is None and bool((cfg.get("checkpoint") or {}).get("pretrained_checkpoint"))
        )
        weights = start.resume is None and bool(cfg.get("load_hf_weights", True)) and not adapter
        container.model = _from_hugging_face(path, weights, bool(cfg.get("trust_remote_code", False)))
        if start.scratch:
            container.model.hf_model_id = SCRATCH  # the directory moves when the checkpoint is published
        tokenizer: str | None = path
    elif container.model is None and (found := start.pretrained or start.resume):
        source = megatron_start.iteration(found)
        container.model = _from_checkpoint(source)
        tokenizer = str(source / "tokenizer") if (source / "tokenizer").is_dir() else None
    elif container.model is None:
        raise PayloadError(
            "model_missing",
            "the recipe has no model of its own, and neither checkpoint.pretrained_checkpoint nor hf_model_path is set",
            "Set one of them, or take a recipe of a model.",
        )
    else:
        return container.tokenizer.tokenizer_model  # type: ignore[no-any-return]
    if tokenizer:
        container.tokenizer.tokenizer_type = "HuggingFaceTokenizer"
        container.tokenizer.tokenizer_model = tokenizer
    if hasattr(container.tokenizer, "use_tokenizer_vocab_size"):
        container.tokenizer.use_tokenizer_vocab_size = False  # the weights have the model's own vocabulary
    return tokenizer


def _scratch(save: Path) -> str:
    """The untrained tiny Llama, the same wherever it is made."""
    from _runtime import tiny_model

    made = save / "base"
    if hf_checkpoint.problem(made):
        partial = save / f".base.{os.getpid()}"  # every rank makes one; whose rename comes last does not matter
        tiny_model.save(partial)
        hf_checkpoint.put(partial, made)
    return str(made)


def _from_hugging_face(path: str, weights: bool, trust_remote_code: bool) -> Any:
    import torch
    from megatron.bridge import AutoBridge

    known = {"trust_remote_code": trust_remote_code}
    if not cpu.has_cuda():
        known["torch_dtype"] = torch.float32  # type: ignore[assignment]
    try:
        return AutoBridge.from_hf_pretrained(path, **known).to_megatron_provider(load_weights=weights)
    except (OSError, ValueError, KeyError) as e:
        reason = " ".join(str(e).split())[:300]
        raise PayloadError("model_invalid", f"hf_model_path={path}: {reason}", hf_checkpoint.GIVE_MODEL) from None


def _from_checkpoint(folder: Path) -> Any:
    from megatron.bridge.training.model_load_save import load_model_config

    try:
        model, _ = load_model_config(str(folder))
    except Exception as e:  # it instantiates what run_config.yaml names
        reason = " ".join(str(e).split())[:300]
        raise PayloadError(
            "missing_base_checkpoint",
            f"{folder / 'run_config.yaml'}: describes no model ({reason})",
            megatron_start.GIVE_BASE,
        ) from None
    return model


def base_name(container: Any, start: Start) -> str | None:
    """What the weights came from, for the record."""
    if start.scratch:
        return f"untrained {SCRATCH}"
    named = start.pretrained or start.hf or getattr(container.model, "hf_model_id", None)
    return str(named) if named else None


def tokenizer_facts(folder: Path) -> dict[str, str | None]:
    """What identifies the tokenizer of an iteration: as ``hf_checkpoint.tokenizer_facts``, of a tokenizer alone."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {"tokenizer_sha256": None, "chat_template_sha256": None}
    from transformers import AutoTokenizer

    template = hf_checkpoint.template_text(AutoTokenizer.from_pretrained(folder))
    return {
        "tokenizer_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
    }
