"""Hugging Face model directories: is one whole, what identifies its tokenizer, and merging an adapter into one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from _runtime.payload import PayloadError

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
GIVE_MODEL = "Give a Hugging Face model directory or a Hub id, or connect a step that produces checkpoint_hf."


def is_local(model: str) -> bool:
    """Does the name mean a directory here rather than a Hub id?"""
    return model.startswith(("/", ".", "~")) or Path(model).exists()


def check_base(model: str, key: str) -> None:
    """Refuse a local directory that no model can be loaded from.

    Raises:
        PayloadError: what is missing, and which step would make it.
    """
    if not is_local(model):
        return
    path = Path(model).expanduser()
    if not path.is_dir():
        raise PayloadError("model_missing", f"{key}={model}: no such directory", GIVE_MODEL)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise PayloadError(
            "model_invalid", f"{key}={model}: an adapter without its base", "Merge it with convert/merge_lora first."
        )
    if any(path.glob("iter_*")):
        raise PayloadError(
            "model_invalid", f"{key}={model}: a Megatron checkpoint", "Convert it with convert/megatron_to_hf first."
        )
    if not (path / "config.json").is_file():
        raise PayloadError("model_invalid", f"{key}={model}: has no config.json", GIVE_MODEL)
    if not any(found for pattern in WEIGHTS for found in path.glob(pattern)):
        raise PayloadError("model_invalid", f"{key}={model}: has no weights (*.safetensors)", GIVE_MODEL)


def load_config(model: str, key: str, trust_remote_code: bool = False) -> Any:
    """Load a model's config.

    Raises:
        PayloadError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise PayloadError("model_invalid", f"{key}={model}: {_reason(e)}", GIVE_MODEL) from None


def load_tokenizer(model: str, key: str, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer that a model comes with.

    Raises:
        PayloadError: there is none, or the model's config cannot be read.
    """
    from transformers import AutoTokenizer

    load_config(model, key, trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise PayloadError("model_invalid", f"{key}={model}: {_reason(e)}", GIVE_MODEL) from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def template_text(tokenizer: Any) -> str | None:
    """A tokenizer's default chat template."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default", next(iter(template.values()), None))
    return template or None


def tokenizer_facts(directory: Path) -> dict[str, str | None]:
    """What identifies the tokenizer of a checkpoint or adapter: digests of tokenizer.json and of the chat template."""
    from transformers import AutoTokenizer

    template = template_text(AutoTokenizer.from_pretrained(directory))
    file = directory / "tokenizer.json"
    return {
        "tokenizer_sha256": hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None,
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
    }


def problem(directory: Path) -> str | None:
    """Why the directory is not a whole checkpoint, or None; reads headers, not weights."""
    from safetensors import SafetensorError, safe_open

    if not (directory / "config.json").is_file():
        return f"{directory}: has no config.json"
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = sorted(p.name for p in directory.glob("*.safetensors"))
    if not names:
        return f"{directory}: has no weights"
    for name in names:
        try:
            with safe_open(directory / name, framework="pt") as weights:
                if not weights.keys():
                    return f"{directory / name}: holds no tensor"
        except (OSError, SafetensorError) as e:
            return f"{directory / name}: {e}"
    if not (directory / "tokenizer_config.json").is_file():
        return f"{directory}: has no tokenizer"
    return None


def merge_adapter(base: str, adapter: Path, target: Path, trust_remote_code: bool = False) -> None:
    """Add a LoRA adapter to its base model and write the whole as ``target``, which appears only when complete."""
    merged, tokenizer = merged_model(base, adapter, trust_remote_code)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    merged.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    put(partial, target)


def merged_model(
    base: str, adapter: Path, trust_remote_code: bool = False, dtype: Any = "auto", device_map: Any = None
) -> tuple[Any, Any]:
    """A LoRA adapter added to its base model; and the tokenizer of the adapter, or of the base where it has none.

    Args:
        dtype: what the base is loaded as and the result is in; ``auto`` is the base's own. What is added is computed in
            float32 and rounded once.

    Raises:
        PayloadError: the sum holds a NaN or an infinity.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"device_map": device_map} if device_map else {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=trust_remote_code, **where)
    targets = json.loads((adapter / "adapter_config.json").read_text()).get("target_modules") or []
    if getattr(model.config, "tie_word_embeddings", False) and any("lm_head" in name for name in targets):
        _untie(model)
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except ValueError as e:
        if "NaN" not in str(e):
            raise
        raise PayloadError("adapter_invalid", f"{adapter}: {e}", "Use an earlier save of the adapter.") from None
    own = any((adapter / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    return merged, AutoTokenizer.from_pretrained(adapter if own else base, trust_remote_code=trust_remote_code)


def put(partial: Path, target: Path) -> None:
    """Move a finished directory to its name, over what is broken there; a whole one that came first stays."""
    if target.exists() and problem(target):
        shutil.rmtree(target, ignore_errors=True)
    try:
        partial.rename(target)
    except OSError:
        if problem(target):
            raise
        shutil.rmtree(partial, ignore_errors=True)


def _untie(model: Any) -> None:
    """Give the output layer its own weights, or what is merged into it would change the input embedding as well."""
    import torch

    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
