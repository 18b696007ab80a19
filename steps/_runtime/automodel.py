"""Runs a NeMo AutoModel recipe from a step's config: checks the input, trains, leaves a whole checkpoint behind.

Layout of ``checkpoint.checkpoint_dir`` afterwards:

    epoch_E_step_S/model/consolidated/   the Hugging Face model; not where the adapter alone is the output
    epoch_E_step_S/model/                shards, or the adapter
    LATEST -> epoch_E_step_S             relative
    training.jsonl, validation.jsonl     AutoModel's logs of every step
    metrics.parquet                      the same as a table, see metrics.py
    base/                                the untrained model, where the config names tiny_llama
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from _runtime import (
    automodel_config,
    automodel_state,
    chat_data,
    cpu,
    failures,
    hf_checkpoint,
    index_helpers,
    payload,
    sections,
    token_shards,
    trackers,
)
from _runtime.payload import PayloadError

MODEL_KEY = "model.pretrained_model_name_or_path"
ADAPTER = Path("LATEST/model")
CONSOLIDATED = ADAPTER / "consolidated"


def run(cfg: dict[str, Any], recipe: str, adapter: bool = False) -> None:
    """Train as ``cfg`` says with the recipe class named ``module:Class``; ``_step_recipe`` in the config replaces it.

    ``adapter``: what is made is a LoRA adapter at LATEST/model, not merged into its base.

    Raises:
        PayloadError: input that a person must mend, a loss that is no number, a full disk, too little memory.
    """
    recipe = cfg.pop("_step_recipe", None) or recipe
    output = automodel_config.output_of(cfg)
    with failures.told(output):
        _run(cfg, recipe, output, adapter)


def _run(cfg: dict[str, Any], recipe: str, output: Path, adapter: bool) -> None:
    automodel_config.settle(cfg, adapter)
    automodel_config.go_offline(cfg)
    on_tokens = token_shards.used_by(cfg)
    facts: dict[str, Any] = token_shards.prepare(cfg, output) if on_tokens else {"rows": _use_rows(cfg, output)}
    named = cfg["model"].get("pretrained_model_name_or_path")
    model = _base_model(cfg, output)
    trust = bool(cfg["model"].get("trust_remote_code", False))
    if on_tokens:
        _use_tokens(cfg, str(named), model, trust)
    else:
        _check_template(cfg, model, trust)

    on_cpu = cpu.enable()
    if on_cpu:
        cpu.choose_threads(cpu.refuse_large(model, trust))
        sections.section(cfg, "dist_env")["backend"] = "gloo"
    cls = automodel_state.reporting(_recipe_class(recipe), on_cpu)
    if on_tokens:
        index_helpers.enable()
        token_shards.drop_schedule(cfg)
    facts |= {"load_weights": cfg.pop("load_weights", True) is not False}
    if not facts["load_weights"]:
        automodel_config.start_from_random_weights(cfg)
    board, peft = cfg.pop("tensorboard", None), cfg.get("peft")
    node = automodel_config.parse(cfg)

    first = int(os.environ.get("RANK", "0")) == 0
    done = automodel_state.clean(output) if first else None
    if first and on_tokens:
        token_shards.drop_torn_indices(cfg)
    trainer = cls(node)
    trainer.board = trackers.tensorboard(board, output, done) if first else None
    trainer.setup()
    resumed_from = automodel_state.resumed_from(trainer, output)
    trainer.run_train_validation_loop()
    if trainer.step_scheduler.sigterm_flag and not trainer.saved_last:
        print("stopped by SIGTERM after a checkpoint; the same command continues from it", flush=True)
        raise SystemExit(143)
    if not first:
        return
    base = "untrained tiny_llama" if named == "tiny_llama" else model
    facts |= {"base_model": base, "resumed_from": resumed_from, "seed": cfg.get("seed")}
    facts |= {"peft": {k: v for k, v in peft.items() if k != "_target_"} if peft else None}
    if adapter:
        artifact = output / ADAPTER
        _keep_adapter(artifact, output)
    else:
        artifact = output / CONSOLIDATED
        facts["adapter"] = os.path.relpath(artifact.resolve().parent, output) if peft else None
        _keep_model(artifact, model, trust, merge=bool(peft))
    _report(output, artifact, trainer, facts)


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


def _use_rows(cfg: dict[str, Any], output: Path) -> int | None:
    """Check the training and validation rows and name their files; returns how many rows are trained on."""
    count = None
    for section in [k for k in cfg if k == "dataset" or k.startswith("validation_dataset")]:
        settings, key = sections.section(cfg, section), f"{section}.path_or_dataset_id"
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


def _use_tokens(cfg: dict[str, Any], named: str, model: str, trust: bool) -> None:
    """See that the token shards fit the model, and give the data sets its tokenizer."""
    for section in [k for k in cfg if k.startswith(("dataset", "validation_dataset"))]:
        tokenizer = cfg[section].get("tokenizer")
        if isinstance(tokenizer, dict) and tokenizer.get("pretrained_model_name_or_path") == named:
            tokenizer["pretrained_model_name_or_path"] = model
    config = hf_checkpoint.load_config(model, MODEL_KEY, trust)
    text = config.get_text_config()
    token_shards.fit_model(cfg, text.vocab_size, getattr(text, "max_position_embeddings", None))


def _keep_model(artifact: Path, base: str, trust: bool, merge: bool) -> None:
    """See that the model is whole; of LoRA, merge the adapter beside it into its base."""
    if merge and hf_checkpoint.problem(artifact):
        hf_checkpoint.merge_adapter(base, artifact.parent, artifact, trust)
    wrong = hf_checkpoint.problem(artifact)
    if wrong:
        raise RuntimeError(f"training ended without a whole checkpoint: {wrong}")


def _keep_adapter(artifact: Path, output: Path) -> None:
    """See that the adapter is there; a base that lies beside it is named by a relative path, which moves with it."""
    file = artifact / "adapter_config.json"
    if not file.is_file() or not (artifact / "adapter_model.safetensors").is_file():
        raise RuntimeError(f"training ended without a whole adapter in {artifact}")
    config = json.loads(file.read_text(encoding="utf-8"))
    base = Path(str(config["base_model_name_or_path"]))
    if base.is_absolute() and base.is_relative_to(output):
        config["base_model_name_or_path"] = os.path.relpath(base, artifact.resolve())
        partial = file.with_name(f".{file.name}")
        partial.write_text(json.dumps(config, indent=2), encoding="utf-8")
        partial.replace(file)


def _report(output: Path, artifact: Path, trainer: Any, facts: dict[str, Any]) -> None:
    automodel_state.save_metrics(output)
    log = automodel_state.read_log(output / "training.jsonl")
    payload.result(
        backend="nemo_automodel",
        **automodel_state.parameters(trainer),
        **facts,
        steps=int(trainer.step_scheduler.step),
        epochs=int(trainer.step_scheduler.epoch),
        trained_tokens=sum(int(r["num_label_tokens"]) for r in log),
        seen_tokens=sum(int(r["num_tokens_per_step"]) for r in log),
        first_loss=log[0]["loss"] if log else None,
        final_loss=log[-1]["loss"] if log else None,
        processes=trainer.dist_env.world_size,
        **hf_checkpoint.tokenizer_facts(artifact),
    )
