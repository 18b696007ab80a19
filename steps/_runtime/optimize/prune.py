"""Prunes a dense Hugging Face model in this process, to a budget of parameters or to an exact shape."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _runtime import hf_checkpoint, modelopt_scripts, payload
from _runtime.optimize import checks, minitron, models, shapes
from _runtime.optimize.shapes import Shape
from _runtime.payload import PayloadError

MODEL, OUTPUT, DATA = "hf_model_name_or_path", "output_hf_path", "calib_dataset_name"
OUTPUT_MISSING = "Set args.output_hf_path to the directory for the smaller model."
KNOWN = frozenset(
    {
        *(MODEL, OUTPUT, DATA, "trust_remote_code", "calib_num_samples", "seq_length", "top_k", "ss_channel_divisor"),
        *("prune_target_params", "prune_export_config", "hparams_to_skip", "max_width_pruning", "max_depth_pruning"),
    }
)


def check(cfg: Mapping[str, Any]) -> None:
    """Refuse settings that contradict each other, for the script as well as for this process.

    Raises:
        PayloadError: naming the settings.
    """
    args = modelopt_scripts.section(cfg, "args")
    named = checks.model(args, MODEL)
    output = checks.given(args, OUTPUT, "output_missing", OUTPUT_MISSING)
    checks.apart(output, OUTPUT, {MODEL: named}, "output_path_overlaps_input")
    target, shape = args.get("prune_target_params"), args.get("prune_export_config")
    if target is not None and shape is not None:
        raise PayloadError(
            "target_and_export_config_both_set",
            f"args.prune_target_params={target} and args.prune_export_config={shape} are both set",
            "Set one of them to null: a budget is searched for, a shape is taken as it is.",
        )
    others = ("prune_target_active_params", "prune_target_memory_mb")
    if target is None and shape is None and all(args.get(k) is None for k in others):
        raise PayloadError(
            "target_missing", "neither args.prune_target_params nor args.prune_export_config is set", "Set one of them."
        )
    if target is not None and not (_number(target) and float(target) > 0):
        raise PayloadError(
            "config_invalid", f"args.prune_target_params={target!r}: must be a number above zero", "Write 6e9."
        )
    if shape is not None and not (isinstance(shape, dict) and shape):
        raise PayloadError(
            "config_invalid", f"args.prune_export_config={shape!r}: must be a mapping", "Write {num_layers: 32}."
        )
    if modelopt_scripts.backend(cfg) == "script":
        _check_stages(cfg, args, shape)
        return
    checks.one_process(cfg)
    checks.known(args, KNOWN)
    _rows(args)
    _skipped(args)
    for key in ("max_width_pruning", "max_depth_pruning"):
        _share(args, key, 0.0)
    for key in ("seq_length", "ss_channel_divisor", "top_k"):
        modelopt_scripts.whole(args, key, 1)
    for name, size in (shape or {}).items():
        _check_size(name, size)


def _check_stages(cfg: Mapping[str, Any], args: Mapping[str, Any], shape: Mapping[str, Any] | None) -> None:
    stages = modelopt_scripts.whole(args, "pp_size", 1)
    checks.world_divides(cfg, {"pp_size": stages}, "invalid_parallel_divisibility")
    layers = (shape or {}).get("num_layers")
    uneven = any(args.get(f"num_layers_in_{end}_pipeline_stage") for end in ("first", "last"))
    if isinstance(layers, int) and layers % stages and not uneven:
        raise PayloadError(
            "invalid_parallel_divisibility",
            f"args.prune_export_config.num_layers={layers}: not a multiple of args.pp_size={stages}",
            "Change one, or set args.num_layers_in_first_pipeline_stage or args.num_layers_in_last_pipeline_stage.",
        )


def run(cfg: Mapping[str, Any]) -> None:
    """Prune as ``args`` say and leave a Hugging Face model in ``args.output_hf_path``.

    Raises:
        PayloadError: input that a person must mend.
    """
    args = modelopt_scripts.section(cfg, "args")
    output = Path(args[OUTPUT]).absolute()
    seed = int(cfg.get("seed") or 0)
    with tempfile.TemporaryDirectory() as scratch:
        loaded = models.load(str(args[MODEL]), MODEL, Path(scratch), seed, trust=bool(args.get("trust_remote_code")))
        shape = shapes.of(loaded.model.config)
        rows = _rows(args)
        batches = models.blocks(rows, loaded, modelopt_scripts.whole(args, "seq_length", 4096))
        importance = minitron.measure(loaded.model, batches)
        print(f"layers by importance: {minitron.kept_layers(importance, shape.num_layers)}", flush=True)
        if args.get("prune_export_config") is not None:
            chosen = exact(args["prune_export_config"], shape)
            tried = 1
        else:
            candidates = _candidates(loaded.model, shape, args)
            tried = len(candidates)
            chosen = _best(loaded.model, importance, candidates, batches)
        small = minitron.cut(loaded.model, importance, chosen)
        before, after = models.loss(loaded.model, batches), models.loss(small, batches)
        with models.saving(output):
            small.to("cpu", loaded.dtype).save_pretrained(output)
            loaded.tokenizer.save_pretrained(output, save_jinja_files=False)
    if wrong := hf_checkpoint.problem(output):
        raise RuntimeError(f"pruning ended without a whole checkpoint: {wrong}")
    payload.result(
        backend="inprocess",
        method="Minitron importance on the Hugging Face model",
        base_model="untrained tiny_llama" if loaded.scratch else loaded.path,
        parameters_before=shapes.parameters(loaded.model, shape),
        parameters=small.num_parameters(),
        target_parameters=args.get("prune_target_params"),
        shape_before=shape.chosen(),
        shape=chosen.chosen(),
        kept_layers=minitron.kept_layers(importance, chosen.num_layers),
        layer_importance=importance.layers,
        candidates_scored=tried,
        loss_before=before,
        loss_after=after,
        calibration_rows=len(rows),
        seed=seed,
        **hf_checkpoint.tokenizer_facts(output),
    )


def _rows(args: Mapping[str, Any]) -> list[dict[str, Any]]:
    return models.rows(args.get(DATA), DATA, modelopt_scripts.whole(args, "calib_num_samples", 1024))


def _check_size(name: str, size: Any) -> None:
    key = "args.prune_export_config"
    if name not in shapes.HPARAMS:
        raise PayloadError(
            "config_invalid", f"{key}: has the key {name}; its keys are {', '.join(shapes.HPARAMS)}", "Mend the key."
        )
    modelopt_scripts.whole({f"{key}.{name}": size}, f"{key}.{name}", 1)


def exact(sizes: Mapping[str, Any], shape: Shape) -> Shape:
    """The shape that ``args.prune_export_config`` asks for.

    Raises:
        PayloadError: a size that is larger than the model's, or breaks its groups.
    """
    key = "args.prune_export_config"
    for name, size in sizes.items():
        if int(size) > getattr(shape, name):
            raise PayloadError(
                "target_larger_than_model",
                f"{key}.{name}={size}: the model has {getattr(shape, name)}",
                "Pruning makes models smaller; lower it.",
            )
    made = shape.smaller({k: int(v) for k, v in sizes.items()})
    if made.num_attention_heads % made.groups:
        raise PayloadError(
            "invalid_parallel_divisibility",
            f"{key}.num_attention_heads={made.num_attention_heads}: not a multiple of the model's {made.groups} "
            "key-value heads",
            "Give a multiple.",
        )
    if made.hidden_size % made.num_attention_heads:
        raise PayloadError(
            "invalid_parallel_divisibility",
            f"{key}: hidden_size={made.hidden_size} is not a multiple of num_attention_heads="
            f"{made.num_attention_heads}, and transformers loads no such model",
            "Change one of them.",
        )
    return made


def _candidates(model: Any, shape: Shape, args: Mapping[str, Any]) -> list[Shape]:
    """Shapes within the budget, the largest first: the grid that Minitron searches.

    Raises:
        PayloadError: a budget that the model is within already, or that no shape of the grid reaches.
    """
    target = float(args["prune_target_params"])
    size = shapes.parameters(model, shape)
    if target >= size:
        raise PayloadError(
            "target_larger_than_model",
            f"args.prune_target_params={target:g}: the model has {size:,} parameters",
            "Set a budget below that.",
        )
    width, depth = (_share(args, k, d) for k, d in (("max_width_pruning", 0.4), ("max_depth_pruning", 0.2)))
    step = modelopt_scripts.whole(args, "ss_channel_divisor", 16)
    per_group = shape.num_attention_heads // shape.groups
    head_step = 1 if per_group == 1 else shape.groups
    full = shape.chosen()
    choices = {
        "hidden_size": _sizes(shape.hidden_size, width, step),
        "ffn_hidden_size": _sizes(shape.ffn_hidden_size, width, step),
        "num_attention_heads": _sizes(shape.num_attention_heads, width, head_step),
        "num_layers": _sizes(shape.num_layers, depth, 1),
    }
    for name in _skipped(args):
        choices[name] = [full[name]]
    grid = [shape.smaller(dict(zip(choices, sizes, strict=True))) for sizes in itertools.product(*choices.values())]
    grid = [s for s in grid if s.hidden_size % s.num_attention_heads == 0]  # transformers loads no others
    sized = sorted(((shapes.parameters(model, s), n, s) for n, s in enumerate(grid)), key=lambda c: (-c[0], c[1]))
    fitting = [s for count, _, s in sized if count <= target]
    if not fitting:
        raise PayloadError(
            "target_unreachable",
            f"args.prune_target_params={target:g}: the smallest shape of the search has {sized[-1][0]:,} parameters",
            "Raise it, or raise args.max_width_pruning or args.max_depth_pruning.",
        )
    return fitting[: modelopt_scripts.whole(args, "top_k", 10)]


def _best(model: Any, importance: minitron.Importance, candidates: list[Shape], batches: list[Any]) -> Shape:
    """The candidate whose cut model has the lowest loss."""
    scored = []
    for n, candidate in enumerate(candidates, 1):
        small = minitron.cut(model, importance, candidate)
        scored.append((models.loss(small, batches), n, candidate))
        payload.progress(n, len(candidates), loss=scored[-1][0], parameters=float(small.num_parameters()))
    return min(scored)[2]


def _sizes(full: int, share: float, step: int) -> list[int]:
    """The multiples of ``step`` from the part that must stay up to the full size, which is always among them."""
    low = max(1, math.ceil(full * (1 - share)))
    return sorted({full, *(n for n in range(step, full, step) if n >= low)})


def _skipped(args: Mapping[str, Any]) -> list[str]:
    given = args.get("hparams_to_skip") or []
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in shapes.HPARAMS:
            known = ", ".join(shapes.HPARAMS)
            raise PayloadError("config_invalid", f"args.hparams_to_skip: {name} is none of {known}", "Mend the name.")
    return names


def _share(args: Mapping[str, Any], key: str, default: float) -> float:
    value = default if args.get(key) is None else args[key]
    if not (_number(value) and 0 <= float(value) < 1):
        raise PayloadError("config_invalid", f"args.{key}={value!r}: must be from 0 up to, not with, 1", "Write 0.4.")
    return float(value)


def _number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
