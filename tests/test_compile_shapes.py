"""Compile the shapes that public configs have; bind inputs and outputs; find things where the job runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import add_step
from shapes import MOUNT, MOVED, SCRIPT, SHAPES, TOML, Shape

from nemotron_dagster.catalog import Step, load_catalog
from nemotron_dagster.config.compile import JobSpec, bind_output, compile_job
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.project import Project


@pytest.fixture
def shape(project: Path, monkeypatch: pytest.MonkeyPatch) -> Step:
    for name in ("NEMO_RUN_DIR", "LOG_PROJECT", "LOG_ENTITY", "OUT", "PACKED", "CACHE_HOME", "NODE_NAME", "TEAM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(project)
    add_step(project, "demo/shape", TOML, SCRIPT, default="n: 1\n")
    return load_catalog(Project(project, project)).find("demo/shape")


def compiled(step: Step, case: Shape, name: str = "shape") -> JobSpec:
    assert step.runspec
    (step.runspec.config_dir / f"{name}.yaml").write_text(case.text, encoding="utf-8")
    return compile_job(
        step,
        name,
        case.overrides,
        profile=case.profile,
        mode="run" if case.profile else "local",
        environment=Environment(None, case.tables),
        relocation=MOVED if case.moved else None,
    )


def with_cwd(value: Any, cwd: Path) -> Any:
    if isinstance(value, dict):
        return {k: with_cwd(v, cwd) for k, v in value.items()}
    return value.replace("{cwd}", str(cwd)) if isinstance(value, str) else value


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_compiles_to_exactly_this(name: str, shape: Step, project: Path) -> None:
    case = SHAPES[name]
    spec = compiled(shape, case)
    assert spec.train == with_cwd(case.train, project)
    assert {k: spec.run[k] for k in case.run} == case.run


@pytest.mark.parametrize("name", SHAPES)
def test_the_job_as_written_is_the_config_and_run_with_nothing_resolved(name: str, shape: Step) -> None:
    case = SHAPES[name]
    job = compiled(shape, case).job
    assert job["run"]["cli"] == {
        "argv": list(case.overrides),
        "dotlist": list(case.overrides),
        "passthrough": [],
        "config": "shape",
    }
    assert job["run"]["recipe"] == {"name": "steps/demo/shape", "script": str(shape.script)}
    assert (job["run"]["mode"], job["run"]["profile"]) == ("run" if case.profile else "local", case.profile)
    if name == "checkpoint-on-a-cluster":
        assert job["data"] == "${oc.env:PWD}/data" and job["run"]["env"]["mounts"][0] == MOUNT


def test_everything_that_lacks_a_value_is_named_at_once(shape: Step) -> None:
    assert shape.runspec
    folder = shape.runspec.config_dir
    (folder / "ask.yaml").write_text("b: ???\nlist: [{q: '???'}]\nrun: {env: {account: '???'}}\noutput_dir: ???\n")
    with pytest.raises(ConfigError, match=r"b, list\[0\]\.q, run\.env\.account must be given\. Add b=VALUE list"):
        compile_job(shape, "ask")
    (folder / "vars.yaml").write_text("a: ${oc.env:NEVER_A}\nb:\n  c: x/${oc.env:NEVER_B}\n  d: ${oc.env:NEVER_A}\n")
    with pytest.raises(ConfigError) as e:
        compile_job(shape, "vars")
    assert str(e.value).startswith(
        f"{folder / 'vars.yaml'}:1:1: a, b.d: environment variable NEVER_A is not set; "
        "b.c: environment variable NEVER_B is not set. Export NEVER_A, set run.env.env_vars.NEVER_A=VALUE"
    )


def test_an_output_key_and_all_that_follows_it_go_where_the_run_writes(shape: Step) -> None:
    case = Shape("output_dir: ./out\nlogs: ${output_dir}/logs\ndeep: {x: ['${logs}/a', 1]}\nother: ./out/b\n", {})
    spec = compiled(shape, case)
    assert spec.train["deep"]["x"][0] == "./out/logs/a"
    bound = bind_output(spec, shape.produces[0], Path("/staged"))
    assert bound == {
        "output_dir": "/staged",
        "logs": "/staged/logs",
        "deep": {"x": ["/staged/logs/a", 1]},
        "other": "./out/b",
    }
    assert compile_job(shape, "shape", ["output_dir=/x"]).digest == spec.digest


def test_an_output_key_needs_no_variable(shape: Step) -> None:
    spec = compiled(shape, Shape("output_dir: ${oc.env:NEVER_SET}/x\nlogs: ${output_dir}/logs\n", {}))
    assert spec.train["output_dir"] is None
    assert bind_output(spec, shape.produces[0], Path("/staged")) == {"output_dir": "/staged", "logs": "/staged/logs"}


def test_one_artifact_fills_several_keys_where_it_has_the_parts(shape: Step, tmp_path: Path) -> None:
    case = Shape("data: {path: null}\nvalidation: {path: own}\n", {})
    compiled(shape, case)
    (tmp_path / "splits" / "train").mkdir(parents=True)
    up = {"training_jsonl": str(tmp_path)}
    assert compile_job(shape, "shape", inputs=up).train == {
        "data": {"path": f"{tmp_path}/splits/train"},
        "validation": {"path": "own"},
    }
    (tmp_path / "splits" / "valid").mkdir()
    assert compile_job(shape, "shape", inputs=up).train["validation"] == {"path": f"{tmp_path}/splits/valid"}
    assert compile_job(shape, "shape", ["validation.path=mine"], inputs=up).train["validation"] == {"path": "mine"}
    spec = compile_job(shape, "shape", ["data.path=/mine"], inputs=up)
    assert (spec.bound, spec.external) == ((), {"training_jsonl": "/mine"})
    assert spec.train["validation"] == {"path": "own"}


def test_only_paths_below_the_project_move(shape: Step, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = f"{project}2/x"
    text = f"a: {project}/data\nb: {beside}\nc: {project}\nd: /lustre/x\ne: ['{project}/y']\nf: ${{oc.env:MINE}}\n"
    monkeypatch.setenv("MINE", f"{project}/mine")
    spec = compiled(shape, Shape(text, {}, moved=True))
    code = MOVED.code
    assert spec.train == {
        "a": f"{code}/data",
        "b": beside,
        "c": code,
        "d": "/lustre/x",
        "e": [f"{code}/y"],
        "f": f"{code}/mine",
    }


def test_a_users_relative_file_is_found_on_the_target_and_checked_here(shape: Step, project: Path) -> None:
    compiled(shape, Shape("data: {path: null}\n", {}))
    (project / "mine.jsonl").touch()
    spec = compile_job(shape, "shape", ["data.path=./mine.jsonl"], relocation=MOVED)
    assert spec.train["data"]["path"] == "/nemo_run/code/mine.jsonl"
    assert spec.external == {"training_jsonl": f"{project}/mine.jsonl"}


def test_the_steps_own_folder_is_named_by_the_job_where_the_code_moves(shape: Step) -> None:
    case = Shape("x: ${oc.env:NEMOTRON_STEP_DIR}/data\n", {})
    assert compiled(shape, case).train["x"] == f"{shape.directory.resolve()}/data"
    case.moved = True
    assert compiled(shape, case).train["x"] == "${oc.env:NEMOTRON_STEP_DIR}/data"


def test_a_variable_is_looked_up_where_the_job_will_see_it(shape: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Shape("v: ${oc.env:SEEN,default}\nrun: {env: {env_vars: {SEEN: '${oc.env:UPSTREAM}'}}}\n", {})
    monkeypatch.setenv("SEEN", "submitter")
    monkeypatch.setenv("UPSTREAM", "job")
    assert compiled(shape, case).train["v"] == "job"
    case.text = "v: ${oc.env:SEEN,default}\n"
    assert compiled(shape, case).train["v"] == "submitter"
    monkeypatch.delenv("SEEN")
    assert compiled(shape, case).train["v"] == "default"
    case.text, case.profile, case.moved = "v: ${oc.env:HF_HOME}\nw: x-${oc.env:NEMO_RUN_DIR}\n", "cluster", True
    monkeypatch.setenv("HF_HOME", "/home/me")
    assert compiled(shape, case).train == {"v": "/lustre/jobs/hf", "w": "x-/lustre/jobs"}


def test_compiling_twice_in_one_process_sees_the_new_environment(shape: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Shape("v: ${oc.env:SEEN}\n", {})
    for value in ("1", "2"):
        monkeypatch.setenv("SEEN", value)
        assert compiled(shape, case).train["v"] == value


def test_the_job_as_written_is_not_part_of_the_digest(shape: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEN", "1")
    one = compiled(shape, Shape("v: '1'\n", {}))
    other = compiled(shape, Shape("v: ${oc.env:SEEN}\n", {}))
    assert one.job != other.job and one.digest == other.digest
