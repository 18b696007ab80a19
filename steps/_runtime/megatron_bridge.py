"""Runs Megatron-Bridge from a step's config: checks the input, trains, leaves a whole checkpoint behind.

Layout of ``checkpoint.save`` afterwards:

    iter_NNNNNNN/                        checkpoints, whole models or adapters
    latest_checkpointed_iteration.txt    which one loaders take; latest_train_state.pt beside it
    metrics.parquet                      what every iteration measured, see metrics.py
    base/                                only with tiny_llama: the untrained model
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from _runtime import (
    cpu,
    cpu_megatron,
    failures,
    megatron_config,
    megatron_data,
    megatron_model,
    megatron_start,
    packed_attention,
    payload,
)
from _runtime.megatron_data import Data
from _runtime.megatron_report import Report, not_finite
from _runtime.megatron_start import Start
from _runtime.payload import PayloadError
from _runtime.sections import section

TRAIN_PACKS = "dataset.packed_sequence_specs.packed_train_data_path"
VALIDATION_PACKS = "dataset.packed_sequence_specs.packed_val_data_path"
INDEX_CACHE = ".index_cache"


def run(cfg: dict[str, Any], recipe: str, packed: bool, adapter: bool) -> None:
    """Train as ``cfg`` says; ``recipe._target_`` in it replaces ``recipe``.

    Args:
        cfg: the compiled config.
        recipe: ``module.function`` of a recipe, which makes a ConfigContainer.
        packed: fine-tune on packed sequences; else train on token shards.
        adapter: leave an adapter; else a whole model.

    Raises:
        PayloadError: input that a person must mend, or a loss that is no number.
    """
    checkpoint = section(cfg, "checkpoint")
    save = Path(checkpoint.get("save") or "./checkpoints").expanduser().absolute()
    checkpoint["save"] = str(save)
    method = _method(cfg, adapter)
    _check_logger(cfg)
    data = _find_data(cfg, packed)
    first = int(os.environ.get("RANK", "0")) == 0
    start = megatron_start.settle(cfg, save, adapter, must_have_weights=packed)
    resumed = megatron_start.last_whole(save) if start.resume == save else None
    if start.resume == save and resumed is None:  # a kill before the first checkpoint was whole
        start = Start(None, start.pretrained, start.hf, start.scratch)
    megatron_start.refuse_finished(save, resumed)
    if first:
        save.mkdir(parents=True, exist_ok=True)
        megatron_start.clean(save, resumed)
        megatron_start.whole(save, resumed)
    _go_offline(start)

    on_cpu = cpu_megatron.enable() and packed_attention.enable()
    container = megatron_config.from_recipe(cfg, recipe, adapter)
    megatron_config.check_roots(container, cfg)
    if on_cpu:
        megatron_model.settings_of_cpu(container)
    tokenizer = megatron_model.describe(container, cfg, start, save)
    megatron_config.merge(container.model, section(cfg, "model"), "model")
    _fill(container, cfg, start, save, data, packed, adapter)
    if adapter and method is not None:
        megatron_config.add_adapter(container, cfg, method)
    elif not adapter:
        container.peft = None
    _check_fit(container, cfg, data, tokenizer)
    if on_cpu:
        megatron_model.for_cpu(container.model)
    if (cfg.get("checkpoint_patch") or {}).get("use_spawn_queue_for_torch_dist"):
        if hasattr(container.checkpoint, "async_write_results_mp_mode"):
            container.checkpoint.async_write_results_mp_mode = "spawn"
        else:
            print("checkpoint_patch: this Megatron-Bridge has no setting for the queue of its writers", flush=True)

    report = Report(save, _batch_tokens(container), int(container.train.train_iters), resumed)
    _train(container, report, finetune=packed)
    if first:
        _finish(container, report, start, resumed, on_cpu)


def _method(cfg: dict[str, Any], adapter: bool) -> str | None:
    method = megatron_config.scheme(cfg)
    if method and not adapter:
        raise PayloadError(
            "adapter_not_a_checkpoint",
            f"peft={method}: trains an adapter, and this step leaves whole models",
            "Set peft=null, or train the adapter with peft/megatron_bridge.",
        )
    return method or ("lora" if adapter else None)


def _check_logger(cfg: dict[str, Any]) -> None:
    """Send nothing anywhere unless the config turns it on, and say so early where what it needs is absent."""
    logger = section(cfg, "logger")
    logger.setdefault("tensorboard_dir", None)  # recipes write it below the directory where the job was started
    needs = {"wandb_project": "wandb", "mlflow_experiment": "mlflow", "comet_project": "comet_ml"}
    for key, package in {**needs, "tensorboard_dir": "tensorboard"}.items():
        if logger.get(key) and importlib.util.find_spec(package) is None:
            raise PayloadError(
                "package_missing",
                f"logger.{key}={logger[key]}: the package {package} is not installed here",
                f"Install {package} in this environment, or set logger.{key}=null.",
            )


def _find_data(cfg: dict[str, Any], packed: bool) -> Data | None:
    settings = section(cfg, "dataset")
    if not packed:
        if any(settings.get(k) is not None for k in ("blend", "blend_per_split", "data_path")):
            return None  # the library's own keys, as its users write them
        return megatron_data.tokens(settings.get("data_paths"), "dataset.data_paths")
    specs = settings.setdefault("packed_sequence_specs", {}) or {}
    data = megatron_data.packs(specs.get("packed_train_data_path"), TRAIN_PACKS)
    if specs.get("packed_val_data_path"):
        megatron_data.packs(specs["packed_val_data_path"], VALIDATION_PACKS)
    batch = section(cfg, "train").get("global_batch_size")
    if isinstance(batch, int) and data.packs is not None and data.packs < batch:
        raise PayloadError(
            "bad_parallel_batch_shape",
            f"train.global_batch_size={batch}, but {TRAIN_PACKS} has {data.packs} packs",
            "Lower train.global_batch_size, or pack more data.",
        )
    return data


def _go_offline(start: Start) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if start.scratch:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _fill(
    container: Any, cfg: dict[str, Any], start: Start, save: Path, data: Data | None, packed: bool, adapter: bool
) -> None:
    """Merge the sections into the container."""
    megatron_config.apply(container, cfg, leave=("dataset", "peft", "checkpoint", "model"))
    given = {k: v for k, v in section(cfg, "checkpoint").items() if k not in ("load", "pretrained_checkpoint")}
    megatron_config.merge(container.checkpoint, given, "checkpoint")
    container.checkpoint.load = str(start.resume) if start.resume else None
    base = save / "base" if adapter and start.scratch else start.pretrained
    container.checkpoint.pretrained_checkpoint = str(base) if base else None
    if start.resume:
        container.checkpoint.finetune = False  # else its optimizer and its place in the data would be left behind
    if "exit_signal_handler" not in section(cfg, "train"):
        container.train.exit_signal_handler = True  # SIGTERM: save and stop
    settings = section(cfg, "dataset")
    if packed:
        container.dataset = megatron_data.packed_dataset(settings, container.dataset, save / INDEX_CACHE)
        if not cpu.has_cuda():
            container.dataset.num_workers, container.dataset.pin_memory = 0, False
            container.dataset.persistent_workers = False
        container.dataset.tokenizer = None  # no field of this class, but what the checkpoint's tokenizer is taken from
    else:
        blends = data or Data([], blends=None)
        megatron_data.token_dataset(settings, container.dataset, blends, save / INDEX_CACHE)


def _check_fit(container: Any, cfg: dict[str, Any], data: Data | None, tokenizer: str | None) -> None:
    """Refuse sizes that do not divide, and data that is not the model's."""
    model, train = container.model, container.train
    world = int(os.environ.get("WORLD_SIZE", "1"))
    sizes = {
        name: int(getattr(model, f"{name}_parallel_size", 1) or 1)
        for name in ("tensor_model", "pipeline_model", "context")
    }
    of_a_model = sizes["tensor_model"] * sizes["pipeline_model"] * sizes["context"]
    if world % of_a_model:
        told = ", ".join(f"model.{k}_parallel_size={v}" for k, v in sizes.items())
        raise PayloadError(
            "bad_parallel_batch_shape",
            f"{world} processes do not divide by {of_a_model} ({told})",
            "Start a multiple of that many processes, or lower the parallel sizes.",
        )
    copies, micro, batch = world // of_a_model, train.micro_batch_size, train.global_batch_size
    if batch % (micro * copies):
        raise PayloadError(
            "bad_parallel_batch_shape",
            f"train.global_batch_size={batch} is no multiple of train.micro_batch_size={micro} times {copies} "
            "data-parallel copies",
            f"Set train.global_batch_size to a multiple of {micro * copies}.",
        )
    if data is None:
        return
    lengths = {"model.seq_length": model.seq_length, "dataset.seq_length": container.dataset.seq_length}
    if data.packs is not None:
        specs = section(cfg, "dataset").get("packed_sequence_specs") or {}
        lengths["dataset.packed_sequence_specs.packed_sequence_size"] = specs.get("packed_sequence_size")
    megatron_data.check_fit(data, lengths, model.vocab_size, tokenizer)


