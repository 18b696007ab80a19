"""Starts the example script of ModelOpt or Megatron-Bridge that a container of NVIDIA's brings, from a step's config.

The keys of ``args`` are the script's flags. This process becomes torchrun, or the script itself where the launcher has
started one process per GPU already; what that exits with is what the step exits with.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from _runtime import payload
from _runtime.payload import PayloadError

BACKENDS = ("script", "inprocess")
STYLES = ("hyphen", "underscore")
OURS = ("script", "args", "torchrun", "extra_args", "wandb_wrapper", "backend", "seed")
WHERE = ("nnodes", "node_rank", "master_addr", "master_port")


@dataclass(frozen=True)
class Script:
    """``path`` in the container; ``flags`` is how it spells them; ``image`` is a container that has it."""

    path: str
    flags: str
    image: str = "nvcr.io/nvidia/nemo:26.04"


def backend(cfg: Mapping[str, Any]) -> str:
    """``script`` (the default) or ``inprocess``.

    Raises:
        PayloadError: any other word.
    """
    chosen = cfg.get("backend") or "script"
    if chosen not in BACKENDS:
        raise PayloadError("config_invalid", f"backend={chosen}: must be {' or '.join(BACKENDS)}", "Mend the config.")
    return str(chosen)


def section(cfg: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A mapping of the config, empty where it is not set.

    Raises:
        PayloadError: something else is there.
    """
    value = {} if cfg.get(name) is None else cfg[name]
    if not isinstance(value, dict):
        raise PayloadError("config_invalid", f"{name}={value!r}: must be a mapping", f"Write keys below `{name}:`.")
    return dict(value)


def processes(cfg: Mapping[str, Any], default: int = 8) -> int:
    """How many processes the script will run in, on all nodes together."""
    if launched():
        return int(os.environ["WORLD_SIZE"])
    torchrun = section(cfg, "torchrun")
    return whole(torchrun, "nproc_per_node", default) * whole(torchrun, "nnodes", 1)


def whole(values: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number above zero.

    Raises:
        PayloadError: something else is there.
    """
    value = default if values.get(key) is None else values[key]
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        raise PayloadError("config_invalid", f"{key}={value!r}: must be a whole number above zero", "Mend the config.")
    return int(value)


def launched() -> bool:
    """Did a launcher start this process as one rank of several?"""
    return bool(os.environ.get("WORLD_SIZE") and os.environ.get("RANK"))


def flags(args: Mapping[str, Any], style: str) -> list[str]:
    """``args`` as a command line: null and false are left out, true is a bare flag, a mapping becomes JSON."""
    line: list[str] = []
    for key, value in args.items():
        if value is None or value is False:
            continue
        line.append("--" + (key.replace("_", "-") if style == "hyphen" else key))
        if isinstance(value, (list, tuple)):
            line += [str(v) for v in value]
        elif value is not True:
            line.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return line


def command(cfg: Mapping[str, Any], script: Script) -> list[str]:
    """What is executed.

    Raises:
        PayloadError: the script is not there, or a setting is not of its kind.
    """
    own = section(cfg, "script")
    path = str(own.get("path") or script.path)
    style = own.get("flag_style") or script.flags
    if style not in STYLES:
        raise PayloadError(
            "config_invalid", f"script.flag_style={style}: must be {' or '.join(STYLES)}", "Mend the config."
        )
    if not Path(path).is_file():
        raise PayloadError(
            "script_missing",
            f"script.path={path}: no such file; it comes with the container {script.image}",
            f"Run with run.env.container_image={script.image}, mount a checkout and set script.path, "
            "or set backend=inprocess (or take -c tiny) for a model that a CPU can hold.",
        )
    extra = cfg.get("extra_args") or []
    if not isinstance(extra, list):
        raise PayloadError("config_invalid", f"extra_args={extra!r}: must be a list", 'Write ["--flag", "value"].')
    flat = {k: v for k, v in cfg.items() if k not in OURS}  # flags once stood at the root of a config
    given = [path, *flags({**flat, **section(cfg, "args")}, style), *map(str, extra)]
    if launched():
        return [sys.executable, *given]
    torchrun = section(cfg, "torchrun")
    where = [f"--{key}={torchrun[key]}" for key in WHERE if torchrun.get(key) is not None]
    each = whole(torchrun, "nproc_per_node", 8)
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={each}", *where, *given]


def start(cfg: Mapping[str, Any], script: Script) -> NoReturn:
    """Become the script.

    Raises:
        PayloadError: as ``command``.
    """
    line = command(cfg, script)
    path = str(section(cfg, "script").get("path") or script.path)
    _use_checkout(Path(path))
    print("$ " + shlex.join(line), flush=True)
    payload.result(backend="script", script=path, command=line)
    if _logs_to_wandb(section(cfg, "wandb_wrapper")):
        sys.exit(_run_logged(line, cfg))
    sys.stdout.flush()
    os.execv(line[0], line)


def _use_checkout(script: Path) -> None:
    """A script in a checkout of ModelOpt needs the library of the same checkout: other versions drift from it."""
    root = script.resolve().parents[2] if len(script.resolve().parents) > 2 else script.parent
    if (root / "modelopt").is_dir():
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))


def _logs_to_wandb(settings: Mapping[str, Any]) -> bool:
    """Only where it is turned on, can work, and this is the first rank."""
    if settings.get("enabled") is not True:
        return False
    if os.environ.get("RANK", "0") != "0":
        return False
    lacking = [
        what
        for what, there in {
            "WANDB_API_KEY": os.environ.get("WANDB_API_KEY"),
            "wandb_wrapper.project": settings.get("project"),
            "the wandb package": importlib.util.find_spec("wandb"),
        }.items()
        if not there
    ]
    if lacking:
        print(f"not logged to Weights & Biases: no {', '.join(lacking)}", file=sys.stderr, flush=True)
    return not lacking


def _run_logged(line: list[str], cfg: Mapping[str, Any]) -> int:
    """Run the script as a child, so that its exit code can be logged, and pass signals on to it."""
    import wandb  # type: ignore[import-not-found, unused-ignore]

    settings = section(cfg, "wandb_wrapper")
    about = {k: settings.get(k) for k in ("project", "entity", "name", "job_type")}
    run = wandb.init(**about, config={k: cfg.get(k) for k in ("script", "args", "torchrun", "extra_args")})
    child = subprocess.Popen(line)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: child.send_signal(got))
    status = child.wait()
    run.summary.update({"command": shlex.join(line), "exit_code": status})
    run.finish(exit_code=status)
    return status if status >= 0 else 128 - status
