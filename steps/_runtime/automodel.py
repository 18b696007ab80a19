"""Runs a NeMo AutoModel recipe from a step's config: checks the input, trains, leaves a whole checkpoint behind.

Layout of ``checkpoint.checkpoint_dir`` afterwards, for full fine-tuning and for LoRA alike:

    epoch_E_step_S/model/consolidated/   the Hugging Face model
    epoch_E_step_S/model/                shards, or the adapter
    LATEST -> epoch_E_step_S             relative
    training.jsonl, validation.jsonl     AutoModel's logs of every step
    metrics.parquet                      the same as a table, see metrics.py
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from _runtime import automodel_state, chat_data, cpu, hf_checkpoint, payload
from _runtime.payload import PayloadError

MODEL_KEY = "model.pretrained_model_name_or_path"
CONSOLIDATED = Path("LATEST/model/consolidated")
LORA = {
    "_target_": "nemo_automodel.components._peft.lora.PeftConfig",
    "exclude_modules": ["lm_head"],  # of all linear layers; the output layer often shares the embedding's weights
    "dim": 16,
    "alpha": 32,
    "dropout": 0.0,
}


def run(cfg: dict[str, Any], recipe: str) -> None:
    """Train as ``cfg`` says with the recipe class named ``module:Class``; ``_step_recipe`` in the config replaces it.

    Raises:
        PayloadError: input that a person must mend, or a loss that is no number.
    """
    recipe = cfg.pop("_step_recipe", None) or recipe
    output = Path(_section(cfg, "checkpoint").get("checkpoint_dir") or "./checkpoints").absolute()
    cfg["checkpoint"]["checkpoint_dir"] = str(output)
    _check_settings(cfg)
    _go_offline(cfg)
    count = _use_data(cfg, output)
    scratch = cfg["model"].get("pretrained_model_name_or_path") == "tiny_llama"
    model = _base_model(cfg, output)
    trust = bool(cfg["model"].get("trust_remote_code", False))
    _check_template(cfg, model, trust)

    on_cpu = cpu.enable()
    if on_cpu:
        cpu.choose_threads(cpu.refuse_large(model, trust))
        _section(cfg, "dist_env")["backend"] = "gloo"
    cls = automodel_state.reporting(_recipe_class(recipe), on_cpu)
    from nemo_automodel.components.config.loader import ConfigNode

    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        automodel_state.clean(output)
    trainer = cls(ConfigNode(cfg))
    trainer.setup()
    resumed_from = automodel_state.resumed_from(trainer, output)
    trainer.run_train_validation_loop()
    if trainer.step_scheduler.sigterm_flag and not trainer.saved_last:
        print("stopped by SIGTERM after a checkpoint; the same command continues from it", flush=True)
        raise SystemExit(143)
    if first:
        _finish(cfg, output, model, trust, trainer, resumed_from, count, scratch)


def _section(cfg: dict[str, Any], name: str) -> dict[str, Any]:
    value = cfg.setdefault(name, {})
    if value is None:
        value = cfg[name] = {}
    if not isinstance(value, dict):
        raise PayloadError("config_invalid", f"{name}={value!r}: must be a mapping", f"Write keys below `{name}:`.")
    return value


def _check_settings(cfg: dict[str, Any]) -> None:
    """Bring settings that AutoModel would misread or ignore into the form it reads."""
    checkpoint = _section(cfg, "checkpoint")
    for name in ("model", "dataset", "step_scheduler"):
        _section(cfg, name)
    if checkpoint.get("enabled") is False or str(checkpoint.get("save_consolidated")).lower() == "false":
        raise PayloadError(
            "checkpoint_disabled",
            "checkpoint.enabled and checkpoint.save_consolidated must be on: the step's output is the saved model",
            "Set checkpoint.enabled=true and checkpoint.save_consolidated=final.",
        )
    peft = cfg.get("peft")
    if peft in (None, "null", "none", ""):
        cfg.pop("peft", None)
    elif peft == "lora":
        cfg["peft"] = dict(LORA)
    elif isinstance(peft, dict):
        cfg["peft"] = {"_target_": LORA["_target_"], **peft}
    else:
        raise PayloadError("config_invalid", f"peft={peft!r}: must be lora, null or a mapping", "Set peft=lora.")
    warmup, steps = (cfg.get("lr_scheduler") or {}).get("lr_warmup_steps"), cfg["step_scheduler"].get("max_steps")
    if warmup and steps and int(warmup) >= int(steps):
        raise PayloadError(
            "config_invalid",
            f"lr_scheduler.lr_warmup_steps={warmup}: not less than step_scheduler.max_steps={steps}",
            "Lower it, or remove it: a tenth of the steps is the default.",
        )
    if isinstance(cfg.get("rng"), dict) and "seed" in cfg["rng"]:
        cfg.setdefault("seed", cfg["rng"]["seed"])  # AutoModel reads the top-level key only
    if not (cfg.get("wandb") or {}).get("project"):
        cfg.pop("wandb", None)  # without a project it would ask for a login


def _go_offline(cfg: dict[str, Any]) -> None:
    """Send nothing anywhere, and do not wait for a hub that nothing is asked of."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    model, data = cfg["model"].get("pretrained_model_name_or_path"), cfg["dataset"].get("path_or_dataset_id")
    model_here = model == "tiny_llama" or hf_checkpoint.is_local(str(model))
    if model_here and not (isinstance(data, str) and chat_data.is_hub_id(data)):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _base_model(cfg: dict[str, Any], output: Path) -> str:
    """Settle on the base model; ``tiny_llama`` is an untrained one, made below the output directory."""
    model = cfg["model"].get("pretrained_model_name_or_path")
    if not chat_data.given(model):
        raise PayloadError("model_missing", f"{MODEL_KEY} is not set", hf_checkpoint.GIVE_MODEL)
    model = str(model)
    if model == "tiny_llama":
        from _runtime import tiny_model

        made = output / "base"
        if hf_checkpoint.problem(made):
            partial = output / f".base.{os.getpid()}"  # every rank makes one; whose rename comes last does not matter
            tiny_model.save(partial, seed=int(cfg.get("seed", 0)))
            hf_checkpoint.put(partial, made)
        model = str(made)
    hf_checkpoint.check_base(model, MODEL_KEY)
    cfg["model"]["pretrained_model_name_or_path"] = model
    return model


