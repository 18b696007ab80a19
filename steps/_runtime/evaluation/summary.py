"""What a run found, small enough to read: every score with its error, its chance level and its change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from _runtime.evaluation import compare
from _runtime.evaluation.settings import Settings
from _runtime.payload import PayloadError

NAME = "summary.json"
CHOICE_METRICS = ("acc", "acc_norm")


def build(
    settings: Settings,
    results: dict[str, Any],
    samples: dict[str, list[dict[str, Any]]],
    baseline: compare.Baseline | None,
) -> dict[str, Any]:
    """The summary of one lm-eval run.

    Raises:
        PayloadError: a task without samples, or a score that is not a number.
    """
    scores = [
        score
        for task, row in results["results"].items()
        for score in _scores(task, row, results, samples.get(task, []))
    ]
    for task, rows in samples.items():
        if any(_is_nan(answer) for row in rows for answer in row["filtered_resps"]):
            raise _nan(task, "a log-probability")
    if baseline:
        scores = [score | baseline.compared(score, samples.get(score["task"], [])) for score in scores]
    return {
        "version": 1,
        "model": _model(settings, results),
        "backend": f"lm_eval {results.get('lm_eval_version', '')}".strip(),
        "baseline": baseline.model if baseline else None,
        "scores": scores,
        "settings": {
            "num_fewshot": settings.num_fewshot,
            "limit": settings.limit,
            "apply_chat_template": settings.apply_chat_template,
            "seed": settings.seed,
        },
    }


def facts(made: dict[str, Any]) -> dict[str, Any]:
    """What the artifact's manifest keeps of a summary."""
    scores = made["scores"]
    changed = [s for s in scores if s.get("difference")]
    return {
        "model": made["model"]["name"],
        "untrained": made["model"]["untrained"],
        "backend": made["backend"],
        "samples": sum({s["task"]: s["n"] for s in scores if not s["group"]}.values()),
        "scores": {_label(s): s["value"] for s in scores},
        "stderr": {_label(s): s["stderr"] for s in scores},
        "chance": {_label(s): s["chance"] for s in scores if s["chance"] is not None},
        "difference": {_label(s): s["difference"]["mean"] for s in changed},
    }


def read_baseline(path: Path) -> compare.Baseline:
    return compare.read(path, NAME)


def _label(score: dict[str, Any]) -> str:
    return f"{score['task']}/{score['metric']}"


def _model(settings: Settings, results: dict[str, Any]) -> dict[str, Any]:
    config = results["config"]
    made: dict[str, Any] = {
        "name": "",
        "untrained": False,
        "parameters": config.get("model_num_parameters"),
        "checkpoint": None,
        "adapter": str(settings.adapter) if settings.adapter else None,
        "endpoint": None,
    }
    if settings.endpoint:
        made |= {"name": settings.endpoint.model_id, "endpoint": settings.endpoint.url}
    elif settings.checkpoint:
        made |= {
            "name": "+".join(p.name for p in (settings.checkpoint, settings.adapter) if p),
            "checkpoint": str(settings.checkpoint),
        }
    else:
        made |= {
            "name": "untrained tiny model",
            "untrained": True,
            "note": f"No checkpoint was given: random weights (seed {settings.seed}) were scored. Expect chance level.",
        }
    return made


def _scores(
    task: str, row: dict[str, Any], results: dict[str, Any], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    made = []
    for key, value in row.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise _nan(task, metric)
        stderr = row.get(f"{metric}_stderr,{filtered}")
        made.append(
            {
                "task": task,
                "metric": metric,
                "filter": filtered,
                "value": float(value),
                "stderr": float(stderr) if isinstance(stderr, (int, float)) and math.isfinite(stderr) else None,
                "n": _samples(task, results),
                "chance": _chance(metric, rows),
                "higher_is_better": results.get("higher_is_better", {}).get(task, {}).get(metric),
                "group": task in results.get("groups", {}),
            }
        )
    return made


def _is_nan(answer: Any) -> bool:
    number = answer[0] if isinstance(answer, (list, tuple)) and answer else answer
    return isinstance(number, float) and math.isnan(number)


def _nan(task: str, what: str) -> PayloadError:
    return PayloadError(
        "nan_score",
        f"{task}: {what} is not a number.",
        "The model gives no finite probabilities: check that training did not diverge, or use dtype=float32.",
    )


def _samples(task: str, results: dict[str, Any]) -> int:
    counts = results["n-samples"]
    names = [task] if task in counts else results.get("group_subtasks", {}).get(task, [])
    n = sum(_samples(t, results) if t not in counts else counts[t]["effective"] for t in names)
    if n < 1:
        raise PayloadError("no_samples", f"{task}: no sample was scored.", "Raise limit or fill the task's data.")
    return n


def _chance(metric: str, rows: list[dict[str, Any]]) -> float | None:
    """What blind guessing scores; known for multiple choice only."""
    options = [len(r["filtered_resps"]) for r in rows]
    if metric not in CHOICE_METRICS or not options or min(options) < 2:
        return None
    return sum(1 / n for n in options) / len(options)
