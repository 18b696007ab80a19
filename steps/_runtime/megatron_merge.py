"""Folds an adapter of Megatron-Bridge into its base: in one process, or by the script of NVIDIA's containers."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _runtime import megatron_checkpoint, payload
from _runtime.conversion_inputs import TINY, base_model, hf_model, refuse_overlap, required, writing
from _runtime.convert_script import truth
from _runtime.megatron_convert import export_model, finish, import_model, one_process, prepare
from _runtime.payload import PayloadError

_FIX = "Give base_megatron_path, the checkpoint that the adapter was trained on."


def run(cfg: dict[str, Any]) -> None:
    """Merge ``lora_checkpoint``; ``upstream_script: null`` merges in this process.

    Raises:
        PayloadError: input that a person must mend.
    """
    adapter = megatron_checkpoint.iteration(required(cfg, "lora_checkpoint"), "lora_checkpoint")
    settings = megatron_checkpoint.run_config(adapter)
    if not isinstance(settings.get("peft"), dict):
        raise PayloadError(
            "adapter_invalid",
            f"lora_checkpoint={adapter}: run_config.yaml has no peft section, so this is a whole model",
            "Name the checkpoint of a peft/megatron_bridge run.",
        )
    base = _base(cfg, adapter, settings)
    named = [str(cfg[k]) for k in ("hf_model_id", "hf_model_path", "base_hf_path") if _given(cfg, k) and cfg[k] != TINY]
    hf = base_model(base if base and not megatron_checkpoint.base_of(settings) else adapter, (named or [None])[0])
    keys = ["output_hf_path"] if truth(cfg.get("export_hf", True)) else []
    keys += ["output_megatron_path"] if _given(cfg, "output_megatron_path") else []
    outputs = {key: Path(required(cfg, key)).absolute() for key in keys}
    for key, target in outputs.items():
        for source, name in (
            (adapter, "lora_checkpoint"),
            (base or adapter, "base_megatron_path"),
            (hf, "base_hf_path"),
        ):
            refuse_overlap(target, key, str(source), name, "output_path_overlaps_inputs")
    if cfg.get("upstream_script"):
        _script(cfg, adapter, base, hf, outputs)
    else:
        _in_process(cfg, adapter, base, hf, settings["peft"], outputs)


def _given(cfg: dict[str, Any], key: str) -> bool:
    return cfg.get(key) not in (None, "", "???")


def _base(cfg: dict[str, Any], adapter: Path, settings: dict[str, Any]) -> Path | None:
    """The iteration that the adapter was trained on; None where it started from Hugging Face weights.

    Raises:
        PayloadError: it is not there, or is another than the adapter's.
    """
    checkpoint = settings.get("checkpoint")
    recorded = checkpoint.get("pretrained_checkpoint") if isinstance(checkpoint, dict) else None
    theirs = None
    if isinstance(recorded, str) and megatron_checkpoint.is_megatron(Path(recorded)):
        theirs = megatron_checkpoint.iteration(recorded, "checkpoint.pretrained_checkpoint of the adapter")
    given = next((str(cfg[k]) for k in ("base_megatron_path", "pretrained") if _given(cfg, k)), None)
    if given is None:
        if recorded and theirs is None:
            raise PayloadError("base_model_missing", f"{adapter}: was trained on {recorded}, which is not there", _FIX)
        return theirs
    base = megatron_checkpoint.iteration(given, "base_megatron_path")
    names = [megatron_checkpoint.base_of(c) for c in (megatron_checkpoint.run_config(base), settings)]
    other = theirs is not None and (theirs / ".metadata").read_bytes() != (base / ".metadata").read_bytes()
    if other or (all(names) and names[0] != names[1]):
        raise PayloadError(
            "base_model_mismatch",
            f"base_megatron_path={given} ({names[0]}): the adapter was trained on {recorded} ({names[1]})",
            _FIX,
        )
    return base


def command(cfg: dict[str, Any], adapter: str, base: str | None, hf: str, target: str) -> list[str]:
    """The words of the container's script, with torchrun in front where it runs on GPUs."""
    on_cpu = truth(cfg.get("cpu", True))
    sizes = {key: str(int(cfg.get(key) or 1)) for key in ("tp", "pp", "ep")}
    words = [sys.executable, str(cfg["upstream_script"])]
    if not on_cpu and not (os.environ.get("WORLD_SIZE") and os.environ.get("RANK")):
        count = cfg.get("nproc_per_node") or cfg.get("gpus_per_node") or sizes["tp"]
        words = ["torchrun", f"--nproc_per_node={count}", str(cfg["upstream_script"])]
    words += ["--lora-checkpoint", adapter, "--hf-model-path", hf, "--output", target]
    words += [word for key, size in sizes.items() for word in (f"--{key}", size)]
    words += ["--pretrained", base] if base else []
    words += ["--cpu"] if on_cpu else []
    return words + (["--debug"] if truth(cfg.get("debug", False)) else [])


