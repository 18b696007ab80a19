"""``eval_results``: lm-evaluation-harness or NeMo Evaluator output, with our ``summary.json`` beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from nemotron_dagster.errors import ArtifactError


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
