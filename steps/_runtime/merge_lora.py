"""Folds a LoRA adapter into its base model: through PEFT, or through Megatron-Bridge (``megatron_merge``)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _runtime import cpu, hf_checkpoint, lora_adapter, megatron_checkpoint, payload
from _runtime.conversion_inputs import TINY, check_source, hf_model, refuse_overlap, required, writing
from _runtime.convert_script import truth
from _runtime.megatron_convert import DTYPES
from _runtime.payload import PayloadError

#: Stands for an adapter of tiny_llama, made on the spot.
TINY_LORA = "tiny_lora"
BACKENDS = ("auto", "hf_peft", "megatron_bridge")


def run(cfg: dict[str, Any]) -> None:
    """Merge as the config's ``backend`` says.

    Raises:
        PayloadError: input that a person must mend.
    """
    if backend(cfg) == "megatron_bridge":
        from _runtime import megatron_merge

        megatron_merge.run(cfg)
    else:
        hf_peft(cfg)


def backend(cfg: dict[str, Any]) -> str:
    """Which backend merges: ``auto`` takes megatron_bridge where the adapter or the base is a Megatron checkpoint.

    Raises:
        PayloadError: the one named cannot merge this adapter.
    """
    name = str(cfg.get("backend") or "auto").lower()
    if name not in BACKENDS:
        raise PayloadError("config_invalid", f"backend={name}: none of {', '.join(BACKENDS)}", "Set backend=auto.")
    adapter = required(cfg, "lora_checkpoint")
    megatron = adapter != TINY_LORA and megatron_checkpoint.is_megatron(Path(adapter).expanduser())
    if name == "hf_peft" and megatron:
        raise PayloadError(
            "backend_mismatch",
            f"backend=hf_peft, and lora_checkpoint={adapter} is an adapter of Megatron-Bridge",
            "Set backend=megatron_bridge, and base_megatron_path to the base that it was trained on.",
        )
    if name != "auto":
        return name
    return "megatron_bridge" if megatron or cfg.get("base_megatron_path") or cfg.get("pretrained") else "hf_peft"


def hf_peft(cfg: dict[str, Any]) -> None:
    """Merge an adapter of Hugging Face PEFT.

    The base is loaded in ``torch_dtype`` (auto: its own), what is added is computed in float32 and rounded once.
    """
    target, trust = Path(required(cfg, "output_hf_path")).absolute(), truth(cfg.get("trust_remote_code", True))
    dtype = str(cfg.get("torch_dtype") or "auto")
    if dtype not in ("auto", *DTYPES):
        raise PayloadError("config_invalid", f"torch_dtype={dtype}: none of auto, {', '.join(DTYPES)}", "Set auto.")
    for key in ("safe_serialization", "save_tokenizer"):
        if not truth(cfg.get(key, True)):
            raise PayloadError(
                "config_invalid", f"{key}=false: a checkpoint is safetensors and a tokenizer", f"Set {key}=true."
            )
    with writing(target), _inputs(cfg, trust) as (base, adapter):
        for source, key in ((base, "base_hf_path"), (str(adapter), "lora_checkpoint")):
            refuse_overlap(target, "output_hf_path", source, key, "output_path_overlaps_inputs")
        lora_adapter.check_fit(adapter, base)
        hf_checkpoint.load_tokenizer(base, "base_hf_path", trust)
        print(f"merging {adapter} into {base} (dtype {dtype})", flush=True)
        merged, tokenizer = hf_checkpoint.merged_model(base, adapter, trust, dtype, cfg.get("device_map"))
        merged.save_pretrained(target)
        tokenizer.save_pretrained(target)
        rank = lora_adapter.read(adapter, "lora_checkpoint").get("r")
    if wrong := hf_checkpoint.problem(target):
        raise RuntimeError(f"the merged model is not whole: {wrong}")
    scratch = cfg["lora_checkpoint"] == TINY_LORA
    payload.result(
        backend="hf_peft",
        base_model=TINY if scratch else base,
        adapter=TINY_LORA if scratch else str(adapter),
        rank=rank,
        parameters=merged.num_parameters(),
        dtype=str(merged.dtype).removeprefix("torch."),
        memory_mib=cpu.peak_memory_mib(),
        **hf_checkpoint.tokenizer_facts(target),
    )


@contextmanager
def _inputs(cfg: dict[str, Any], trust: bool) -> Iterator[tuple[str, Path]]:
    """Base and adapter; both made, and removed afterwards, where the config names the tiny ones."""
    named, given = required(cfg, "lora_checkpoint"), cfg.get("base_hf_path")
    given = None if given in (None, "", "???", TINY) else str(given)
    if named != TINY_LORA:
        adapter = lora_adapter.find(named, "lora_checkpoint")
        base = lora_adapter.base(given, adapter, lora_adapter.read(adapter, "lora_checkpoint"))
        check_source(base, "base_hf_path", "base_model_missing")
        if hf_checkpoint.is_local(base):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        yield base, adapter
        return
    if given is not None:
        raise PayloadError(
            "base_model_mismatch",
            f"base_hf_path={given}: lora_checkpoint={TINY_LORA} is an adapter of {TINY}",
            "Give lora_checkpoint, the adapter to merge into it.",
        )
    with hf_model(TINY) as (base, _), tempfile.TemporaryDirectory(prefix="tiny-lora-") as made:
        _make_adapter(base, made)
        yield base, Path(made)


def _make_adapter(base: str, folder: str) -> None:
    """An untrained adapter, of which both matrices are random: with the usual zeros it would change nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(folder)