def _script(cfg: dict[str, Any], adapter: Path, base: Path | None, hf: str, outputs: dict[str, Path]) -> None:
    if not Path(str(cfg["upstream_script"])).is_file():
        raise PayloadError(
            "merge_script_missing",
            f"upstream_script={cfg['upstream_script']}: no such file",
            "Run in a NeMo container that has it, or merge in this process with upstream_script=null.",
        )
    target = Path(required(cfg, "output_megatron_path")).absolute()
    words = command(cfg, str(adapter), str(base) if base else None, hf, str(target))
    print(f"$ {shlex.join(words)}", flush=True)
    status = subprocess.run(words, check=False).returncode
    if status:
        raise SystemExit(status if status > 0 else 128 - status)
    done: dict[str, Any] = {"base_model": hf}
    if "output_hf_path" in outputs:
        merged = megatron_checkpoint.iteration(str(target), "output_megatron_path")
        trust, shown = truth(cfg.get("trust_remote_code", True)), truth(cfg.get("show_progress", True))
        done = export_model(merged, outputs["output_hf_path"], hf, trust, shown, truth(cfg.get("strict", True)))
    payload.result(**{**done, "backend": "megatron_bridge merge_lora.py", "command": shlex.join(words)})


def _in_process(
    cfg: dict[str, Any], adapter: Path, base: Path | None, hf: str, peft: dict[str, Any], outputs: dict[str, Path]
) -> None:
    trust, shown = truth(cfg.get("trust_remote_code", True)), truth(cfg.get("show_progress", True))
    for path, key in ((base, "base_megatron_path"), (adapter, "lora_checkpoint")):
        if path is not None:
            megatron_checkpoint.check_shards(path, key)
    with ExitStack() as held:
        target = outputs.get("output_hf_path") or Path(
            held.enter_context(tempfile.TemporaryDirectory(prefix="merged-"))
        )
        held.enter_context(writing(target))
        source, name = held.enter_context(hf_model(hf))
        prepare(source, trust, "hf_model_id")
        from megatron.bridge import AutoBridge

        print(f"merging {adapter} into {base or name}", flush=True)
        bridge = AutoBridge.from_hf_pretrained(source, trust_remote_code=trust)
        with one_process():
            model = bridge.load_megatron_model(str(base)) if base else _from_hf(bridge)
            rank = _add_adapter(model, adapter, peft)
            bridge.save_hf_pretrained(model, str(target), show_progress=shown, strict=truth(cfg.get("strict", True)))
        done = finish(target, name, adapter)
        if "output_megatron_path" in outputs:
            import_model(str(target), outputs["output_megatron_path"], name, done["dtype"], trust)
    payload.result(
        **{**done, "backend": "megatron_bridge", "adapter": str(adapter), "base": str(base or name), "rank": rank}
    )


def _from_hf(bridge: Any) -> Any:
    provider = bridge.to_megatron_provider(load_weights=True)
    provider.finalize()
    return provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)


def _add_adapter(model: list[Any], adapter: Path, peft: dict[str, Any]) -> int | None:
    """Put the adapter's layers into a loaded model and load them; exporting the model then adds them to its weights."""
    from megatron.bridge.training.checkpointing import (
        _generate_model_state_dict,
        apply_peft_adapter_filter_to_state_dict,
    )
    from megatron.bridge.utils.instantiate_utils import instantiate
    from megatron.core import dist_checkpointing
    from megatron.core.utils import unwrap_model

    # Which names were saved is found out anew from the layers.
    lora = instantiate({k: v for k, v in peft.items() if k != "params_to_save"})
    chunks = unwrap_model(model)
    lora(chunks, training=False)
    wanted = apply_peft_adapter_filter_to_state_dict(_generate_model_state_dict(chunks, {}), lora)
    loaded = dist_checkpointing.load(wanted, str(adapter))
    missing = chunks[0].load_state_dict(loaded["model"], strict=False).unexpected_keys
    if missing:
        raise RuntimeError(f"{adapter}: the model has no place for {missing[:3]}")
    rank = peft.get("dim")
    return rank if isinstance(rank, int) else None