def _batch_tokens(container: Any) -> int:
    """Tokens of one iteration; a pack counts as full."""
    return int(container.train.global_batch_size) * int(container.model.seq_length)


def _train(container: Any, report: Report, finetune: bool) -> None:
    from megatron.bridge.training.gpt_step import forward_step

    if finetune and (container.checkpoint.load or container.checkpoint.pretrained_checkpoint):
        from megatron.bridge.training.finetune import finetune as entry
    else:  # weights that come from Hugging Face are no checkpoint to `finetune`, which then refuses
        from megatron.bridge.training.pretrain import pretrain as entry
    _join_alone()
    # It would show a traceback of every end, a signal's and a told one's too; what is not told below is raised on.
    logging.getLogger("megatron.bridge.training.pretrain").setLevel(logging.CRITICAL)
    try:
        entry(container, forward_step, callbacks=report.as_callback())
    except SystemExit:
        report.keep()
        if report.step < report.total:
            print("stopped by a signal after a checkpoint; the same command continues from it", flush=True)
            raise SystemExit(143) from None
    except PayloadError:
        report.keep()
        raise
    except Exception as e:
        told = _told(e, report)
        if told is None:
            raise
        report.keep()
        raise told from e


def _join_alone() -> None:
    """Let a single process without CUDA be its own group, so that no port of this machine can be taken twice."""
    import torch

    if "RANK" not in os.environ and not cpu.has_cuda() and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def _told(error: BaseException, report: Report) -> PayloadError | None:
    """What a failure of the library means for the person who started the run, where that is known."""
    chain = [error]
    while (under := chain[-1].__cause__ or chain[-1].__context__) and under not in chain:
        chain.append(under)
    text = " ".join(str(e) for e in chain)
    if "found NaN in" in text or "found Inf in" in text:
        return not_finite(f"iteration {report.step + 1}: " + str(error).rpartition("message='")[2][:150])
    return failures.clear(
        error,
        report.save,
        disk_full="Free space, or set checkpoint.most_recent_k to keep fewer checkpoints, and start again.",
        oom="Set train.micro_batch_size=1, recompute activations, or raise the tensor or pipeline parallel size.",
    )


