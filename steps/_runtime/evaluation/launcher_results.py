"""Reads the results.yml of every task that NeMo Evaluator ran."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from _runtime.payload import PayloadError


def collect(output: Path, cfg: dict[str, Any]) -> dict[str, Any]:
    """The summary of one Launcher run, in the form that lm_eval runs have.

    Raises:
        PayloadError: no results, or a score that is not a number.
    """
    scores = [score for path in sorted(output.rglob("results.yml")) for score in _scores(path)]
    if not scores:
        raise PayloadError("launcher_failed", f"{output}: no task left a results.yml.", "Read the tasks' logs there.")
    target = (cfg.get("target") or {}).get("api_endpoint") or {}
    deployment = cfg.get("deployment") or {}
    return {
        "version": 1,
        "model": {
            "name": target.get("model_id") or deployment.get("served_model_name") or "",
            "untrained": False,
            "parameters": None,
            "checkpoint": deployment.get("checkpoint_path"),
            "adapter": None,
            "endpoint": target.get("url"),
        },
        "backend": "nemo_evaluator",
        "baseline": None,
        "scores": scores,
        "settings": ((cfg["evaluation"].get("nemo_evaluator_config") or {}).get("config") or {}).get("params") or {},
    }


def _scores(path: Path) -> list[dict[str, Any]]:
    data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    results = data.get("results") or {}
    made = []
    for kind in ("tasks", "groups"):
        for task, entry in (results.get(kind) or {}).items():
            for metric, value in (entry.get("metrics") or {}).items():
                for name, score in (value.get("scores") or {}).items():
                    made.append(_score(path, kind, task, metric if name == metric else f"{metric}.{name}", score))
    return made


def _score(path: Path, kind: str, task: str, metric: str, score: dict[str, Any]) -> dict[str, Any]:
    value, stats = score.get("value"), score.get("stats") or {}
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PayloadError("nan_score", f"{path}: {task}: {metric} is {value}.", "Read the task's log.")
    return {
        "task": task,
        "metric": metric,
        "filter": "",
        "value": float(value),
        "stderr": stats.get("stderr"),
        "n": stats.get("count"),
        "chance": None,
        "higher_is_better": None,
        "group": kind == "groups",
    }
