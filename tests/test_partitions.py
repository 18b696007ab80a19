"""Steps with partitions: an own asset feeds them partition by partition; what a step cannot do is refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DEFINITIONS = """
import dagster as dg
from nemotron_dagster.dagster.definitions import build_definitions
from nemotron_dagster.project import find_project

DAYS = dg.StaticPartitionsDefinition(["mon", "tue"])


@dg.asset(key=["own", "days"], io_manager_key="training_jsonl", partitions_def=DAYS)
def days(context) -> list:
    said = [{"role": "user", "content": context.partition_key}, {"role": "assistant", "content": "b"}]
    return [{"messages": said}]


ours = build_definitions(find_project(), {"p/copied": DAYS, "p/again": DAYS, "demo/rows": DAYS})
defs = dg.Definitions.merge(ours, dg.Definitions(assets=[days]))
"""
PIPELINE = """
name: p
nodes:
  copied: {step: demo/count, inputs: {training_jsonl: {asset: own/days}}}
  again: {step: demo/count, inputs: {training_jsonl: copied}}
  whole: {step: demo/count, inputs: {training_jsonl: {asset: own/days}}}
"""
RUN = """
import json, sys
import dagster as dg
from nemotron_dagster.dagster.definitions import project_definitions
from nemotron_dagster.project import find_project

defs = project_definitions(find_project())
told = []
with dg.DagsterInstance.ephemeral() as instance:
    for names, options in json.loads(sys.argv[1]):
        keys = [dg.AssetKey(name.split("/")) for name in names]
        job = defs.resolve_implicit_global_asset_job_def()
        done = job.execute_in_process(asset_selection=keys, instance=instance, raise_on_error=False, **options)
        failures = [e.event_specific_data.error_display_string for e in done.all_events if e.is_step_failure]
        told.append(failures[0] if failures else "ok")
print(json.dumps(told))
"""
MON, TUE = {"partition_key": "mon"}, {"partition_key": "tue"}
BOTH = {"tags": {"dagster/asset_partition_range_start": "mon", "dagster/asset_partition_range_end": "tue"}}


@pytest.fixture
def partitioned(project: Path) -> Path:
    (project / "definitions.py").write_text(DEFINITIONS)
    (project / "pipelines").mkdir()
    (project / "pipelines/p.yaml").write_text(PIPELINE)
    return project


@pytest.fixture
def materialize(partitioned: Path, environ: dict[str, str]) -> Callable[..., list[str]]:
    def run(*runs: tuple[list[str], dict[str, Any]]) -> list[str]:
        command = [sys.executable, "-c", RUN, json.dumps(runs)]
        done = subprocess.run(command, cwd=partitioned, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def current(project: Path, asset: str, partition: str) -> tuple[dict[str, Any], str]:
    """The manifest of a partition's current artifact, and its rows."""
    folder = project / ".nemotron/artifacts" / asset / f"partition={partition}"
    version = folder / json.loads((folder / "latest.json").read_text())["uri"]
    rows = "".join(p.read_text() for p in sorted(version.rglob("*.jsonl")))
    return json.loads((version / "artifact.json").read_text()), rows


def test_a_partition_of_an_own_asset_goes_through_steps_with_the_same_partitions(
    partitioned: Path, materialize: Callable[..., list[str]]
) -> None:
    chain = ["own/days", "p/copied", "p/again"]
    assert materialize((chain, MON), (chain, TUE)) == ["ok", "ok"]
    for day, other in (("mon", "tue"), ("tue", "mon")):
        for asset, source in (("p/copied", "own/days"), ("p/again", "p/copied")):
            manifest, rows = current(partitioned, asset, day)
            assert manifest["partition"] == day and day in rows and other not in rows
            (read,) = manifest["inputs"]
            assert read["content"] == current(partitioned, source, day)[0]["content"]


def test_what_a_step_cannot_make_of_partitions_is_refused_before_a_job_starts(
    partitioned: Path, materialize: Callable[..., list[str]]
) -> None:
    lacking, ok, _, several, alone, all_of_them = materialize(
        (["p/copied"], MON),
        (["own/days"], MON),
        (["own/days"], TUE),
        (["p/copied"], BOTH),
        (["demo/rows"], {}),
        (["p/whole"], {}),
    )
    assert "copied: own/days, partition mon, was never materialized" in lacking and ok == "ok"
    assert "copied: this run makes 2 partitions (mon to tue)" in several and "a run per partition" in several
    assert "demo/rows: has partitions, and this run names none" in alone
    assert "whole: input training_jsonl is 2 partitions" in all_of_them
    assert not (partitioned / ".nemotron/jobs").exists()


def test_partitions_of_no_asset_are_refused(partitioned: Path, nemotron: Callable[..., Any]) -> None:
    file = partitioned / "definitions.py"
    file.write_text(file.read_text().replace("p/again", "p/agan"))
    refused = nemotron("pipelines", "run", "p", cwd=partitioned)
    assert refused.returncode == 3 and "no step or pipeline node has that key. Did you mean p/again" in refused.stderr
