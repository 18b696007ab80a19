"""A step's config brought into the form that AutoModel reads, and checked by AutoModel's own config classes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from _runtime import chat_data, hf_checkpoint, trackers
from _runtime.payload import PayloadError
from _runtime.sections import section

LORA = {
    "_target_": "nemo_automodel.components._peft.lora.PeftConfig",
    "exclude_modules": ["lm_head"],  # of all linear layers; the output layer often shares the embedding's weights
    "dim": 16,
    "alpha": 32,
    "dropout": 0.0,
}
FROM_CONFIG = "nemo_automodel.NeMoAutoModelForCausalLM.from_config"
# Sections that AutoModel parses into config classes of its own.
TYPED = (
    *("step_scheduler", "lr_scheduler", "optimizer", "loss_fn", "dataloader", "validation_dataloaders"),
    *("checkpoint", "wandb", "mlflow", "comet"),
)


def settle(cfg: dict[str, Any], adapter: bool) -> None:
    """Bring settings that AutoModel would misread or ignore into the form it reads; ``adapter``: LoRA is what is made.

    Raises:
        PayloadError: a setting that cannot be trained with.
    """
    checkpoint = section(cfg, "checkpoint")
    for name in ("model", "dataset", "step_scheduler", "distributed"):
        section(cfg, name)
    consolidated = str(checkpoint.get("save_consolidated")).lower() != "false"
    if checkpoint.get("enabled") is False or not (consolidated or adapter):
        raise PayloadError(
            "checkpoint_disabled",
            "checkpoint.enabled and checkpoint.save_consolidated must be on: the step's output is the saved model",
            "Set checkpoint.enabled=true and checkpoint.save_consolidated=final.",
        )
    _settle_peft(cfg, adapter)
    warmup, steps = (cfg.get("lr_scheduler") or {}).get("lr_warmup_steps"), cfg["step_scheduler"].get("max_steps")
    if warmup and steps and int(warmup) >= int(steps):
        raise PayloadError(
            "config_invalid",
            f"lr_scheduler.lr_warmup_steps={warmup}: not less than step_scheduler.max_steps={steps}",
            "Lower it, or remove it: a tenth of the steps is the default.",
        )
    if isinstance(cfg.get("rng"), dict) and "seed" in cfg["rng"]:
        cfg.setdefault("seed", cfg["rng"]["seed"])  # AutoModel reads the top-level key only
    sizes = cfg["distributed"]
    sizes |= {k: None for k in sizes if k.endswith("_size") and str(sizes[k]).lower() == "none"}  # YAML has null
    trackers.check(cfg)


def _settle_peft(cfg: dict[str, Any], adapter: bool) -> None:
    peft = cfg.get("peft")
    if peft in (None, "null", "none", "") and not adapter:
        cfg.pop("peft", None)
    elif peft == "lora":
        cfg["peft"] = dict(LORA)
    elif isinstance(peft, dict):
        cfg["peft"] = {"_target_": LORA["_target_"], **peft}
    else:
        wanted = "lora or a mapping" if adapter else "lora, null or a mapping"
        raise PayloadError("config_invalid", f"peft={peft!r}: must be {wanted}", "Set peft=lora.")


def go_offline(cfg: dict[str, Any]) -> None:
    """Send nothing anywhere, and do not wait for a hub that nothing is asked of."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    model, data = cfg["model"].get("pretrained_model_name_or_path"), cfg["dataset"].get("path_or_dataset_id")
    model_here = model == "tiny_llama" or hf_checkpoint.is_local(str(model))
    if model_here and not (isinstance(data, str) and chat_data.is_hub_id(data)):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def start_from_random_weights(cfg: dict[str, Any]) -> None:
    """``load_weights: false``: keep the model's architecture and tokenizer, not its weights."""
    model = cfg["model"]
    model["_target_"] = FROM_CONFIG
    model["config"] = model.pop("pretrained_model_name_or_path")


def parse(cfg: dict[str, Any]) -> Any:
    """The config as AutoModel's ``ConfigNode``, once its own config classes have accepted every section.

    Raises:
        PayloadError: naming the section, and in AutoModel's words the key or value that it does not take.
    """
    from nemo_automodel.components.config.loader import ConfigNode

    try:
        node = ConfigNode(cfg)
    except (TypeError, ValueError, AttributeError, ImportError) as e:
        raise PayloadError("config_invalid", f"AutoModel cannot read the config: {_words(e)}", "Mend it.") from None
    try:
        from nemo_automodel.recipes._dist_utils import parse_distributed_section
        from nemo_automodel.recipes._typed_config import RecipeConfig
    except ImportError:
        return node  # releases before 0.7 check as they go
    typed = RecipeConfig(node)
    readers: dict[str, Callable[[], object]] = {name: partial(getattr, typed, name) for name in TYPED}
    readers["distributed"] = lambda: parse_distributed_section(node.distributed.to_dict())
    if cfg.get("peft"):
        readers["peft"] = node.peft.instantiate
    for name, read in readers.items():
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints a traceback, then raises
                read()
        except (TypeError, ValueError, AttributeError, ImportError, KeyError) as e:
            error = "unsupported_scheduler_kwargs" if name == "lr_scheduler" else "config_invalid"
            raise PayloadError(
                error, f"{name}: AutoModel does not take it: {_words(e)}", f"Mend or remove that key of {name}."
            ) from None
    return node


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def output_of(cfg: dict[str, Any]) -> Path:
    """The output directory, absolute, also in the config."""
    output = Path(section(cfg, "checkpoint").get("checkpoint_dir") or "./checkpoints").absolute()
    cfg["checkpoint"]["checkpoint_dir"] = str(output)
    return output
