"""The command that converts on several GPUs: Megatron-Bridge's own script, which is in NVIDIA's containers only."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from _runtime import payload
from _runtime.payload import PayloadError

SCRIPT = "/opt/Megatron-Bridge/examples/conversion/convert_checkpoints_multi_gpu.py"
_TORCHRUN = ("nnodes", "node_rank", "master_addr", "master_port")


def is_distributed(cfg: Mapping[str, Any]) -> bool:
    """Shall the script convert? ``distributed: auto`` says so where there is more than one process or part."""
    value = cfg.get("distributed", cfg.get("use_distributed", False))
    if str(value).lower() == "auto":
        parts = max(_size(cfg, "tp", "pp", "cp"), _size(cfg, "etp", "ep", "pp"))
        return _in_torchrun() or _processes(cfg) > 1 or parts > 1
    return truth(value)


def is_idle() -> bool:
    """Does another process of this torchrun convert, because one is enough?"""
    rank = int(os.environ.get("RANK") or 0)
    if rank:
        print(f"distributed=false: rank 0 converts, rank {rank} has nothing to do", flush=True)
    return bool(rank)


def replace_process(direction: str, cfg: Mapping[str, Any], hf_model: str, megatron_path: str) -> NoReturn:
    """Become the script, so that its exit status is this process's.

    Raises:
        PayloadError: the script is not there, or the processes do not divide into the parallel sizes.
    """
    script = script_path(cfg)
    if hf_model == "tiny_llama":
        raise PayloadError(
            "config_invalid",
            "distributed=true: tiny_llama is made and converted in one process",
            "Set distributed=false.",
        )
    if not Path(script).is_file():
        raise PayloadError(
            "conversion_script_missing",
            f"script.path={script}: no such file",
            "Run in a NeMo container that has it, or convert in this process with distributed=false.",
        )
    words = command(direction, cfg, hf_model, megatron_path)
    print(f"$ {shlex.join(words)}", flush=True)
    payload.result(backend="convert_checkpoints_multi_gpu.py", command=shlex.join(words), hf_model=hf_model)
    sys.stderr.flush()
    os.execvpe(words[0], words, {"PYTHONFAULTHANDLER": "1", **os.environ})


def command(direction: str, cfg: Mapping[str, Any], hf_model: str, megatron_path: str) -> list[str]:
    """The words of the script's command line; below torchrun already, without another.

    Args:
        direction: ``import`` (Hugging Face to Megatron) or ``export``.
    """
    check_sizes(cfg)
    words = [sys.executable, script_path(cfg)]
    if not _in_torchrun():
        torchrun = _section(cfg, "torchrun")
        where = [f"--{key}={value}" for key in _TORCHRUN if (value := torchrun.get(key, cfg.get(key))) is not None]
        torchrun_words = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={_processes(cfg)}"]
        words = [*torchrun_words, *where, script_path(cfg)]
    words += [direction, "--hf-model", hf_model, "--megatron-path", megatron_path]
    if direction == "export":
        words += ["--hf-path", str(cfg["hf_path"])]
    for key in ("tp", "pp", "ep", "etp"):
        words += [f"--{key}", str(_whole(cfg, key))]
    script = _section(cfg, "script")
    if _supports(script, f"{direction}_torch_dtype", _supports(script, "torch_dtype")):
        words += ["--torch-dtype", str(cfg.get("torch_dtype") or cfg.get("dtype") or "bfloat16")]
    if truth(cfg.get("trust_remote_code", True)) and _supports(script, "trust_remote_code"):
        words.append("--trust-remote-code")
    if (minutes := cfg.get("distributed_timeout_minutes")) not in (None, ""):
        words += ["--distributed-timeout-minutes", str(minutes)]
    if direction == "export":
        words += _export_words(cfg, script)
    return words + [str(word) for key in ("extra_args", "distributed_extra_args") for word in cfg.get(key) or ()]


def _export_words(cfg: Mapping[str, Any], script: Mapping[str, Any]) -> list[str]:
    words = []
    if not truth(cfg.get("show_progress", True)):
        words.append("--no-progress")
    if not truth(cfg.get("strict", True)):
        words.append("--not-strict")
    if truth(cfg.get("distributed_save", True)) and _supports(script, "distributed_save"):
        words.append("--distributed-save")
    if cfg.get("save_every_n_ranks") is not None and _supports(script, "save_every_n_ranks"):
        words += ["--save-every-n-ranks", str(_whole(cfg, "save_every_n_ranks"))]
    return words


def script_path(cfg: Mapping[str, Any]) -> str:
    """Where the config says that the script is."""
    named = cfg.get("distributed_script") or cfg.get("upstream_script") or _section(cfg, "script").get("path")
    return str(named or SCRIPT)


def check_sizes(cfg: Mapping[str, Any]) -> None:
    """Refuse parallel sizes that the processes do not divide into.

    Raises:
        PayloadError: naming the keys and their values.
    """
    nodes = _section(cfg, "torchrun").get("nnodes", cfg.get("nnodes")) or 1
    world = int(os.environ.get("WORLD_SIZE") or _processes(cfg) * int(nodes))
    if world <= 1:
        return
    dense, experts = _size(cfg, "tp", "pp", "cp"), _size(cfg, "etp", "ep", "pp")
    if dense <= 1 and experts <= 1:
        raise PayloadError(
            "parallel_sizes_mismatch",
            f"tp, pp, ep and etp are all 1, and {world} processes are to convert",
            "Set one of them above 1 (the Nemotron MoE models take ep=8), or distributed=false.",
        )
    for size, keys in ((dense, "tp*pp"), (experts, "etp*ep*pp")):
        if world % size:
            raise PayloadError(
                "parallel_sizes_mismatch",
                f"{keys} = {size}: {world} processes do not divide into it",
                "Set torchrun.nproc_per_node to a multiple of it, or other sizes.",
            )


def truth(value: Any) -> bool:
    """A switch of a config, which an override may have given as text."""
    return value.strip().lower() in ("1", "true", "yes", "on") if isinstance(value, str) else bool(value)


def _in_torchrun() -> bool:
    return bool(os.environ.get("WORLD_SIZE") and os.environ.get("RANK"))


def _processes(cfg: Mapping[str, Any]) -> int:
    key = "torchrun.nproc_per_node" if "nproc_per_node" in _section(cfg, "torchrun") else "nproc_per_node"
    return _whole({key: _section(cfg, "torchrun").get("nproc_per_node", cfg.get("nproc_per_node"))}, key)


def _size(cfg: Mapping[str, Any], *keys: str) -> int:
    size = 1
    for key in keys:
        size *= _whole(cfg, key)
    return size


def _whole(cfg: Mapping[str, Any], key: str) -> int:
    value = cfg.get(key)
    try:
        number = 1 if value is None else int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise PayloadError("config_invalid", f"{key}={value!r}: must be a whole number from 1", f"Set {key}=1.")
    return number


def _section(cfg: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = cfg.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PayloadError("config_invalid", f"{name}={value!r}: must be a mapping", f"Write keys below `{name}:`.")
    return value


def _supports(script: Mapping[str, Any], flag: str, default: bool = True) -> bool:
    """Whether the script of a container knows a flag; ``script.supports_<flag>`` says so where it does not."""
    listed = _section(script, "supports")
    return truth(script.get(f"supports_{flag}", listed.get(flag, default)))
