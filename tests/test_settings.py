"""The keys of every executor's profiles: what they take, and how a wrong one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import REPO

from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.errors import ProfileError
from nemotron_dagster.jobs.target import make_target, settings_of, target_files, target_module
from nemotron_dagster.project import Project

EXECUTORS = ("local", "slurm", "lepton", "dgxcloud", "kubernetes")
#: What a profile of each executor must at least say.
BASE: dict[str, dict[str, Any]] = {e: {"executor": e} for e in EXECUTORS}


@pytest.fixture
def nowhere(tmp_path: Path) -> Project:
    return Project(None, tmp_path)


def generated(executor: str) -> Environment:
    """The profiles that env/env_toml writes for one platform."""
    file = REPO / "steps" / "env" / "env_toml" / "config" / f"{executor}.yaml"
    return Environment(None, yaml.safe_load(file.read_text())["sections"])


@pytest.mark.parametrize("executor", ["slurm", "lepton", "dgxcloud"])
def test_every_generated_profile_is_accepted_as_it_is(
    executor: str, nowhere: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "someone")
    environment = generated(executor)
    assert len(environment.profiles) == 29
    for name in environment.profiles:
        settings = settings_of(nowhere, executor, environment.profile(name), name)
        assert settings.job_image


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_target_accepts_what_the_catalogs_configs_say(executor: str, nowhere: Project) -> None:
    """A config's run.env is merged into whatever profile the user picks."""
    files = sorted(REPO.glob("steps/**/config/*.yaml"))
    seen = 0
    for file in files:
        env = ((yaml.safe_load(file.read_text()) or {}).get("run") or {}).get("env") or {}
        plain = {k: v for k, v in env.items() if k == "mounts" or "${" not in str(v)}
        settings_of(nowhere, executor, plain | {"executor": executor}, str(file))
        unknown = set(env) - set(target_module(nowhere, executor).Settings.model_fields)
        assert not unknown, f"{file}: {executor} does not know {unknown}"
        seen += len(env)
    assert seen > 50


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_key_says_what_it_is(executor: str, nowhere: Project) -> None:
    for name, field in target_module(nowhere, executor).Settings.model_fields.items():
        assert name == "executor" or (field.description or "").endswith((".", "required.")), f"{executor}.{name}"


WRONG = [
    ("slurm", {"nodez": 2}, "slurm has no key 'nodez'. Did you mean nodes"),
    ("slurm", {"nodes": "two"}, "nodes = 'two': must be a whole number"),
    ("slurm", {"nodes": True}, "nodes = True: must be a whole number"),
    ("slurm", {"nodes": 0}, "nodes = 0: must be 1 or more"),
    ("slurm", {"port": 70000}, "port = 70000: must be 65535 or less"),
    ("slurm", {"startup_commands": "pip install x"}, 'must be a list of commands. Write ["pip install x"]'),
    ("slurm", {"node_group": "x"}, "node_group is a key of lepton, not of slurm"),
    ("slurm", {"time": 43200}, "time = 43200: must be a time in quotes"),
    ("slurm", {"time": "4 hours"}, "time = '4 hours': must be a time"),
    ("slurm", {"mounts": ["/a"]}, "'/a': must be \"host:container\""),
    ("slurm", {"mounts": ["/a:/b,/c:/d"]}, "one mount each"),
    ("slurm", {"tunnel": "ssh"}, 'tunnel = "ssh" needs host'),
    ("slurm", {"tunnel": "telnet"}, "tunnel = 'telnet': must be one of 'ssh' or 'local'"),
    ("slurm", {"qos": 3}, 'qos = 3: must be text. Put it in quotes: qos = "3"'),
    ("slurm", {"exclusive": "maybe"}, "must be true, false, user or mcs"),
    ("slurm", {"remote_job_dir": "jobs"}, "must be an absolute path"),
    ("slurm", {"remote_job_dir": "/a b"}, "must not contain spaces"),
    ("slurm", {"comment": "a\nrm -rf x"}, "comment must be one line"),
    ("slurm", {"additional_parameters": {"wckey": "a\nb"}}, "additional_parameters must be one line"),
    ("slurm", {"additional_parameters": {"--wckey": "a"}}, "'--wckey' is no option of sbatch"),
    ("slurm", {"env_vars": {"a b": "1"}}, "'a b' is no name of a variable"),
    ("slurm", {"env_vars": ["A=1"]}, "must be a table of names and values"),
    ("lepton", {"mounts": ["/a:/b"]}, "must be a table with path and mount_path"),
    ("lepton", {"mounts": [{"path": "/a", "mount_path": "/b", "form": "x"}]}, "unknown key 'form' in a mount"),
    ("dgxcloud", {"pvcs": [{"claimName": "x"}]}, "must have path"),
    ("dgxcloud", {"mounts": ["/a:/b"]}, "Name the volume in pvcs"),
    ("kubernetes", {"mounts": ["/a:/b"]}, 'must be "claim:/path"'),
    ("kubernetes", {"gpus": 2, "gpus_per_node": 4}, "gpus = 2 and gpus_per_node = 4 differ"),
    ("kubernetes", {"secret_vars": {"A": "b"}}, 'must be "secret/key"'),
    ("kubernetes", {"workdir_pvc_path": "/nemo_run"}, "must not be /nemo_run"),
    ("docker", {}, "no target named 'docker'"),
]


