"""Converts between Hugging Face and Megatron checkpoints with Megatron-Bridge's AutoBridge, in one process.

With ``distributed: true`` the script of NVIDIA's containers converts instead (``convert_script``).
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _runtime import convert_script, cpu, hf_checkpoint, megatron_checkpoint, payload
from _runtime.conversion_inputs import TINY, base_model, check_source, hf_model, refuse_overlap, required, writing
from _runtime.convert_script import truth
from _runtime.payload import PayloadError

DTYPES = ("bfloat16", "float16", "float32")


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
    with writing(target), hf_model(source) as (path, name):
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
    with writing(target), tempfile.TemporaryDirectory(prefix="megatron-") as scratch:
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
    source: str,
    target: Path,
    name: str,
    dtype: str | None,
    trust: bool,
    device_map: str | None = None,
    key: str = "hf_model_id",
) -> dict[str, Any]:
    """Write ``target/iter_0000000`` from a Hugging Face model; returns facts.

    Args:
        name: what run_config.yaml records as the model that it came from.
        dtype: of the weights; None keeps the source's.
        key: what names the model in the config.
    """
    prepare(source, trust, key)
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
    iteration: Path,
    target: Path,
    base: str,
    trust: bool,
    show_progress: bool = True,
    strict: bool = True,
    key: str = "hf_model_id",
) -> dict[str, Any]:
    """Write the weights of a Megatron iteration to ``target``, with the config and tokenizer of ``base``.

    ``key``: what names the base in the config.
    """
    megatron_checkpoint.check_shards(iteration, "megatron_path")
    with hf_model(base) as (path, _):
        prepare(path, trust, key)
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
    """What Megatron needs of torch.distributed, without a port that another process could have; nothing stays."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.rerun_state_machine import destroy_rerun_state_machine
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(0)
        yield
    finally:
        destroy_rerun_state_machine()  # saving a checkpoint makes one, and training after it would not start
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


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
