"""Quantizes a model with ModelOpt in this process: a Megatron checkpoint, and beside it the packed weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _runtime import cpu, hf_checkpoint, modelopt_scripts, payload
from _runtime.optimize import checks, megatron, models, stored
from _runtime.payload import PayloadError

MODEL, OUTPUT, RECIPE, DATA = "hf_model_id", "megatron_save_path", "export_quant_cfg", "calib_dataset"
OUTPUT_MISSING = "Set args.megatron_save_path to the directory for the quantized model."
KNOWN = frozenset(
    {MODEL, OUTPUT, RECIPE, DATA, "calib_size", "calib_seq_length", "trust_remote_code", "tp", "pp", "ep", "etp"}
)
#: The names of quantize.py, and ModelOpt's for them.
RECIPES = {
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "fp8": "FP8_DEFAULT_CFG",
    "fp8_blockwise": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}
NEEDS_CUDA = ("nvfp4",)
QUALITY_ROWS = 128


def check(cfg: Mapping[str, Any]) -> None:
    """Refuse settings that cannot work, for the script as well as for this process.

    Raises:
        PayloadError: naming the settings.
    """
    args = modelopt_scripts.section(cfg, "args")
    named = checks.model(args, MODEL)
    output = checks.given(args, OUTPUT, "output_missing", OUTPUT_MISSING)
    checks.apart(output, OUTPUT, {MODEL: named}, "source_checkpoint_overwritten")
    sizes = {k: modelopt_scripts.whole(args, k, 1) for k in ("tp", "pp")}
    modelopt_scripts.whole(args, "calib_size", 512)
    if modelopt_scripts.backend(cfg) == "script":
        checks.world_divides(cfg, sizes, "world_size_not_divisible")
        return
    recipe = args.get(RECIPE) or "fp8"
    if recipe not in RECIPES:
        raise PayloadError(
            "unsupported_quant_recipe",
            f"args.{RECIPE}={recipe}: backend=inprocess knows {', '.join(RECIPES)}",
            "Take one of them, or backend=script, whose container may know more.",
        )
    checks.one_process(cfg)
    checks.known(args, KNOWN)
    _rows(args)
    modelopt_scripts.whole(args, "calib_seq_length", 512)
    for key in ("tp", "pp", "ep", "etp"):
        if modelopt_scripts.whole(args, key, 1) != 1:
            raise PayloadError(
                "config_invalid", f"args.{key}={args[key]}: backend=inprocess runs in one process", "Set it to 1."
            )


def run(cfg: Mapping[str, Any]) -> None:
    """Quantize as ``args`` say; ``args.megatron_save_path`` gets the Megatron checkpoint and ``hf/``.

    Raises:
        PayloadError: input that a person must mend.
    """
    args = modelopt_scripts.section(cfg, "args")
    recipe = str(args.get(RECIPE) or "fp8")
    if recipe in NEEDS_CUDA and not cpu.has_cuda():
        raise PayloadError(
            "unsupported_quant_recipe",
            f"args.{RECIPE}={recipe}: ModelOpt emulates four-bit floating point on CUDA devices only",
            "Run it where CUDA is available, or try the step out with fp8 or int8_sq.",
        )
    output, seed = Path(args[OUTPUT]).absolute(), int(cfg.get("seed") or 0)
    trust = bool(args.get("trust_remote_code"))
    megatron.enable()
    loaded = models.load(str(args[MODEL]), MODEL, output / "base", seed, trust)
    _check_sizes(recipe, loaded.model)
    rows = _rows(args)
    batches = models.blocks(rows, loaded, modelopt_scripts.whole(args, "calib_seq_length", 512))
    if len(rows) < QUALITY_ROWS:
        print(f"calibrated on {len(rows)} rows: says that it works, nothing about quality", flush=True)
    full = models.logits(loaded.model, batches[0])
    loss_before = models.loss(loaded.model, batches)
    parameters = loaded.model.num_parameters()  # before packing, which puts several weights into one element
    payload.progress(1, 3, loss=loss_before)

    with models.saving(output):
        found = _as_megatron(recipe, loaded, batches, full, output, seed, trust)
        payload.progress(2, 3, logits_relative_error=found["megatron_logits_relative_error"])
        found |= _as_hugging_face(recipe, loaded, batches, full, output / "hf")
        payload.progress(3, 3, loss=found["loss_after"], logits_relative_error=found["logits_relative_error"])
    payload.result(
        backend="inprocess",
        recipe=recipe,
        base_model="untrained tiny_llama" if loaded.scratch else loaded.path,
        parameters=parameters,
        calibration_rows=len(rows),
        calibration_tokens=sum(b.numel() for b in batches),
        quality_can_be_judged=len(rows) >= QUALITY_ROWS and not loaded.scratch,
        loss_before=loss_before,
        huggingface="hf",
        seed=seed,
        **found,
        **hf_checkpoint.tokenizer_facts(output / "hf"),
    )


def _rows(args: Mapping[str, Any]) -> list[dict[str, Any]]:
    return models.rows(args.get(DATA), DATA, modelopt_scripts.whole(args, "calib_size", 512))


def _check_sizes(recipe: str, model: Any) -> None:
    """Refuse matrices that a recipe of blocks or groups cannot take, before they fail in the middle.

    Raises:
        PayloadError: naming the matrix.
    """
    import torch

    head = model.get_output_embeddings()  # stays as it is
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or module is head:
            continue
        rows, columns = module.weight.shape
        grouped, single = "awq" in recipe, rows <= stored.BLOCK and columns <= stored.BLOCK
        if (grouped and columns % stored.BLOCK) or (recipe == "fp8_blockwise" and single):
            need = f"columns in groups of {stored.BLOCK}" if grouped else f"more than one block of {stored.BLOCK}"
            raise PayloadError(
                "unsupported_quant_recipe",
                f"args.{RECIPE}={recipe}: needs {need}; {name} of args.{MODEL} is {rows} x {columns}",
                "Take fp8 or int8_sq.",
            )


def _as_megatron(
    recipe: str, loaded: models.Loaded, batches: list[Any], full: Any, output: Path, seed: int, trust: bool
) -> dict[str, Any]:
    """Quantize Megatron's model and save it with the state of ModelOpt, as the container's script does."""
    with megatron.imported(loaded.path, seed, trust) as model:
        quantizers = _quantize(model, recipe, lambda m: [megatron.logits(m, b) for b in batches])
        found = megatron.logits(model, batches[0])[..., : full.shape[-1]]
        megatron.save(model, output, loaded.path, trust=trust)
    return {"quantizers": quantizers, "megatron_logits_relative_error": models.relative_error(found, full)}


def _as_hugging_face(recipe: str, loaded: models.Loaded, batches: list[Any], full: Any, target: Path) -> dict[str, Any]:
    """Quantize the model itself, export its weights in the small format, and read them back."""
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    plain = copy.deepcopy(loaded.model)
    _quantize(loaded.model, recipe, lambda m: [models.logits(m, b) for b in batches])
    found = {
        "loss_after": models.loss(loaded.model, batches),
        "logits_relative_error": models.relative_error(models.logits(loaded.model, batches[0]), full),
    }
    with torch.inference_mode():
        export_hf_checkpoint(loaded.model, export_dir=target)
    loaded.tokenizer.save_pretrained(target, save_jinja_files=False)
    missing = plain.load_state_dict(stored.weights(target), strict=False).missing_keys
    tied = set(getattr(plain, "all_tied_weights_keys", None) or ())
    if set(missing) - tied:
        raise RuntimeError(f"{target}: exported without {', '.join(sorted(set(missing) - tied)[:3])}")
    return {
        **found,
        "stored_logits_relative_error": models.relative_error(models.logits(plain, batches[0]), full),
        "stored_formats": stored.formats(target),
    }


def _quantize(model: Any, recipe: str, forward: Any) -> int:
    """Insert and calibrate quantizers; returns how many of them are at work."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import TensorQuantizer

    mtq.quantize(model, copy.deepcopy(getattr(mtq, RECIPES[recipe])), forward)
    return sum(isinstance(m, TensorQuantizer) and m.is_enabled for m in model.modules())
