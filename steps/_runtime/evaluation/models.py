"""Makes the lm-evaluation-harness model that a run scores."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

from _runtime.evaluation.endpoint import headers
from _runtime.evaluation.settings import TOKENIZER, Endpoint, Settings
from _runtime.payload import PayloadError


def build(settings: Settings, work: Path) -> tuple[Any, str, dict[str, Any]]:
    """The model, the name lm-eval knows its class by, and the arguments to record (never the key)."""
    from lm_eval.api.registry import get_model

    if settings.endpoint:
        name, arguments = _endpoint_arguments(settings.endpoint, settings.batch_size)
        return get_model(name)(**arguments, header=headers(settings.endpoint)), name, arguments
    folder = settings.checkpoint or make_untrained(settings.untrained, work / "untrained", settings.seed)
    arguments = {"pretrained": str(folder), "dtype": settings.dtype}
    if settings.adapter:
        arguments["peft"] = str(settings.adapter)
    report = _LoadReport()
    try:
        model = get_model("hf")(**arguments, batch_size=settings.batch_size, device=settings.device)
    except ModuleNotFoundError:
        raise
    except Exception as e:  # transformers, safetensors and tokenizers each raise their own for files that do not fit
        raise PayloadError(
            "bad_hf_checkpoint",
            f"{settings.adapter or folder}: cannot be loaded: {e}",
            "The directory is incomplete, damaged, or of an architecture that this transformers does not know.",
        ) from e
    if missing := report.missing():
        raise PayloadError(
            "bad_hf_checkpoint",
            f"{folder}: {len(missing)} weights are missing or of the wrong shape, among them {missing[0]}.",
            "The weights do not belong to this config.json, or some shards are missing; scores would mean nothing.",
        )
    _refuse_nan(model.model, folder)
    if settings.apply_chat_template and not model.tokenizer.chat_template:
        raise PayloadError(
            "no_chat_template",
            f"{folder}: its tokenizer has no chat template, but apply_chat_template is true.",
            "Set apply_chat_template=false for a base model.",
        )
    return model, "hf", arguments


def _refuse_nan(model: Any, folder: Path) -> None:
    """A diverged model still writes text and picks answers; its scores look like poor ones."""
    import torch

    for name, weight in model.named_parameters():
        if weight.dtype in (torch.float32, torch.float16, torch.bfloat16) and not torch.isfinite(weight).all():
            raise PayloadError(
                "nan_score",
                f"{folder}: {name} holds numbers that are not finite.",
                "Training diverged: take an earlier checkpoint, or train again with a lower learning rate.",
            )


class _LoadReport(logging.Handler):
    """Keeps what transformers logs while it loads: it fills missing weights with random numbers and only says so."""

    def __init__(self) -> None:
        super().__init__()
        self._text = ""
        logging.getLogger("transformers").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._text += record.getMessage() + "\n"

    def missing(self) -> list[str]:
        logging.getLogger("transformers").removeHandler(self)
        return re.findall(r"^(\S+) *\| *(?:MISSING|MISMATCH)", self._text, re.MULTILINE)


def _endpoint_arguments(endpoint: Endpoint, batch_size: int | str) -> tuple[str, dict[str, Any]]:
    arguments = {
        "model": endpoint.model_id,
        "base_url": endpoint.url,
        "num_concurrent": endpoint.parallelism,
        "max_retries": endpoint.max_retries,
        "timeout": endpoint.request_timeout,
        "tokenizer_backend": "huggingface" if endpoint.tokenizer else "none",
        "tokenizer": endpoint.tokenizer,
    }
    if endpoint.type == "chat":
        arguments |= {"tokenizer_backend": "none", "tokenizer": None}  # the server applies its own template
        return "local-chat-completions", arguments
    return "local-completions", arguments | {"batch_size": batch_size}


def make_untrained(config: Path | None, folder: Path, seed: int) -> Path:
    """Give the small model of ``config`` random weights, the same for the same seed."""
    if config is None or not (config / "config.json").is_file():
        raise PayloadError(
            "no_target",
            f"target.untrained: {config}: no config.json there.",
            "Set target.checkpoint=DIR to evaluate a model of your own.",
        )
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config)).save_pretrained(folder)
    for name in [*TOKENIZER, "special_tokens_map.json", "chat_template.jinja", "generation_config.json"]:
        if (config / name).is_file():
            shutil.copyfile(config / name, folder / name)
    return folder
