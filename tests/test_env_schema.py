"""The JSON Schema of env.toml: kept in step with the code, and right about good and bad files."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers import REPO

from nemotron_dagster.jobs.env_schema import env_schema, key_tables, schema_text
from nemotron_dagster.jobs.target import target_files, target_module
from nemotron_dagster.project import Project

BUNDLED = Project(None, REPO / ".nemotron")
SCHEMA: dict[str, Any] = json.loads((REPO / "env" / "env.schema.json").read_text(encoding="utf-8"))
EXECUTORS = sorted(target_files(BUNDLED))


def refused(text: str) -> bool:
    return not jsonschema.Draft7Validator(SCHEMA).is_valid(tomllib.loads(text))


def test_the_kept_schema_is_what_the_code_says() -> None:
    assert (REPO / "env" / "env.schema.json").read_text(encoding="utf-8") == schema_text(BUNDLED), (
        "run `nemotron env schema --write`"
    )


def test_the_tables_of_the_docs_are_what_the_code_says() -> None:
    text = (REPO / "docs" / "profiles.md").read_text(encoding="utf-8")
    assert text.partition("<!-- keys -->\n\n")[2] == key_tables(BUNDLED), (
        "replace what follows <!-- keys --> by the output of `nemotron env schema --markdown`"
    )


def test_the_example_of_the_docs_is_good() -> None:
    text = (REPO / "docs" / "profiles.md").read_text(encoding="utf-8")
    example = text.partition("```toml\n")[2].partition("```")[0]
    assert example.startswith("#:schema ./env/env.schema.json\n") and not refused(example)


def test_it_is_a_valid_schema_of_its_own_draft() -> None:
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_key_of_a_target_is_there_with_a_text_to_hover(executor: str) -> None:
    properties = SCHEMA["definitions"][executor]["properties"]
    assert set(properties) - {"extends"} == set(target_module(BUNDLED, executor).Settings.model_fields)
    assert all(p["description"] for p in properties.values())


@pytest.mark.parametrize("cloud", ["slurm", "lepton", "dgxcloud"])
def test_the_profiles_that_env_toml_writes_are_good(cloud: str) -> None:
    file = REPO / "steps/env/env_toml/config" / f"{cloud}.yaml"
    sections = yaml.safe_load(file.read_text(encoding="utf-8"))["sections"]
    assert len(sections) == 30
    jsonschema.validate(sections, SCHEMA, jsonschema.Draft7Validator)


def test_the_built_in_profiles_are_good() -> None:
    assert not refused((REPO / "env" / "profiles.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        '[a]\nexecutor = "slurm"\nnodes = "${oc.env:NODES,2}"\n',
        '[a]\nexecutor = "slurm"\nexclusive = "${oc.env:EXCLUSIVE,true}"\nmem = 0\n',
        '[a]\nexecutor = "slurm"\nport = "22"\n',
        '[a]\nexecutor = "lepton"\nmounts = [{path = "/a", mount_path = "/b", from = "node-nfs:x"}]\n',
        '[a]\nexecutor = "${oc.env:WHERE,local}"\nnodes = 1\n',
        '[base]\nexecutor = "slurm"\n[a]\nextends = "base"\npartition = "p"\ncpus_per_task = 4\n',
        '[a]\nextends = "base"\nresource_shape = "gpu.8xh100-80gb"\n[a.env_vars]\nN = 1\nFLAG = true\n',
        '[wandb]\nproject = "p"\ntags = ["a"]\n[artifacts]\nwandb = true\nmanifest = {root = "/m"}\n',
        '[a]\nexecutor = "kubernetes"\ncpus = 8\n',
        "",
    ],
)
def test_good_files_are_accepted(text: str) -> None:
    jsonschema.validate(tomllib.loads(text), SCHEMA, jsonschema.Draft7Validator)


@pytest.mark.parametrize(
    "text",
    [
        '[a]\nexecutor = "slurm"\npartitoin = "p"\n',
        '[a]\nexecutor = "slrum"\n',
        '[a]\nexecutor = "docker"\n',
        '[a]\nexecutor = "slurm"\nnodes = "two"\n',
        '[a]\nexecutor = "slurm"\nnodes = 0\n',
        '[a]\nexecutor = "slurm"\nresource_shape = "gpu.8xh100-80gb"\n',
        '[a]\nexecutor = "lepton"\ncpus_per_task = 4\n',
        '[a]\nexecutor = "slurm"\ntunnel = "telnet"\n',
        '[a]\nexecutor = "slurm"\nmounts = "/a:/b"\n',
        '[a]\nextends = ["b"]\n',
        '[a]\nextends = "b"\nno_such_key = 1\n',
        '[wandb]\nprojct = "p"\n',
        '[artifacts]\nmanifest = {rot = "/m"}\n',
        "a = 1\n",
    ],
)
def test_bad_files_are_refused(text: str) -> None:
    assert refused(text)


def test_a_projects_own_target_is_in_its_schema(tmp_path: Path) -> None:
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "mainframe.py").write_text(
        '"""Ours."""\n'
        "from typing import Literal\n"
        "from pydantic import Field\n"
        "from nemotron_dagster.jobs.settings import CommonSettings\n"
        "class Settings(CommonSettings):\n"
        '    executor: Literal["mainframe"] = "mainframe"\n'
        '    reels: int = Field(2, description="Tape reels.")\n'
        "def make_target(settings, state): ...\n"
    )
    schema = env_schema(Project(tmp_path, tmp_path / "state"))
    validator = jsonschema.Draft7Validator(schema)
    assert validator.is_valid({"a": {"executor": "mainframe", "reels": 3}})
    assert not validator.is_valid({"a": {"executor": "slurm", "reels": 3}})
