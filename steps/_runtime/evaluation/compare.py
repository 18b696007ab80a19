"""Compares a run with an earlier one, sample by sample where both kept their samples."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _runtime.payload import PayloadError


@dataclass(frozen=True)
class Baseline:
    """An earlier run's scores, and where its samples are."""

    folder: Path
    model: str
    scores: dict[tuple[str, str, str], dict[str, Any]]

    def compared(self, score: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The earlier score of the same task and metric, and the mean change over the samples both runs scored."""
        before = self.scores.get((score["task"], score["metric"], score["filter"]))
        if before is None:
            return {"baseline": None, "difference": None}
        earlier = _values(self._samples(score["task"]), score)
        later = _values(rows, score)
        return {
            "baseline": {k: before.get(k) for k in ("value", "stderr", "n")},
            "difference": _paired([later[k] - earlier[k] for k in later if k in earlier]),
        }

    def _samples(self, task: str) -> list[dict[str, Any]]:
        name = re.compile(rf"samples_{re.escape(task)}_\d{{4}}-.*\.jsonl")
        files = sorted(p for p in self.folder.rglob("samples_*.jsonl") if name.fullmatch(p.name))
        if not files:
            return []
        lines = files[-1].read_text(encoding="utf-8").splitlines()
        try:
            return [json.loads(line) for line in lines]
        except ValueError as e:
            raise _invalid(files[-1], str(e)) from e


def read(path: Path, summary_name: str) -> Baseline:
    """An eval_results directory: ours, or what lm-eval itself wrote.

    Raises:
        PayloadError: there are no readable results.
    """
    folder = path if path.is_dir() else path.parent
    summary = folder / summary_name
    newest = [summary] if summary.is_file() else sorted(folder.rglob("results_*.json"), key=lambda p: p.name)[-1:]
    if not newest:
        raise _invalid(path, f"no {summary_name} and no results_*.json")
    try:
        data = json.loads(newest[0].read_text(encoding="utf-8"))
        rows = data["scores"] if newest[0] == summary else _lm_eval_rows(data)
        scores = {(r["task"], r["metric"], r["filter"]): r for r in rows}
        name = data["model"]["name"] if newest[0] == summary else str(data.get("model_name", folder.name))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise _invalid(newest[0], f"not a results file: {e!r}") from e
    return Baseline(newest[0].parent, name, scores)


def _lm_eval_rows(data: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for task, row in data["results"].items():
        for key, value in row.items():
            metric, comma, filtered = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                stderr = row.get(f"{metric}_stderr,{filtered}")
                n = data.get("n-samples", {}).get(task, {}).get("effective")
                stderr = stderr if isinstance(stderr, (int, float)) else None
                rows.append(
                    {"task": task, "metric": metric, "filter": filtered, "value": value, "stderr": stderr, "n": n}
                )
    return rows


def _values(rows: list[dict[str, Any]], score: dict[str, Any]) -> dict[tuple[Any, Any], float]:
    """The metric of every sample, by the sample's number and content; empty where it is no plain mean."""
    wanted = [r for r in rows if r.get("filter") == score["filter"]]
    values = {(r.get("doc_id"), r.get("doc_hash")): r.get(score["metric"]) for r in wanted}
    return {k: float(v) for k, v in values.items() if isinstance(v, (int, float))}


def _paired(changes: list[float]) -> dict[str, Any] | None:
    if not changes:
        return None
    error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else None
    return {"mean": statistics.fmean(changes), "stderr": error, "n": len(changes)}


def _invalid(path: Path, why: str) -> PayloadError:
    return PayloadError("bad_baseline", f"baseline: {path}: {why}.", "Give the output directory of an earlier run.")
