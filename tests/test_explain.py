"""`--explain KEY`: every layer that set a key, in order, with its place; secrets stay hidden."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import add_step

from nemotron_dagster.catalog import Step, load_catalog
from nemotron_dagster.config.compile import compile_job
from nemotron_dagster.config.explain import Layer, explain, render
from nemotron_dagster.config.profiles import Environment, load_environment
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.project import Project

MANIFEST = """\
[step]
id = "demo/deep"
freeform = ["model"]
[[consumes]]
type = "training_jsonl"
bind = "data"
from = "demo/rows"
[[produces]]
type = "training_jsonl"
bind = "output_dir"
"""
SCRIPT = """\
# /// script
# [tool.runspec]
# name = "steps/demo/deep"
# [tool.runspec.run]
# launch = "python"
# ///
"""
DEFAULT = """\
data: ???
output_dir: ./out
model:
  lr: 0.1
  size: 7
  api_key: written-down-by-mistake
  name: ${oc.env:MODEL_NAME,small}
  token: ${oc.env:SOME_TOKEN}
  copy: ${model.lr}
  twin: ${.size}
list: [1, 2]
"""
TINY = """\
defaults: default
model:
  lr: 0.2
run:
  env:
    container_image: from-yaml
    time: "1"
    mounts: [a]
    env_vars: {A: yaml}
"""
ENV = """\
[wandb]
project = "p"

[base]
executor = "local"
time = "2"
mounts = ["b"]

