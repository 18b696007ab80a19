"""Pipelines: checked when they load, run in order."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.pipelines import load_pipeline
from nemotron_dagster.project import Project

CHAIN = """\
name: chain
nodes:
  copy: {step: demo/count, inputs: {training_jsonl: source}}
  source: {step: demo/rows, overrides: {n: 3}}
"""


def write(project: Path, text: str) -> Path:
    file = project / "pipelines" / "chain.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_nodes_come_in_the_order_in_which_they_run(project: Path) -> None:
    pipeline = load_pipeline(write(project, CHAIN), load_catalog(Project(project, project)))
    assert list(pipeline.nodes) == ["source", "copy"]
    assert pipeline.nodes["copy"].key == ("chain", "copy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: {a: {step: demo/rowz}}", r"node 'a': Unknown step id: demo/rowz Did you mean: demo/rows"),
        ("nodes: {a: {stpe: demo/rows}}", "node 'a': names no step"),
        ("nodes: {a: {step: demo/rows, inptus: {}}}", "unknown key 'inptus'.*Did you mean inputs"),
        ("nodez: {}", "has no `nodes:` mapping"),
        ("nodes: {a: {step: demo/count, inputs: {training_json: x}}}", "no input 'training_json'.*training_jsonl"),
        ("nodes: {a: {step: demo/count, inputs: {training_jsonl: b}}, bb: {step: demo/rows}}", "no node 'b'.*bb"),
        ("nodes: {a-b: {step: demo/rows}}", "node name 'a-b'"),
        (
            "nodes: {a: {step: demo/count, inputs: {training_jsonl: b}},"
            " b: {step: demo/count, inputs: {training_jsonl: a}}}",
            "circle",
        ),
        (
            "nodes: {a: {step: demo/count, inputs: {training_jsonl: b}}, b: {step: convert/merge_lora}}",
            "input training_jsonl accepts training_jsonl, but 'b' makes checkpoint_hf",
        ),
        (
            "nodes: {a: {step: convert/hf_to_megatron, inputs: {checkpoint_hf: b}}, b: {step: peft/automodel}}",
            "Put convert/merge_lora between them",
        ),
        ("nodes: [", r":2:1: is not valid YAML"),
    ],
)
def test_a_wrong_pipeline_is_refused_by_file_and_node(project: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)chain.yaml.*{message}"):
        load_pipeline(write(project, text), load_catalog(Project(project, project)))


def test_a_path_may_stand_for_a_node_and_is_checked_and_recorded(
    nemotron: Callable[..., subprocess.CompletedProcess[str]], project: Path
) -> None:
    (project / "data.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    write(project, "nodes: {copy: {step: demo/count, inputs: {training_jsonl: ../data.jsonl}}}")
    done = nemotron("pipelines", "run", "chain", cwd=project)
    assert done.returncode == 0, done.stderr
    [manifest] = (project / ".nemotron/artifacts/chain/copy").glob("*/artifact.json")
    assert json.loads(manifest.read_text())["inputs"] == [
        {"port": "training_jsonl", "external": True, "uri": str(project / "data.jsonl")}
    ]
    (project / "data.jsonl").write_text("nonsense\n")
    done = nemotron("pipelines", "run", "chain", cwd=project)
    assert done.returncode == 8 and "data.jsonl:1: is not JSON" in done.stderr


def test_all_type_mistakes_of_a_pipeline_are_reported_at_once(project: Path) -> None:
    text = (
        "nodes:\n  m: {step: convert/merge_lora}\n  a: {step: demo/count, inputs: {training_jsonl: m}}\n"
        "  b: {step: demo/count, inputs: {training_jsonl: m}}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_pipeline(write(project, text), load_catalog(Project(project, project)))
    assert "node 'a'" in str(error.value) and "node 'b'" in str(error.value)


def test_a_pipeline_runs_and_a_failed_node_stops_what_needs_it(
    nemotron: Callable[..., subprocess.CompletedProcess[str]], project: Path
) -> None:
    write(project, CHAIN)
    done = nemotron("pipelines", "run", "chain", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "source: raw_jsonl" in done.stdout and "copy: training_jsonl" in done.stdout
    write(project, CHAIN.replace("n: 3", "fail: true"))
    done = nemotron("pipelines", "run", "chain", cwd=project)
    assert done.returncode == 1 and "row 7 is wrong" in done.stderr
    done = nemotron("pipelines", "run", "chian", cwd=project)
    assert done.returncode == 2 and "Did you mean chain" in done.stderr