def _use_data(cfg: dict[str, Any], output: Path) -> int | None:
    """Check the training and validation rows and name their files; returns how many rows are trained on."""
    count = None
    for section in [k for k in cfg if k == "dataset" or k.startswith("validation_dataset")]:
        settings, key = _section(cfg, section), f"{section}.path_or_dataset_id"
        value = settings.get("path_or_dataset_id")
        if not chat_data.given(value):
            if section == "dataset":
                raise PayloadError("dataset_missing", f"{key} is not set", chat_data.MISSING)
            cfg.pop(section)
            continue
        found = chat_data.find(value, key)
        if isinstance(found, str):
            continue
        rows = chat_data.check(found, key)
        count = rows if section == "dataset" else count
        if found[0].suffix != ".parquet":
            files = chat_data.readable(found, output / "data" / section)
            settings["path_or_dataset_id"] = files[0] if len(files) == 1 else files
    if not any(k.startswith("validation_dataset") for k in cfg):
        cfg.pop("validation_dataloader", None)
        cfg["step_scheduler"]["val_every_steps"] = None
    return count


def _check_template(cfg: dict[str, Any], model: str, trust: bool) -> None:
    tokenizer = hf_checkpoint.load_tokenizer(model, MODEL_KEY, trust)
    if not hf_checkpoint.template_text(tokenizer) and not cfg["dataset"].get("chat_template"):
        raise PayloadError(
            "chat_template_missing",
            f"{MODEL_KEY}={model}: its tokenizer has no chat template",
            "Use the instruct variant of the model, or set dataset.chat_template to a Jinja template or its file.",
        )


def _recipe_class(target: str) -> type:
    module, _, name = target.partition(":") if ":" in target else target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise PayloadError(
            "recipe_missing", f"_step_recipe={target}: {e}", "Name it module:Class, importable here."
        ) from None
    return found


def _finish(
    cfg: dict[str, Any],
    output: Path,
    model: str,
    trust: bool,
    trainer: Any,
    resumed_from: int | None,
    rows: int | None,
    scratch: bool,
) -> None:
    """See that the artifact is whole, and record what was done."""
    artifact = output / CONSOLIDATED
    if "peft" in cfg and hf_checkpoint.problem(artifact):
        hf_checkpoint.merge_adapter(model, artifact.parent, artifact, trust)
    wrong = hf_checkpoint.problem(artifact)
    if wrong:
        raise RuntimeError(f"training ended without a whole checkpoint: {wrong}")
    automodel_state.save_metrics(output)
    log = automodel_state.read_log(output / "training.jsonl")
    payload.result(
        **automodel_state.parameters(trainer),
        rows=rows,
        steps=int(trainer.step_scheduler.step),
        epochs=int(trainer.step_scheduler.epoch),
        trained_tokens=sum(int(r["num_label_tokens"]) for r in log),
        seen_tokens=sum(int(r["num_tokens_per_step"]) for r in log),
        first_loss=log[0]["loss"] if log else None,
        final_loss=log[-1]["loss"] if log else None,
        peft={k: v for k, v in cfg["peft"].items() if k != "_target_"} if "peft" in cfg else None,
        adapter=os.path.relpath(artifact.resolve().parent, output) if "peft" in cfg else None,
        base_model="untrained tiny_llama" if scratch else model,
        resumed_from=resumed_from,
        seed=cfg.get("seed"),
        processes=trainer.dist_env.world_size,
        **hf_checkpoint.tokenizer_facts(artifact),
    )