[cluster]
extends = "base"
container_image = "from-profile"
[cluster.env_vars]
A = "profile"
HF_TOKEN = "literal-secret"
"""


@pytest.fixture
def step(project: Path) -> Step:
    add_step(project, "demo/deep", MANIFEST, SCRIPT, default=DEFAULT, tiny=TINY)
    return load_catalog(Project(project, project)).find("demo/deep")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    (tmp_path / "env.toml").write_text(ENV)
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    return load_environment()


def told(
    step: Step,
    key: str,
    *overrides: str,
    config: str = "tiny",
    environment: Environment | None = None,
    profile: str | None = None,
    inputs: dict[str, str] | None = None,
) -> list[Layer]:
    given = environment or Environment()
    inputs = {"training_jsonl": "/up"} if inputs is None else inputs
    spec = compile_job(step, config, overrides, profile=profile, environment=given, inputs=inputs)
    return explain(step, config, overrides, profile, given, key, spec)


def brief(layers: list[Layer]) -> list[tuple]:
    """(value, source, where, wins) with the place as name:line:column."""
    return [
        (x.value, x.source, str(x.position).rpartition("/")[2] if x.position else "", x.wins) for x in layers
    ]  # fmt: skip


def test_files_overrides_and_the_winner_come_in_order_with_their_places(step: Step) -> None:
    assert brief(told(step, "model.lr")) == [
        (0.1, "base of tiny", "default.yaml:4:3", False),
        (0.2, "config tiny", "tiny.yaml:3:3", True),
    ]
    assert brief(told(step, "model.lr", "model.lr=1e-5", "model={lr: 3}")) == [
        (0.1, "base of tiny", "default.yaml:4:3", False),
        (0.2, "config tiny", "tiny.yaml:3:3", False),
        (1e-5, "override model.lr=1e-05", "", False),
        (3, 'override model={"lr": 3}', "", True),
    ]
    assert brief(told(step, "list[1]", config="default")) == [(2, "config default", "default.yaml:11:11", True)]


def test_an_upstream_artifact_and_the_managed_output_are_named(step: Step) -> None:
    assert brief(told(step, "data")) == [
        ("???", "base of tiny", "default.yaml:1:1", False),
        ("/up", "artifact of demo/rows, the input training_jsonl", "", True),
    ]
    assert brief(told(step, "data", "data=/mine"))[-1] == ("/mine", 'override data="/mine"', "", True)
    managed = brief(told(step, "output_dir"))
    assert [x[0] for x in managed] == ["./out", "(managed)"] and "output_dir=DIR" in managed[-1][1]
    assert brief(told(step, "output_dir", "output_dir=/o"))[-1][:2] == ("/o", 'override output_dir="/o"')


def test_profiles_and_their_parents_are_layers_of_run_env(step: Step, environment: Environment) -> None:
    def env(key: str) -> list[tuple]:
        return brief(told(step, f"run.env.{key}", environment=environment, profile="cluster"))

    assert env("executor") == [("local", "profile base", "env.toml:5:1", True)]
    assert env("time") == [
        ("1", "config tiny", "tiny.yaml:7:5", False),
        ("2", "profile base", "env.toml:6:1", True),
    ]
    assert env("container_image") == [
        ("from-profile", "profile cluster", "env.toml:11:1", False),
        ("from-yaml", "config tiny", "tiny.yaml:6:5", True),
    ]
    assert env("env_vars.A") == [
        ("yaml", "config tiny", "tiny.yaml:9:16", False),
        ("profile", "profile cluster", "env.toml:13:1", True),
    ]
    assert env("mounts") == [
        (["a"], "config tiny", "tiny.yaml:8:5", True),
        (["b"], "profile base", "env.toml:7:1", True),
    ]
    wandb = told(step, "run.wandb.project", environment=environment, profile="cluster")
    assert brief(wandb) == [("p", "[wandb]", "env.toml:2:1", True)]


def test_a_variable_is_named_and_a_secret_one_not_shown(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_NAME", raising=False)
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    unset = brief(told(step, "model.name"))
    assert unset[-1][1:] == ("environment variable MODEL_NAME is not set: its default counts", "", True)
    monkeypatch.setenv("MODEL_NAME", "large")
    assert brief(told(step, "model.name"))[-1] == ("large", "environment variable MODEL_NAME", "", True)
    token = told(step, "model.token")
    assert token[-1].source == "environment variable SOME_TOKEN"
    assert "hunter2" not in render(token)


def test_an_interpolation_names_the_key_and_the_layer_behind_it(step: Step) -> None:
    assert brief(told(step, "model.copy", "model.lr=9")) == [
        ("${model.lr}", "base of tiny", "default.yaml:9:3", True),
        (9, "interpolation ${model.lr}", "", True),
        (9, "override model.lr=9 (model.lr)", "", True),
    ]
    assert brief(told(step, "model.twin"))[1:] == [
        (7, "interpolation ${.size}", "", True),
        (7, "base of tiny (model.size)", "default.yaml:5:3", True),
    ]


def test_literal_secrets_are_hidden_in_values_sources_and_sections(step: Step, environment: Environment) -> None:
    everything = told(step, "model") + told(step, "run", environment=environment, profile="cluster")
    text = render(everything)
    assert "written-down-by-mistake" not in text and "literal-secret" not in text
    assert "model.api_key" in text and "run.env.env_vars.HF_TOKEN" in text
    assert not any("written-down-by-mistake" in str(x.value) for x in everything)


def test_a_section_prints_each_value_once_with_one_winner(step: Step) -> None:
    layers = told(step, "model")
    keys = list(dict.fromkeys(x.key for x in layers))
    assert keys == [f"model.{k}" for k in ("lr", "size", "api_key", "name", "token", "copy", "twin")]
    assert all(any(x.wins for x in layers if x.key == k) for k in keys)
    assert render(told(step, "model.lr")).splitlines()[0] == "model.lr"
    assert render(told(step, "model.lr")).splitlines()[2].startswith("  * 0.2  config tiny  /")


def test_what_the_command_line_decides_is_said_to_be_set_by_nemotron(step: Step) -> None:
    assert brief(told(step, "run.mode")) == [("local", "set by nemotron", "", True)]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.lrr", "'model.lrr' is no key .*Did you mean model.lr"),
        ("modle", "Did you mean model"),
        ("", "Top-level keys: data, output_dir, model"),
        ("list[7]", "is no key"),
        ("x" * 10_000, r"xxx… \(10,000 characters\)"),
    ],
)
def test_an_unknown_key_is_refused_with_the_closest(step: Step, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        told(step, key)


def test_every_key_of_a_port_is_bound_or_managed_and_wandb_of_env_toml_replaces_the_configs(
    project: Path, environment: Environment
) -> None:
    manifest = (
        MANIFEST.replace("demo/deep", "demo/wide")
        .replace('bind = "data"', 'bind = ["data", {key = "more", suffix = "/part"}]')
        .replace('bind = "output_dir"', 'bind = ["output_dir", {key = "log_dir", suffix = "/logs"}]')
    )
    text = "data: ???\nmore: null\noutput_dir: null\nlog_dir: null\nrun: {wandb: {project: yaml, entity: e}}\n"
    add_step(project, "demo/wide", manifest, SCRIPT, default=text)
    (project / "up" / "part").mkdir(parents=True)
    step, up = load_catalog(Project(project, project)).find("demo/wide"), {"training_jsonl": str(project / "up")}

    def last(key: str, *overrides: str) -> tuple:
        return brief(told(step, key, *overrides, config="default", environment=environment, inputs=up))[-1]

    filled = "artifact of demo/rows, the input training_jsonl"
    assert last("more") == (str(project / "up" / "part"), filled, "", True)
    assert last("more", "more=/mine")[1] == 'override more="/mine"'
    assert last("log_dir")[0] == "(managed)" and last("log_dir", "output_dir=/o")[1].endswith("below output_dir")
    assert last("run.wandb.project") == ("p", "[wandb]", "env.toml:2:1", True)
    with pytest.raises(ConfigError, match=r"run\.wandb\.entity"):
        last("run.wandb.entity")
    assert last("run.wandb.project", "run.wandb.project=o")[1] == 'override run.wandb.project="o"'
