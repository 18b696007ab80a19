"""Starts one of the RL steps with the backend that its config names: NeMo-RL where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _runtime.payload import PayloadError
from _runtime.rl.settings import at, put

BACKENDS = ("nemo_rl", "trl")


def run(cfg: dict[str, Any], algorithm: str) -> None:
    """Train as ``cfg`` says; ``algorithm`` is ``dpo``, ``rlvr`` or ``rlhf``.

    Raises:
        PayloadError: input that a person must mend.
    """
    backend = str(cfg.pop("backend", None) or "nemo_rl")
    if backend not in BACKENDS:
        raise PayloadError("config_invalid", f"backend={backend}: one of {', '.join(BACKENDS)}", "Set backend=trl.")
    output = Path(str(at(cfg, "checkpointing.checkpoint_dir", "./checkpoints"))).expanduser().absolute()
    put(cfg, "checkpointing.checkpoint_dir", str(output))
    output.mkdir(parents=True, exist_ok=True)
    print(f"backend: {backend}", flush=True)
    if backend == "nemo_rl":
        from _runtime.rl import nemo_rl

        nemo_rl.run(cfg, output, algorithm)
    elif algorithm == "dpo":
        from _runtime.rl import trl_dpo

        trl_dpo.run(cfg, output)
    else:
        from _runtime.rl import trl_grpo

        trl_grpo.run(cfg, output, algorithm)
