"""Converts between Hugging Face and Megatron checkpoints with Megatron-Bridge's AutoBridge, in one process.

With ``distributed: true`` the script of NVIDIA's containers converts instead (``convert_script``).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _runtime import convert_script, cpu, hf_checkpoint, megatron_checkpoint, payload
from _runtime.convert_script import truth
from _runtime.payload import PayloadError

#: Stands for an untrained model of half a million parameters, wherever a model or checkpoint is named.
TINY = "tiny_llama"
DTYPES = ("bfloat16", "float16", "float32")
_NEEDS = "Give the model that training started from, or one with the same config and tokenizer."


def hf_to_megatron(cfg: dict[str, Any]) -> None:
    """Import ``hf_model_id`` as the first iteration below ``megatron_path``.

    Raises:
        PayloadError: input that a person must mend.
    """
    source, target = required(cfg, "hf_model_id"), Path(required(cfg, "megatron_path")).absolute()
    dtype = _dtype(cfg)
    if source != TINY:
        check_source(source, "hf_model_id")
        refuse_overlap(target, "megatron_path", source, "hf_model_id")
    if convert_script.is_distributed(cfg):
        convert_script.replace_process("import", cfg, source, str(target))
    if convert_script.is_idle():
        return
    with hf_model(source) as (path, name):
        done = import_model(
            path, target, name, dtype, truth(cfg.get("trust_remote_code", True)), cfg.get("device_map") or None
        )
    payload.result(**done)


def megatron_to_hf(cfg: dict[str, Any]) -> None:
    """Export one iteration of ``megatron_path`` to ``hf_path``.

    Raises:
        PayloadError: input that a person must mend.
    """
    given, target = required(cfg, "megatron_path"), Path(required(cfg, "hf_path")).absolute()
    trust = truth(cfg.get("trust_remote_code", True))
    with tempfile.TemporaryDirectory(prefix="megatron-") as scratch:
        if given == TINY:
            with hf_model(TINY) as (path, name):
                import_model(path, Path(scratch), name, None, trust)
            given = scratch
        iteration = megatron_checkpoint.iteration(given, "megatron_path")
        refuse_overlap(target, "hf_path", str(iteration), "megatron_path")
        base = base_model(iteration, cfg.get("hf_model_id"))
        if convert_script.is_distributed(cfg):
            convert_script.replace_process("export", cfg, base, str(iteration))
        if convert_script.is_idle():
            return
        done = export_model(
            iteration, target, base, trust, truth(cfg.get("show_progress", True)), truth(cfg.get("strict", True))
        )
    payload.result(**done)


def import_model(
    source: str, target: Path, name: str, dtype: str | None, trust: bool, device_map: str | None = None
) -> dict[str, Any]:
    """Write ``target/iter_0000000`` from a Hugging Face model; returns facts.

    Args:
        name: what run_config.yaml records as the model that it came from.
        dtype: of the weights; None keeps the source's.
    """
    prepare(source, trust, "hf_model_id")
    import torch
    from megatron.bridge import AutoBridge

    _clear(target)
    extra = {"device_map": device_map} if device_map else {}
    chosen = dtype or _own_dtype(source, trust)
    print(f"importing {name} into {target} as {chosen}", flush=True)
    with one_process():
        AutoBridge.import_ckpt(source, target, torch_dtype=getattr(torch, chosen), trust_remote_code=trust, **extra)
    made = target / "iter_0000000"
    if name != source:
        file = made / "run_config.yaml"
        file.write_text(file.read_text(encoding="utf-8").replace(source, name), encoding="utf-8")
    return {
        "backend": "megatron_bridge",
        "base_model": name,
        "dtype": chosen,
        "iteration": made.name,
        **hf_checkpoint.tokenizer_facts(made / "tokenizer"),
    }


def export_model(
    iteration: Path, target: Path, base: str, trust: bool, show_progress: bool = True, strict: bool = True
) -> dict[str, Any]:
    """Write the weights of a Megatron iteration to ``target``, with the config and tokenizer of ``base``."""
    megatron_checkpoint.check_shards(iteration, "megatron_path")
    with hf_model(base) as (path, _):
        prepare(path, trust, "hf_model_id")
        from megatron.bridge import AutoBridge

        print(f"exporting {iteration} to {target}", flush=True)
        bridge = AutoBridge.from_hf_pretrained(path, trust_remote_code=trust)
        bridge.export_ckpt(str(iteration), str(target), show_progress=show_progress, strict=strict)
    return finish(target, base, iteration)


def finish(target: Path, base: str, iteration: Path) -> dict[str, Any]:
    """See that an exported model is whole and says its own number format; returns facts."""
    dtypes = _dtypes(target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    config[key] = max(dtypes, key=lambda dtype: dtypes[dtype])
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if wrong := hf_checkpoint.problem(target):
        raise RuntimeError(f"the export is not whole: {wrong}")
    return {
        "backend": "megatron_bridge",
        "base_model": base,
        "iteration": iteration.name,
        "parameters": sum(dtypes.values()),
        "dtype": config[key],
        **hf_checkpoint.tokenizer_facts(target),
    }


def base_model(iteration: Path, given: Any) -> str:
    """The Hugging Face model that describes an iteration: the one given, else the one that it records.

    Raises:
        PayloadError: neither is there, or it has no config and tokenizer.
    """
    recorded = megatron_checkpoint.base_of(megatron_checkpoint.run_config(iteration))
    if given and recorded and given != recorded:
        print(f"hf_model_id={given}: the checkpoint records {recorded}", flush=True)
    if not given and recorded:
        print(f"hf_model_id: {recorded}, as run_config.yaml of the checkpoint records", flush=True)
    base = str(given or recorded or "")
    if not base:
        raise PayloadError(
            "missing_hf_config_or_tokenizer",
            f"hf_model_id is not set, and {iteration / 'run_config.yaml'} names no model",
            _NEEDS,
        )
    if base != TINY and hf_checkpoint.is_local(base):
        path = Path(base).expanduser()
        for name in ("config.json", "tokenizer_config.json"):
            if not (path / name).is_file():
                raise PayloadError("missing_hf_config_or_tokenizer", f"hf_model_id={base}: has no {name}", _NEEDS)
        return str(path.absolute())
    return base


@contextmanager
def hf_model(name: str) -> Iterator[tuple[str, str]]:
    """A model's directory or id, and its name; ``tiny_llama`` is made, and removed afterwards."""
    if name != TINY:
        local = hf_checkpoint.is_local(name)
        path = str(Path(name).expanduser().absolute()) if local else name
        if local:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        yield path, path
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from _runtime import tiny_model

    with tempfile.TemporaryDirectory(prefix="tiny-llama-") as made:
        tiny_model.save(made)
        yield made, TINY


