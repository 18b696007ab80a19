"""What a person wants to see of an artifact: pictures beside it, and the text of its Dagster metadata.

What is particular to a type comes from its module; what a payload reported (a training curve, rows that its filters
removed) is shown whatever the type.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts import pictures
from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.artifacts.markdown import table
from nemotron_dagster.artifacts.registry import artifact_type

REPORT = "report"
_REPORTED = ("rows_in", "steps", "final_loss")
_RATES = ("rows_per_second", "tokens_per_second")  # nothing, of a run that found all its work done


def draw(
    type_name: str,
    output: Path,
    facts: Mapping[str, Any],
    reported: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Write the artifact's pictures and its metrics below ``output/report``; the pictures' relative paths."""
    report = output / REPORT
    existed = report.is_dir()
    report.mkdir(exist_ok=True)
    drawn: list[str] = []
    curve = training_curve(messages)
    if curve:
        columns = list(dict.fromkeys(key for row in curve for key in row))
        with open(report / "metrics.csv", "w", newline="", encoding="utf-8") as out:
            rows = csv.DictWriter(out, columns)
            rows.writeheader()
            rows.writerows(curve)
        if len([row for row in curve if "loss" in row]) > 1:
            drawn.append(pictures.loss_curve(curve, report / "loss.png"))
    if reported.get("removed") and isinstance(facts.get("rows"), int):
        drawn.append(pictures.attrition(reported["removed"], facts["rows"], report / "attrition.png"))
    drawn += artifact_type(type_name).draw(facts, report)
    if not existed and not any(report.iterdir()):
        report.rmdir()
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
    return headline(ref.type, ref.manifest.facts, ref.manifest.reported)


def headline(type_name: str, facts: Mapping[str, Any], reported: Mapping[str, Any]) -> dict[str, str | int | float]:
    """The headline figures of what was validated as a type."""
    out = artifact_type(type_name).figures(facts)
    for key in _REPORTED:
        if isinstance(reported.get(key), int | float | str):
            out.setdefault(key, reported[key])
    out.update({key: reported[key] for key in _RATES if isinstance(reported.get(key), int | float) and reported[key]})
    return out


def tables(ref: ArtifactRef) -> dict[str, str]:
    """Title -> Markdown table: the type's own, and what each filter removed."""
    out = artifact_type(ref.type).tables(ref.manifest.facts)
    if ref.manifest.reported.get("removed"):
        out["filters"] = table(("filter", "removed"), ref.manifest.reported["removed"].items())
    return out


def warnings(ref: ArtifactRef) -> list[str]:
    """What the validation and the payload did not like, but let pass."""
    found = [*ref.manifest.facts.get("warnings", ()), *ref.manifest.reported.get("warnings", ())]
    return list(dict.fromkeys(str(w) for w in found))


def samples(ref: ArtifactRef) -> str:
    """A few entries as Markdown."""
    return artifact_type(ref.type).samples(ref.manifest.facts)


def columns(ref: ArtifactRef) -> list[tuple[str, str, str]]:
    """Name, type and description of each column."""
    return artifact_type(ref.type).columns(ref.manifest.facts)
