"""NeMo Evaluator Launcher: the config in its own shape, started, watched to the end and summed up."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from _runtime import payload
from _runtime.evaluation.launcher_results import collect
from _runtime.evaluation.redact import Redactor
from _runtime.payload import PayloadError

STEP_KEYS = ("backend", "dry_run", "output_dir", "task_filters", "baseline", "run")
SECONDS_BETWEEN = 5
ENDED = {"success", "failed", "killed"}


def run(cfg: dict[str, Any]) -> None:
    """Run the configured tasks and write ``summary.json`` beside the Launcher's own results."""
    output = Path(cfg.get("output_dir") or "./results").resolve()
    key = _check(cfg)
    if importlib.util.find_spec("nemo_evaluator_launcher") is None:
        raise PayloadError(
            "framework_cli_not_found",
            f"This environment ({sys.prefix}) has no nemo-evaluator-launcher, which this config is written for.",
            "Use -c tiny (or backend=lm_eval with target and tasks) to score a Hugging Face checkpoint or an endpoint "
            "here, or run in an environment or container that has nemo-evaluator-launcher.",
        )
    os.environ |= {"NEMO_EVALUATOR_TELEMETRY_LEVEL": "0", "NEMO_TELEMETRY_ENABLED": "false", "DO_NOT_TRACK": "1"}
    os.umask(0o077)  # the Launcher writes keys into files for its containers
    redactor = Redactor(key)
    try:
        _start_and_wait(cfg, output, redactor)
    finally:
        for secrets in output.rglob(".secrets.env"):
            secrets.unlink()
        redactor.files(output)


def _start_and_wait(cfg: dict[str, Any], output: Path, redactor: Redactor) -> None:
    from nemo_evaluator_launcher.api.functional import run_eval
    from omegaconf import OmegaConf

    dry = bool(cfg.get("dry_run"))
    try:
        made = OmegaConf.create(launcher_config(cfg, output))
        invocation = run_eval(made, dry_run=dry, tasks=list(cfg.get("task_filters") or []) or None)
    except (ValueError, RuntimeError, KeyError, AttributeError) as e:  # what it raises for a config it cannot use
        message = redactor.text(f"{type(e).__name__}: {e}")
        raise PayloadError("launcher_failed", message, "Mend the named key, or start the container engine.") from None
    if dry:
        payload.result(dry_run=True, invocation=invocation)
        return
    if not invocation:
        raise PayloadError("launcher_failed", "The Launcher started nothing.", "Read its messages above.")
    _wait(invocation)
    summary = collect(output, cfg)
    (output / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    scores = {f"{s['task']}/{s['metric']}": s["value"] for s in summary["scores"]}
    payload.result(model=summary["model"]["name"], backend=summary["backend"], invocation=invocation, scores=scores)


def _wait(invocation: str) -> None:
    from nemo_evaluator_launcher.api.functional import get_status, kill_job_or_invocation

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while True:
            jobs = get_status([invocation])
            ended = [j for j in jobs if j["status"] in ENDED]
            payload.progress(len(ended), len(jobs))
            if lost := [j for j in jobs if j["status"] in ("not_found", "error")]:
                raise PayloadError("launcher_failed", f"{invocation}: {lost[0]['data']}", "Run again.")
            if len(ended) == len(jobs):
                break
            time.sleep(SECONDS_BETWEEN)
    except BaseException:
        kill_job_or_invocation(invocation)  # else its containers outlive this process
        raise
    for job in jobs:
        if job["status"] != "success":
            logs = Path(str(job["data"].get("output_dir", ""))) / "logs"
            raise PayloadError(
                "launcher_failed",
                f"{job['job_id']}: {job['status']}; logs in {logs}",
                "Read client_stdout.log there; without a running container engine every task fails at once.",
            )


def launcher_config(cfg: dict[str, Any], output: Path) -> dict[str, Any]:
    """The config as the Launcher takes it: without our keys, and with variables where newer versions want them."""
    made: dict[str, Any] = json.loads(json.dumps({k: v for k, v in cfg.items() if k not in STEP_KEYS}))
    target = made.get("target") or {}
    for ours in ("checkpoint", "adapter", "untrained"):
        target.pop(ours, None)
    if not target:
        made.pop("target", None)
    execution = made.setdefault("execution", {})
    execution.setdefault("output_dir", str(output))
    if importlib.util.find_spec("nemo_evaluator_launcher.common.env_vars"):
        # newer versions refuse execution.env_vars and want each value marked as a name or as itself
        for section, variables in (execution.pop("env_vars", None) or {}).items():
            marked = {name: _marked(value) for name, value in variables.items()}
            made.setdefault(section, {})["env_vars"] = marked | (made[section].get("env_vars") or {})
    return made


def _marked(value: Any) -> str:
    text = str(value)
    if text.startswith(("host:", "lit:", "runtime:")):
        return text
    return f"host:{text}" if re.fullmatch(r"[A-Za-z_]\w*", text) else f"lit:{text}"


def _check(cfg: dict[str, Any]) -> str | None:
    """Refuse what the Launcher would find late or not at all; the endpoint's key if there is one."""
    target = cfg.get("target") or {}
    endpoint = target.get("api_endpoint") or {}
    deployment = cfg.get("deployment") or {}
    deployed = deployment.get("type", "none") != "none"
    if checkpoint := target.get("checkpoint"):
        raise PayloadError(
            "two_targets" if deployed or endpoint.get("url") else "no_target",
            f"target.checkpoint ({checkpoint}) is a Hugging Face model; this config is for NeMo Evaluator Launcher, "
            "which evaluates endpoints and deployed Megatron checkpoints.",
            "Use -c tiny (or backend=lm_eval), or set target.checkpoint=null.",
        )
    if not (cfg.get("evaluation") or {}).get("tasks"):
        raise PayloadError(
            "unknown_task", "evaluation.tasks is empty.", "Name tasks: `nemo-evaluator-launcher ls tasks`."
        )
    if deployed:
        _check_megatron(deployment.get("checkpoint_path"), (cfg.get("execution") or {}).get("type") == "local")
        return None
    if not endpoint.get("url"):
        raise PayloadError("no_target", "target.api_endpoint.url is empty.", "Set NEMO_EVALUATOR_MODEL_URL or the key.")
    if not endpoint.get("model_id"):
        raise PayloadError(
            "no_model_id", "target.api_endpoint.model_id is empty.", "Set NEMO_EVALUATOR_MODEL_ID or the key."
        )
    name = endpoint.get("api_key_name")
    if name and not os.environ.get(name):
        raise PayloadError(
            "missing_api_key",
            f"target.api_endpoint.api_key_name: the environment variable {name} is not set.",
            f"export {name}=...",
        )
    return os.environ.get(name) if name else None


def _check_megatron(path: Any, here: bool) -> None:
    key = "deployment.checkpoint_path"
    if not path:
        raise PayloadError("bad_megatron_checkpoint_path", f"{key} is empty.", f"Set {key} to an iter_* directory.")
    folder = Path(str(path))
    if inner := sorted(folder.glob("iter_*")):
        raise PayloadError(
            "bad_megatron_checkpoint_path", f"{key}={path} holds {len(inner)} checkpoints.", f"Use {key}={inner[-1]}"
        )
    if here and not folder.is_dir():
        raise PayloadError("bad_megatron_checkpoint_path", f"{key}={path}: no such directory.", "Mend the path.")
