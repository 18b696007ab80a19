"""What a person wants to see of an artifact: pictures beside it, and the text of its Dagster metadata."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts import pictures
from nemotron_dagster.artifacts.manifest import ArtifactRef

REPORT = "report"


def draw(
    type_name: str,
    output: Path,
    facts: Mapping[str, Any],
    reported: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Write the artifact's pictures and its metrics below ``output/report``; the pictures' relative paths."""
    report = output / REPORT
    drawn: list[str] = []
    curve = training_curve(messages)
    if curve:
        report.mkdir(exist_ok=True)
        columns = list(dict.fromkeys(key for row in curve for key in row))
        with open(report / "metrics.csv", "w", newline="", encoding="utf-8") as out:
            rows = csv.DictWriter(out, columns)
            rows.writeheader()
            rows.writerows(curve)
        if len([row for row in curve if "loss" in row]) > 1:
            drawn.append(pictures.loss_curve(curve, report / "loss.png"))
    if type_name == "eval_results":
        report.mkdir(exist_ok=True)
        drawn.append(pictures.scores(facts, report / "scores.png"))
    if reported.get("removed"):
        report.mkdir(exist_ok=True)
        drawn.append(pictures.attrition(reported["removed"], facts["rows"], report / "attrition.png"))
    elif "lengths" in facts:
        report.mkdir(exist_ok=True)
        drawn.append(pictures.lengths(facts["lengths"], report / "lengths.png"))
    return [f"{REPORT}/{name}" for name in drawn]


def training_curve(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per training step, the last report of a step winning (a resumed run repeats some)."""
    rows: dict[int, dict[str, Any]] = {}
    for m in messages:
        step, metrics = m.get("step"), m.get("metrics")
        if (
            m.get("type") == "progress"
            and isinstance(step, int)
            and metrics
            and ("loss" in metrics or "val_loss" in metrics)
        ):
            rows.setdefault(step, {"step": step}).update(metrics)
    return [rows[k] for k in sorted(rows)]


def summary(ref: ArtifactRef) -> dict[str, str | int | float]:
    """The artifact's headline figures, in the order a person reads them."""
    facts = ref.manifest.facts
    figures = {**ref.manifest.reported, **facts}
    out: dict[str, str | int | float] = {}
    for key in ("rows", "rows_in", "files", "parameters", "architecture", "context_length", "steps", "final_loss"):
        if isinstance(figures.get(key), int | float | str):
            out[key] = figures[key]
    for score in facts.get("scores", []):
        name = f"{score['task']} {score['metric']}"
        if score.get("baseline"):
            out[f"{name} before"] = round(float(score["baseline"]["value"]), 4)
        out[name] = round(float(score["value"]), 4)
    return out


def table(facts: Mapping[str, Any], reported: Mapping[str, Any]) -> str:
    """Scores, or what each filter removed, as a Markdown table; empty where there is neither."""
    if facts.get("scores"):
        compared = any(s.get("baseline") for s in facts["scores"])
        head = f"| task | metric | {'before | change | ' if compared else ''}value | ± stderr | samples | chance |"
        lines = [head, "|" + "---|" * (head.count("|") - 1)]
        for s in facts["scores"]:
            before, change = s.get("baseline") or {}, s.get("difference") or {}
            cells = [s["task"], s["metric"]]
            cells += [_number(before.get("value")), _signed(change)] if compared else []
            cells += [_number(s["value"]), _number(s.get("stderr")), str(s.get("n")), _number(s.get("chance"))]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)
    if reported.get("removed"):
        rows = "\n".join(f"| {name} | {count} |" for name, count in reported["removed"].items())
        return f"| filter | removed |\n|---|---|\n{rows}"
    return ""


def samples(facts: Mapping[str, Any], limit: int = 3) -> str:
    """A few rows as a Markdown code block, long ones cut."""
    rows = facts.get("samples") or []
    shown = [json.dumps(r, ensure_ascii=False) for r in rows[:limit]]
    return (
        "```json\n" + "\n".join(s[:300] + ("…" if len(s) > 300 else "") for s in shown).replace("```", "'''") + "\n```"
        if shown
        else ""
    )


def _signed(change: Mapping[str, Any]) -> str:
    """A paired difference with its standard error, ``+0.996 ± 0.004``."""
    if not isinstance(change.get("mean"), int | float):
        return "–"
    error = change.get("stderr")
    return f"{change['mean']:+.3f}" + (f" ± {error:.3f}" if isinstance(error, int | float) else "")


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"
