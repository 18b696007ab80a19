"""``nemotron env list | show | check | schema``, and what profiles do to ``steps run``, as processes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
TOKEN = "hf_" + "x9Y8" * 6
ENV = f"""\
[wandb]
project = "p"

[base]
executor = "slurm"
account = "a"
partition = "p"
remote_job_dir = "${{workspace}}/jobs"
workspace = "${{oc.env:WHERE_IT_LIES}}"
gpus_per_node = 8

[base.env_vars]
HF_TOKEN = "{TOKEN}"
NGC_API_KEY = "${{oc.env:NGC_API_KEY,''}}"

[sft]
extends = "base"
nodes = 2
container_image = "nvcr.io/nvidia/nemo-automodel:26.04"

[typo]
extends = "base"
partitoin = "q"
nodes = "many"

[orphan]
extends = "gone"
"""


@pytest.fixture
def env(project: Path) -> Path:
    (project / "env.toml").write_text(ENV, encoding="utf-8")
    return project


def test_list_names_every_profile_its_place_and_what_is_wrong_with_its_parent(nemotron: Run, env: Path) -> None:
    done = nemotron("env", "list", cwd=env)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert list(lines) == ["PROFILE", "base", "sft", "typo", "orphan", "local"]
    assert "slurm" in lines["sft"] and "2 x 8" in lines["sft"] and f"{env}/env.toml:16:" in lines["sft"]
    assert "unknown profile 'gone'" in lines["orphan"]
    rows = {r["profile"]: r for r in json.loads(nemotron("env", "list", "--json", cwd=env).stdout)}
    assert rows["sft"]["extends"] == "base" and rows["sft"]["gpus_per_node"] == 8 and "error" in rows["orphan"]
    assert TOKEN not in done.stdout + done.stderr + json.dumps(rows)


def test_show_prints_the_chain_as_written_names_what_is_unset_and_hides_secrets(nemotron: Run, env: Path) -> None:
    done = nemotron("env", "show", "sft", cwd=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("[sft]") < done.stdout.index("[base]") < done.stdout.index("[base.env_vars]")
    assert 'workspace = "${oc.env:WHERE_IT_LIES}"  # variable WHERE_IT_LIES is not set' in done.stdout
    assert 'HF_TOKEN = "******"' in done.stdout and "NGC_API_KEY = \"${oc.env:NGC_API_KEY,''}\"" in done.stdout
    data = json.loads(nemotron("env", "show", "sft", "--json", cwd=env).stdout)
    assert [c["profile"] for c in data["chain"]] == ["sft", "base"]
    assert data["origins"]["nodes"] == "sft" and data["origins"]["env_vars.HF_TOKEN"] == "base"
    assert data["unresolved"]["workspace"] == "variable WHERE_IT_LIES is not set"
    assert TOKEN not in done.stdout + done.stderr + json.dumps(data)


def test_show_resolved_gives_values_with_their_origin_and_refuses_what_is_unset(nemotron: Run, env: Path) -> None:
    done = nemotron("env", "show", "sft", "--resolved", cwd=env, WHERE_IT_LIES="/data", NGC_API_KEY="planted-value")
    assert done.returncode == 0, done.stderr
    assert 'remote_job_dir = "/data/jobs"  # from base' in done.stdout and "nodes = 2  # from sft" in done.stdout
    assert TOKEN not in done.stdout + done.stderr and "planted-value" not in done.stdout
    assert "Warning: " in done.stderr and "env.toml:13:1" in done.stderr
    done = nemotron("env", "show", "sft", "--resolved", cwd=env)
    assert done.returncode == 4 and "WHERE_IT_LIES" in done.stderr and "Traceback" not in done.stderr


def test_check_prints_every_finding_once_with_its_line_and_exits_with_4(nemotron: Run, env: Path) -> None:
    done = nemotron("env", "check", cwd=env)
    assert done.returncode == 4
    lines = done.stdout.splitlines()
    assert sum("error" in line for line in lines) == 3
    assert any(line.startswith(f"{env}/env.toml:24:1: error: [typo]: nodes = 'many'") for line in lines)
    assert any("env.toml:23:1: error: [typo]: slurm has no key 'partitoin'" in line for line in lines)
    assert any("env.toml:27:1: error: [orphan]: unknown profile 'gone'" in line for line in lines)
    shared = [line for line in lines if "holds a secret in clear text" in line]
    assert len(shared) == 1 and "[base] and 2 more" in shared[0]
    assert TOKEN not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("4 profiles: 3 errors,")


def test_check_of_a_good_profile_against_a_step_warns_and_exits_with_0(nemotron: Run, env: Path) -> None:
    done = nemotron("env", "check", "sft", "--step", "sft/automodel", "-c", "default", "--json", cwd=env)
    findings = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert {f["level"] for f in findings} == {"warning"} and {f["profile"] for f in findings} == {"sft"}
    done = nemotron("env", "check", "sft", "--step", "rl/nemo_rl/rlhf", cwd=env)
    assert done.returncode == 0 and "4 are recommended" in done.stdout
    done = nemotron("env", "check", "sft", "-c", "default", cwd=env)
    assert done.returncode == 2 and "--step" in done.stderr


def test_check_tells_a_wrong_system_section_too(nemotron: Run, project: Path) -> None:
    (project / "env.toml").write_text('nodes = 2\n[wandb]\nprojct = "p"\n[a]\nexecutor = "local"\n')
    done = nemotron("env", "check", cwd=project)
    assert done.returncode == 4 and len(done.stdout.splitlines()) == 2
    assert "env.toml:1:1: error: [nodes]" in done.stdout and "Did you mean project" in done.stdout


def test_without_env_toml_there_is_local_and_nothing_to_check(nemotron: Run, project: Path) -> None:
    assert nemotron("env", "list", cwd=project).stdout.splitlines()[1].split()[:2] == ["local", "local"]
    done = nemotron("env", "check", cwd=project)
    assert done.returncode == 0 and "env/env_toml" in done.stderr
    assert nemotron("env", "check", "local", cwd=project).returncode == 0
    done = nemotron("steps", "run", "demo/rows", "-r", "local", "-d", cwd=project)
    assert done.returncode == 0 and "executor: local" in done.stdout, done.stderr


def test_schema_is_printed_or_kept_in_the_project(nemotron: Run, project: Path) -> None:
    printed = nemotron("env", "schema", cwd=project)
    jsonschema.Draft7Validator.check_schema(json.loads(printed.stdout))
    assert not (project / "env").exists()
    done = nemotron("env", "schema", "--write", cwd=project)
    assert done.returncode == 0 and (project / "env" / "env.schema.json").read_text() == printed.stdout
    assert nemotron("env", "schema", "--markdown", cwd=project).stdout.startswith("### Every executor\n")


def test_a_system_section_is_no_profile_to_run_with(nemotron: Run, env: Path) -> None:
    done = nemotron("steps", "run", "demo/rows", "-r", "wandb", "-d", cwd=env)
    assert done.returncode == 4 and "[wandb] is a system section" in done.stderr and "Traceback" not in done.stderr


def test_a_secret_written_down_reaches_the_job_and_nothing_else(nemotron: Run, project: Path) -> None:
    (project / "env.toml").write_text(f'[p]\nexecutor = "local"\n[p.env_vars]\nPLANTED_TOKEN = "{TOKEN}"\n')
    done = nemotron("steps", "run", "demo/rows", "-r", "p", cwd=project)
    assert done.returncode == 0 and "secret is set" in done.stdout, done.stderr
    assert "env.toml:4:1" in done.stderr and TOKEN not in done.stdout + done.stderr
    files = [p for p in project.rglob("*") if p.is_file() and p.name != "env.toml"]
    assert len(files) > 5 and not [p for p in files if TOKEN.encode() in p.read_bytes()]


def test_a_secret_whose_variable_is_not_set_is_refused_before_anything_is_made(nemotron: Run, project: Path) -> None:
    (project / "env.toml").write_text(
        '[p]\nexecutor = "local"\n[p.env_vars]\nHF_TOKEN = "${oc.env:SURELY_UNSET_TOKEN}"\n'
    )
    done = nemotron("steps", "run", "demo/rows", "-r", "p", cwd=project)
    assert done.returncode == 4 and "SURELY_UNSET_TOKEN is not set" in done.stderr, done.stderr
    assert not list(project.rglob("job.json")) and not list(project.rglob("owner.json"))