def check_source(source: str, key: str, name: str = "source_not_clean_hf_checkpoint") -> None:
    """Refuse a local directory that is not a whole Hugging Face model.

    Raises:
        PayloadError: called ``name``; what is wrong with it.
    """
    try:
        hf_checkpoint.check_base(source, key)
    except PayloadError as e:
        raise PayloadError(name, e.message, e.recovery) from None
    if hf_checkpoint.is_local(source) and (wrong := hf_checkpoint.problem(Path(source).expanduser())):
        raise PayloadError(name, f"{key}: {wrong}", hf_checkpoint.GIVE_MODEL)


def refuse_overlap(
    target: Path, target_key: str, source: str, source_key: str, name: str = "output_path_overlaps_source"
) -> None:
    """Refuse to write into what is read, or around it.

    Raises:
        PayloadError: called ``name``, naming both keys.
    """
    if not hf_checkpoint.is_local(source):
        return
    mine, theirs = target.resolve(), Path(source).expanduser().resolve()
    if mine == theirs or mine in theirs.parents or theirs in mine.parents:
        raise PayloadError(
            name,
            f"{target_key}={target} overlaps {source_key}={source}",
            f"Choose a {target_key} that is neither that directory nor above or below it.",
        )


def prepare(model: str, trust: bool, key: str) -> None:
    """Refuse a model that cannot be converted here; switch the CPU compatibility on where there is no CUDA.

    Raises:
        PayloadError: its config or tokenizer cannot be read, Megatron-Bridge does not know it, it is too large.
    """
    hf_checkpoint.load_tokenizer(model, key, trust)
    if not cpu.has_cuda():
        cpu.choose_threads(cpu.refuse_large(model, trust, key, "converted"))
    from _runtime import cpu_megatron

    cpu_megatron.enable()
    from megatron.bridge import AutoBridge
    from transformers import AutoConfig

    if not AutoBridge.can_handle(model, trust_remote_code=trust):
        architectures = AutoConfig.from_pretrained(model, trust_remote_code=trust).architectures or ["none named"]
        raise PayloadError(
            "unsupported_or_custom_architecture",
            f"{key}={model}: Megatron-Bridge has no mapping for its architecture ({', '.join(architectures)})",
            "Use a container whose Megatron-Bridge knows it; a custom one also needs trust_remote_code=true.",
        )


@contextmanager
def one_process() -> Iterator[None]:
    """What Megatron needs of torch.distributed, without a port that another process could have."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(0)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def required(cfg: dict[str, Any], key: str) -> str:
    """A path or name that must be set.

    Raises:
        PayloadError: it is not.
    """
    value = cfg.get(key)
    if not isinstance(value, str) or value in ("", "???"):
        raise PayloadError("config_invalid", f"{key} is not set", f"Give {key}=...; README.md says what it is.")
    return value


def _dtype(cfg: dict[str, Any]) -> str | None:
    value = cfg.get("torch_dtype") or cfg.get("dtype")
    if value is not None and value not in DTYPES:
        raise PayloadError(
            "config_invalid",
            f"torch_dtype={value}: none of {', '.join(DTYPES)}",
            "Choose one, or null for the source's.",
        )
    return value


def _own_dtype(source: str, trust: bool) -> str:
    """The number format of most weights, as a directory's files say, or the config of a model on the Hub."""
    from transformers import AutoConfig

    if Path(source).is_dir():
        dtypes = _dtypes(Path(source))
        found = max(dtypes, key=lambda name: dtypes[name])
    else:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust)
        found = str(getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)).removeprefix("torch.")
    return found if found in DTYPES else "bfloat16"


def _dtypes(folder: Path) -> dict[str, int]:
    """Parameters of each number format, by torch's name for it, from the headers of the safetensors files."""
    from safetensors import safe_open

    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    found: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - it has no iterator
                part = weights.get_slice(key)
                name = names.get(part.get_dtype(), part.get_dtype())
                found[name] = found.get(name, 0) + math.prod(part.get_shape())
    return found


def _clear(target: Path) -> None:
    """Forget what a killed import left in its directory."""
    shutil.rmtree(target / "iter_0000000", ignore_errors=True)
    (target / megatron_checkpoint.TRACKER).unlink(missing_ok=True)
