"""examples/own_assets, without training: it loads, its rows are published, sft/automodel would take them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import REPO

Nemotron = Callable[..., subprocess.CompletedProcess[str]]
MATERIALIZE = """
import sys
import dagster as dg
from nemotron_dagster.definitions import defs
dg.Definitions.validate_loadable(defs)
job = defs.resolve_implicit_global_asset_job_def()
keys = [dg.AssetKey(["calendar", name]) for name in ("questions", "training")]
done = job.execute_in_process(asset_selection=keys, instance=dg.DagsterInstance.ephemeral())
(check,) = done.get_asset_check_evaluations()
assert done.success and check.passed, check.description
nodes = [n.name for n in defs.resolve_job_def("own_assets").nodes_in_topological_order]
assert nodes.index("calendar__training") < nodes.index("own_assets__taught"), nodes
"""


@pytest.fixture
def example(tmp_path: Path) -> Path:
    folder = tmp_path / "own_assets"
    ignored = shutil.ignore_patterns(".nemotron", "__pycache__")
    shutil.copytree(REPO / "examples/own_assets", folder, ignore=ignored)
    return folder


def test_its_rows_are_published_and_the_fine_tuning_would_take_them(
    example: Path, environ: dict[str, str], nemotron: Nemotron
) -> None:
    unready = nemotron("pipelines", "list", cwd=example)
    assert "taught  sft/automodel  <- calendar/training" in unready.stdout
    done = subprocess.run(
        [sys.executable, "-c", MATERIALIZE], cwd=example, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    fits = nemotron("artifacts", "check", "calendar/training", "--for", "sft/automodel", "-c", "tiny", cwd=example)
    assert fits.returncode == 0 and "All 336 rows of calendar/training are conversations" in fits.stdout
    shown = json.loads(nemotron("artifacts", "show", "calendar/training", "--json", cwd=example).stdout)
    assert "calendar/questions" in json.dumps(shown)


def test_an_asset_input_that_nothing_defines_is_told_with_pipeline_node_and_file(
    example: Path, nemotron: Nemotron
) -> None:
    (example / "definitions.py").unlink()
    refused = nemotron("pipelines", "run", "own_assets", cwd=example)
    assert refused.returncode == 3
    assert "input training_jsonl: no asset 'calendar/training' in" in refused.stderr and "not there" in refused.stderr


def test_the_code_in_the_documentation_runs(project: Path, environ: dict[str, str]) -> None:
    text = (REPO / "docs/projects.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (project / "definitions.py").write_text(code)
    program = """
import dagster as dg
from nemotron_dagster.definitions import defs
job = defs.resolve_implicit_global_asset_job_def()
keys = [dg.AssetKey(["my", name]) for name in ("rows", "count")]
done = job.execute_in_process(asset_selection=keys, instance=dg.DagsterInstance.ephemeral())
assert done.asset_materializations_for_node("my__count")[0].metadata["rows"].value == 1
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import dagster as dg\ndefs = dg.Definitions()\n", "lacks the steps (byob/mcq and "),
        ("x = 1\n", "has no `defs` that is a dagster.Definitions"),
        ("raise RuntimeError('no network')\n", "raises RuntimeError when it is loaded: no network"),
    ],
)
def test_a_definitions_file_that_cannot_be_used_is_told(
    project: Path, nemotron: Nemotron, text: str, message: str
) -> None:
    (project / "definitions.py").write_text(text)
    refused = nemotron("steps", "run", "demo/rows", cwd=project)
    assert refused.returncode == 3 and message in refused.stderr and "definitions.py" in refused.stderr


def test_an_asset_input_must_be_a_key(project: Path, nemotron: Nemotron) -> None:
    (project / "pipelines").mkdir()
    (project / "pipelines/p.yaml").write_text(
        "name: p\nnodes:\n  a:\n    step: demo/count\n    inputs: {training_jsonl: {asset: [1]}}\n"
    )
    refused = nemotron("pipelines", "list", cwd=project)
    assert refused.returncode == 3 and "Name a node, a path with a /, or {asset: KEY}." in refused.stderr