def _finish(container: Any, report: Report, start: Start, resumed: int | None, on_cpu: bool) -> None:
    """See that the artifact is whole, and record what was done."""
    save = report.save
    last = megatron_start.tracked(save)
    if last is None or last < report.step or last != megatron_start.last_whole(save):
        raise RuntimeError(f"training ended without a whole checkpoint: {save} has iteration {last}")
    report.keep()
    shutil.rmtree(save / INDEX_CACHE, ignore_errors=True)
    megatron_start.done(save)
    of = [report.records[step] for step in sorted(report.records)]
    losses = [r["loss"] for r in of if "loss" in r]
    validation = [r["validation_loss"] for r in of if "validation_loss" in r]
    adapter = container.peft
    payload.result(
        parameters=report.parameters,
        trained_parameters=report.trained,
        steps=report.step,
        iteration=last,
        first_loss=losses[0] if losses else None,
        final_loss=losses[-1] if losses else None,
        validation_loss=validation[-1] if validation else None,
        sequence_length=int(container.model.seq_length),
        peft={k: getattr(adapter, k) for k in ("dim", "alpha", "dropout", "target_modules")} if adapter else None,
        base_model=megatron_model.base_name(container, start),
        backend="megatron_bridge on gloo" if on_cpu else "megatron_bridge",
        resumed_from=resumed,
        seed=container.rng.seed,
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        **megatron_model.tokenizer_facts(megatron_start.iteration(save) / "tokenizer"),
    )
