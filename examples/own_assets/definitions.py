"""Assets of one's own in one graph with the steps: rows made in Python feed `sft/automodel`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from nemotron_dagster.artifacts import ArtifactRef, Rows, rows
from nemotron_dagster.artifacts.store import artifact_root
from nemotron_dagster.dagster.checks import verify_check
from nemotron_dagster.dagster.definitions import build_definitions
from nemotron_dagster.project import find_project

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HELD_OUT = 5  # every fifth number of days is kept for an evaluation

project = find_project(Path(__file__).parent)


@dg.asset(key=["calendar", "questions"], group_name="calendar", io_manager_key="raw_jsonl")
@rows
def questions() -> Iterator[dict[str, Any]]:
    """Which day it will be: 7 days, 60 numbers of days later. Rows stream to disk; none is kept in memory."""
    for start, day in enumerate(DAYS):
        for later in range(1, 61):
            yield {
                "days": later,
                "messages": [
                    {"role": "user", "content": f"Today is {day}. Which day is it {later} days later?"},
                    {"role": "assistant", "content": DAYS[(start + later) % 7]},
                ],
            }


@dg.asset(
    key=["calendar", "training"],
    ins={"questions": dg.AssetIn(key=["calendar", "questions"])},
    group_name="calendar",
    io_manager_key="training_jsonl",
)
def training(questions: Rows) -> Rows:
    """The questions that may be trained on: one upstream row at a time, one row out."""
    return Rows({"messages": row["messages"]} for row in questions if row["days"] % HELD_OUT)


@dg.asset(
    key=["calendar", "card"],
    ins={"taught": dg.AssetIn(key=["own_assets", "taught"])},
    group_name="calendar",
)
def card(taught: ArtifactRef) -> dg.MaterializeResult:
    """What was taught to whom: an asset of one's own behind a step, which gets the handle of the step's artifact."""
    facts, inputs = taught.manifest.facts, taught.manifest.inputs
    return dg.MaterializeResult(
        metadata={
            "parameters": facts["parameters"],
            "trained_on": ", ".join("/".join(i["asset"]) for i in inputs if i.get("asset")),
            "checkpoint": dg.MetadataValue.path(str(taught.path)),
        }
    )


defs = dg.Definitions.merge(
    build_definitions(project),
    dg.Definitions(
        assets=[questions, training, card],
        asset_checks=[verify_check(training, artifact_root(project))],
    ),
)
