"""``eval_results``: lm-evaluation-harness or NeMo Evaluator output, with our ``summary.json`` beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_dagster.errors import ArtifactError

LAYOUT = "A directory with summary.json (the scores) and what the evaluation harness wrote beside it."


def validate(path: Path) -> dict[str, Any]:
    """Check that there are scores, finite ones, over at least one sample.

    Returns:
        Facts: model, backend, scores (one mapping per task and metric: task, metric, value, stderr, n, chance and,
        where an earlier run was compared, baseline and difference), baseline (that run's model).

    Raises:
        ArtifactError: no results, or a score that is no number.
    """
    file = path / "summary.json"
    if not file.is_file():
        raise ArtifactError(f"{path}: has no summary.json. Name the output directory of eval/model_eval.")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        scores = summary["scores"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ArtifactError(f"{file}: is not an evaluation summary ({e}). Run eval/model_eval again.") from e
    if not scores:
        raise ArtifactError(f"{file}: holds no scores. Name at least one task.")
    for s in scores:
        value, n = s.get("value"), s.get("n")
        where = f"{file}: {s.get('task')}/{s.get('metric')}"
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ArtifactError(f"{where} is {value!r}, not a finite number. Run the evaluation again.")
        if not isinstance(n, int) or n < 1:
            raise ArtifactError(f"{where} was scored on {n!r} samples. Raise `limit` or check the task's data.")
    return {k: summary[k] for k in ("model", "backend", "scores", "baseline") if k in summary}


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Each score, and what it was before where an earlier run was compared."""
    out: dict[str, int | float | str] = {}
    for score in facts.get("scores", []):
        name = f"{score['task']} {score['metric']}"
        if score.get("baseline"):
            out[f"{name} before"] = round(float(score["baseline"]["value"]), 4)
        out[name] = round(float(score["value"]), 4)
    return out


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """Scores with their errors; the change where an earlier run was compared."""
    if not facts.get("scores"):
        return {}
    compared = any(s.get("baseline") for s in facts["scores"])
    head = f"| task | metric | {'before | change | ' if compared else ''}value | ± stderr | samples | chance |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for s in facts["scores"]:
        before, change = s.get("baseline") or {}, s.get("difference") or {}
        cells = [s["task"], s["metric"]]
        cells += [_number(before.get("value")), _signed(change)] if compared else []
        cells += [_number(s["value"]), _number(s.get("stderr")), str(s.get("n")), _number(s.get("chance"))]
        lines.append("| " + " | ".join(cells) + " |")
    return {"scores": "\n".join(lines)}


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """The scores as bars."""
    from nemotron_dagster.artifacts import pictures

    return [pictures.scores(facts, folder / "scores.png")]


def _signed(change: Mapping[str, Any]) -> str:
    """A paired difference with its standard error, ``+0.996 ± 0.004``."""
    if not isinstance(change.get("mean"), int | float):
        return "–"
    error = change.get("stderr")
    return f"{change['mean']:+.3f}" + (f" ± {error:.3f}" if isinstance(error, int | float) else "")


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"
