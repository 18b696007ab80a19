"""Runs NeMo-RL where it is installed: its own example script, or its GRPO with NeMo-Gym, on the config handed over.

The script runs as a child, so that its steps are reported and its last checkpoint is published when it is done.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _runtime import hf_checkpoint, metrics, payload
from _runtime.payload import PayloadError
from _runtime.rl import data, nemo_checkpoint, nemo_data, nemo_log
from _runtime.rl import policy as policies
from _runtime.rl.settings import at, drop, put, whole

IMAGE = "nvcr.io/nvidia/nemo-rl:v0.6.0"
WORKDIR = "/opt/nemo-rl"
SCRIPTS = {"dpo": "examples/run_dpo.py", "rlvr": "examples/run_grpo.py", "rlhf": "examples/run_grpo.py"}


def run(cfg: dict[str, Any], output: Path, algorithm: str) -> None:
    """Hand the config over, train, publish the last checkpoint.

    Raises:
        PayloadError: NeMo-RL is not installed here, or input that a person must mend.
        SystemExit: the status of NeMo-RL, where it failed.
    """
    workdir = Path(str(cfg.pop("nemo_rl_workdir", None) or WORKDIR))
    gym = algorithm != "dpo" and bool(at(cfg, "env.should_use_nemo_gym", False))
    script = workdir / SCRIPTS[algorithm]
    _require(workdir, script, gym)
    source = data.find(cfg)
    facts = nemo_data.hand_over(cfg, source, "gym" if gym else "dpo" if algorithm == "dpo" else "grpo", output / "data")
    section = "dpo" if algorithm == "dpo" else "grpo"
    launcher = bridge_launcher(workdir)
    policy = policies.find(cfg, output, whole(cfg, f"{section}.seed", 42, least=0), launcher)
    if str(at(cfg, "policy.tokenizer.name", "")) in ("", str(at(cfg, policies.KEY))):
        put(cfg, "policy.tokenizer.name", policy.path)
    put(cfg, policies.KEY, policy.path)
    drop(cfg, "policy.hf_model_id")
    drop(cfg, "env.judge")
    if nemo_checkpoint.ask_for_hf(cfg):
        print("checkpointing.save_consolidated=true is handed over: what is saved has to be published", flush=True)
    config = output / "nemo_rl.yaml"
    write(cfg, config)
    command = [
        sys.executable,
        *(["-P", "-m", "_runtime.rl.nemo_gym"] if gym else [str(script)]),
        "--config",
        str(config),
    ]
    command += overrides(sys.argv[1:])
    print("NeMo-RL: " + " ".join(command), flush=True)
    resumed_from = nemo_checkpoint.latest(output)
    _train(command, workdir, output)
    found = nemo_checkpoint.latest(output)
    if found is None:
        raise RuntimeError(f"NeMo-RL ended without a checkpoint in {output}")
    nemo_checkpoint.publish(found[1], output, policy.path, workdir, launcher)
    losses = [r for r in metrics.load(output) if "loss" in r]
    payload.result(
        backend="nemo_rl",
        algorithm=algorithm,
        **policy.facts,
        **facts,
        nemo_gym=gym,
        command=command,
        steps=found[0],
        first_loss=losses[0]["loss"] if losses else None,
        final_loss=losses[-1]["loss"] if losses else None,
        resumed_from=resumed_from[0] if resumed_from else None,
        seed=at(cfg, f"{section}.seed"),
        **hf_checkpoint.tokenizer_facts(output / "hf"),
    )


def _require(workdir: Path, script: Path, gym: bool) -> None:
    if script.is_file() and not (gym and importlib.util.find_spec("nemo_rl") is None):
        return
    missing = f"{script}: no such file" if not script.is_file() else f"{sys.executable} has no nemo_rl"
    raise PayloadError(
        "nemo_rl_missing",
        f"NeMo-RL is not installed here ({missing})",
        f"Run with a profile whose container_image is {IMAGE}, or set backend=trl (config tiny does).",
    )


def bridge_launcher(workdir: Path) -> list[str]:
    """How to start a Python that has Megatron-Bridge: this one, or the environment that NeMo-RL keeps for it."""
    if _has_bridge() or not shutil.which("uv") or not (workdir / "pyproject.toml").is_file():
        return [sys.executable]
    return ["uv", "run", "--project", str(workdir), "--extra", "mcore", "python"]


def _has_bridge() -> bool:
    try:
        return importlib.util.find_spec("megatron.bridge") is not None
    except ModuleNotFoundError:
        return False


def overrides(argv: list[str]) -> list[str]:
    """What was given to step.py beside ``--config FILE``; NeMo-RL's scripts read the same overrides."""
    rest = list(argv)
    for i, word in enumerate(rest):
        if word == "--config":
            return rest[:i] + rest[i + 2 :]
        if word.startswith("--config="):
            return rest[:i] + rest[i + 1 :]
    return rest


def write(cfg: Mapping[str, Any], file: Path) -> None:
    """Write the config as YAML that OmegaConf reads back as it is; ``$`` in texts was resolved before."""
    import yaml

    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(yaml.safe_dump(dict(cfg), sort_keys=False, allow_unicode=True), encoding="utf-8")
    partial.replace(file)


def _train(command: list[str], workdir: Path, output: Path) -> None:
    """Run NeMo-RL to its end; what it measured is stored after each step, so that a kill loses none of it."""
    steps = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([steps, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    child = subprocess.Popen(
        command,
        cwd=workdir,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        child.terminate()

    previous = signal.signal(signal.SIGTERM, stop)
    reader, before, stored = nemo_log.Reader(), metrics.load(output), 0
    try:
        assert child.stdout is not None
        for line in child.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            reader.read(line)
            if len(reader.records) > stored:
                stored = len(reader.records)
                metrics.save(output, [*before, *reader.records])
        status = child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    if stopped:
        raise SystemExit(143)
    if status:
        raise reader.explain(status)