@pytest.mark.parametrize(("executor", "values", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_a_wrong_value_is_told_with_key_and_what_is_wanted(
    executor: str, values: dict[str, Any], message: str, nowhere: Project
) -> None:
    with pytest.raises(ProfileError) as told:
        settings_of(nowhere, executor, values, "profile 'p'")
    assert message in str(told.value)
    assert str(told.value).startswith("profile 'p': ")
    assert "\n" not in str(told.value).replace("\\n", "")


def test_a_wrong_secret_is_not_shown(nowhere: Project) -> None:
    for values in ({"env_vars": {"HF_TOKEN": ["planted"]}}, {"env_vars": {"a b": 1, "HF_TOKEN": "planted"}}):
        with pytest.raises(ProfileError) as told:
            settings_of(nowhere, "slurm", values, "p")
        assert "planted" not in str(told.value)


def test_numbers_that_come_from_the_environment_are_text(nowhere: Project) -> None:
    settings = settings_of(nowhere, "slurm", {"nodes": "2", "gpus_per_node": " 8 ", "mem": 0}, "p")
    assert (settings.nodes, settings.gpus_per_node, settings.mem) == (2, 8, "0")  # type: ignore[attr-defined]


def test_null_and_empty_text_mean_not_set(nowhere: Project) -> None:
    settings = settings_of(nowhere, "slurm", {"account": "", "nodes": None, "time": "", "lustre_mount": ""}, "p")
    assert settings.account is None and settings.nodes is None
    assert settings.time == "04:00:00"
    assert settings.lustre_mount == ""  # type: ignore[attr-defined]


def test_settings_cannot_be_changed(nowhere: Project) -> None:
    settings = settings_of(nowhere, "slurm", {}, "p")
    with pytest.raises(ValueError, match="frozen"):
        settings.nodes = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "slurm.py:1: the target 'slurm' cannot be loaded: SyntaxError"),
        ("import os\n\nos.no_such_thing()\n", "slurm.py:3: the target 'slurm' cannot be loaded: AttributeError"),
        ("raise SystemExit(3)\n", "slurm.py:1: the target 'slurm' cannot be loaded: SystemExit"),
        ("import no_such_package\n", "slurm.py:1: the target 'slurm' cannot be loaded: ModuleNotFoundError"),
        ("class Settings: ...\n", "it has no make_target"),
    ],
)
def test_a_broken_target_is_one_named_error_and_the_others_work(project: Path, text: str, message: str) -> None:
    (project / "resources").mkdir()
    (project / "resources" / "slurm.py").write_text(text)
    own = Project(project, project / ".nemotron")
    assert {*EXECUTORS} <= set(target_files(own))
    for other in ("local", "lepton", "dgxcloud", "kubernetes"):
        settings_of(own, other, BASE[other], "p")
    with pytest.raises(ProfileError) as told:
        make_target(own, "p", {"executor": "slurm"})
    assert message in str(told.value) and "Mend that module" in str(told.value)
    with pytest.raises(ProfileError, match="lepton has no key 'walltime'"):  # looks at all modules for the key
        settings_of(own, "lepton", {"walltime": 1}, "p")
