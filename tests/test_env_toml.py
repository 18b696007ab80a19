"""``env/env_toml`` as a user runs it: what it writes, what it refuses, and where its file goes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from helpers import REPO, load_module
from omegaconf import OmegaConf

from nemotron_dagster.artifacts import delivery
from nemotron_dagster.artifacts.manifest import ArtifactRef, Manifest
from nemotron_dagster.artifacts.types import env_toml
from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.config.delivery import Delivery
from nemotron_dagster.config.guardrails import check_profile
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.config.yaml_text import to_yaml
from nemotron_dagster.errors import ArtifactError, PreflightError
from nemotron_dagster.project import Project

Run = Callable[..., subprocess.CompletedProcess[str]]
STEP = REPO / "steps/env/env_toml"
CLOUDS = ["slurm", "lepton", "dgxcloud", "kubernetes"]
PROFILES = {**dict.fromkeys(CLOUDS, 29), "local": 9, "tiny": 9}
SET = {"USER": "ada", "NVIDIA_API_KEY": "planted"}


STEP_MODULE = load_module(STEP / "step.py")
PayloadError = STEP_MODULE.payload.PayloadError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of no project, to give commands in."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def sections(config: str) -> dict[str, Any]:
    loaded = yaml.safe_load((STEP / "config" / f"{config}.yaml").read_text())
    return sections(loaded["defaults"]) if "defaults" in loaded else loaded["sections"]


def written(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text())


def managed(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home/.nemotron/artifacts/env/env_toml").glob("[!.]*/env.toml"))


def overlay(folder: Path, **values: Any) -> Path:
    file = folder / "own.yaml"
    file.write_text(json.dumps(values))  # is YAML, with every text in quotes
    return file


@pytest.mark.parametrize("config", PROFILES)
def test_each_config_leaves_its_file_where_the_command_was_given(
    nemotron: Run, place: Path, tmp_path: Path, config: str
) -> None:
    done = nemotron("steps", "run", "env/env_toml", "-c", config, cwd=place, **SET)
    assert done.returncode == 0, done.stdout + done.stderr
    name = f"env.{config}.toml"
    assert f"\nWrote {name} with {PROFILES[config]} profile section(s)\n" in done.stdout
    assert [p.name for p in place.iterdir()] == [name]
    assert written(place / name) == sections(config) and list(written(place / name)) == list(sections(config))
    [kept] = managed(tmp_path)
    assert kept.read_bytes() == (place / name).read_bytes()
    manifest = json.loads((kept.parent / "artifact.json").read_text())
    assert (manifest["type"], manifest["facts"]["profiles"]) == ("env_toml", PROFILES[config])
    assert "planted" not in done.stdout + done.stderr + (place / name).read_text()


def test_lepton_is_what_the_step_runs_without_a_config(nemotron: Run, place: Path) -> None:
    done = nemotron("steps", "run", "env/env_toml", "-d", cwd=place)
    assert done.returncode == 0 and "env.lepton.toml" in done.stdout, done.stderr
    assert not list(place.iterdir())


@pytest.mark.parametrize("config", CLOUDS)
def test_a_written_file_serves_as_the_env_file_of_another_step(nemotron: Run, place: Path, config: str) -> None:
    (place / "env.toml").write_text(STEP_MODULE.render(sections(config)))
    profile = f"{config}_sft_automodel"
    done = nemotron(
        "steps", "run", "sft/automodel", "-c", "tiny", "-d", "-r", profile,
        cwd=place, NEMOTRON_ENV_FILE=str(place / "env.toml"), **SET,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert profile in done.stdout and "nemo-automodel:26.04" in done.stdout and f"executor: {config}" in done.stdout


@pytest.mark.parametrize("config", PROFILES)
def test_every_profile_is_valid_for_its_executor_whatever_is_set_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    for name in [n for n in os.environ if n.startswith(("SLURM_", "NEMO", "LEPTON_", "DGXCLOUD_", "USER"))]:
        monkeypatch.delenv(name)
    (tmp_path / "env.toml").write_text(STEP_MODULE.render(sections(config)))
    facts = env_toml.validate(tmp_path)
    assert facts["profiles"] == PROFILES[config]
    assert facts["executors"] == {"local" if config in ("local", "tiny") else config: PROFILES[config]}
    assert env_toml.tables(facts)["profiles"].count("\n") == PROFILES[config] + 1
    template = sections(config).get(f"{config}_base", {})
    for warning in facts["warnings"]:
        assert "not set here: " in warning or any(str(v) in warning for v in template.values()) or "masked" in warning


@pytest.mark.parametrize("config", [*CLOUDS, "local"])
def test_each_profile_suits_the_step_that_the_head_of_its_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    for name, value in SET.items():
        monkeypatch.setenv(name, value)
    preamble = yaml.safe_load((STEP / "config" / f"{config}.yaml").read_text())["preamble"]
    commands = re.findall(r"nemotron steps run (\S+)(?: +-c (\S+))? +-[br] (\S+)", preamble)
    file = tmp_path / "env.toml"
    file.write_text(STEP_MODULE.render(sections(config), preamble))
    environment, project = Environment(file, written(file)), Project(None, tmp_path)
    catalog = load_catalog(project)
    assert len(commands) >= 5
    for step, name, profile in commands:
        found = check_profile(project, environment, profile, catalog.find(step), name or None)
        assert [f.message for f in found if f.level == "error"] == [], f"{step} on {profile}"


def test_overrides_change_values_add_profiles_and_keep_placeholders(nemotron: Run, place: Path) -> None:
    (place / "jobs/here").mkdir(parents=True)  # a value that happens to be a path of something here
    done = nemotron(
        "steps", "run", "env/env_toml", "-c", "slurm", "output_path=sub/dir/mine.toml",
        "sections.slurm_base.account=${oc.env:NO_SUCH_VARIABLE}", "sections.slurm_base.user=null",
        "sections.mine.extends=slurm_base", "sections.mine.nodes=3", "sections.mine.env_vars.A='x'",
        "sections.mine.env_vars.B=jobs/here",
        cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tables = written(place / "sub/dir/mine.toml")
    assert tables["slurm_base"]["account"] == "${oc.env:NO_SUCH_VARIABLE}" and "user" not in tables["slurm_base"]
    assert tables["slurm_base"]["workspace"] == "${oc.env:NEMOTRON_WORKSPACE,/lustre/${oc.env:USER}}"
    assert tables["mine"] == {
        "extends": "slurm_base", "nodes": 3, "env_vars": {"A": "x", "B": "jobs/here"},
    }  # fmt: skip
    assert "Wrote sub/dir/mine.toml with 30 profile section(s)" in done.stdout


def test_odd_names_and_values_reach_the_file_as_they_are(nemotron: Run, place: Path) -> None:
    variables = {"A": "1e5", "B": 'quote " and \\ back', "C": "two\nlines\n", "D": "été ☃", "E": "yes", "F": "010"}
    odd = {
        "my profile": {"executor": "local", "env_vars": variables},
        "a.b": {"extends": "q\"uo'te"},
        "q\"uo'te": {"extends": "my profile"},
        "日本 #1": {"extends": "a.b", "nodes": None, "startup_commands": ["echo '\t'", "${oc.env:X,a}"]},
    }
    preamble = "# one ${oc.env:NOT_SET}\n\n# two"
    file = overlay(place, output_path="odd.toml", force=False, preamble=preamble, sections=odd)
    done = nemotron("steps", "run", "env/env_toml", "-c", str(file), cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "odd.toml").read_text().startswith(preamble + "\n\n[")
    expected = {**odd, "日本 #1": {k: v for k, v in odd["日本 #1"].items() if v is not None}}
    assert written(place / "odd.toml") == expected


def test_too_few_nodes_are_warned_of_on_stderr_and_kept_with_the_artifact(
    nemotron: Run, place: Path, tmp_path: Path
) -> None:
    done = nemotron(
        "steps", "run", "env/env_toml", "-c", "lepton", "sections.lepton_rl_nemo_rl_rlhf.nodes=null", cwd=place
    )
    assert done.returncode == 0
    warning = "lepton_rl_nemo_rl_rlhf uses nodes=2; recommended minimum is 4"
    assert f"Warning: {warning}\n" in done.stderr
    [kept] = managed(tmp_path)
    assert warning in json.loads((kept.parent / "artifact.json").read_text())["reported"]["warnings"]


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (
            ["sections.slurm_curate.extends=slurm_bsae"],
            1,
            "extends missing profile 'slurm_bsae'. Did you mean slurm_base",
        ),
        (["sections.slurm_base.extends=slurm_curate"], 1, "in a circle"),
        (["sections.slurm_curate=null"], 1, "missing required profile(s): slurm_curate"),
        (["sections.slurm_base.acount=x"], 8, "'slurm_base': slurm has no key 'acount'. Did you mean account"),
        (["sections.slurm_base.executor=slrum"], 8, "Did you mean slurm"),
        (["sections.slurm_base.nodes=many"], 3, "expected a whole number"),
        (["sections.slurm_base.cpus_per_task=many"], 8, "cpus_per_task = 'many': must be a whole number"),
        (["force=perhaps"], 3, "force=perhaps: expected true or false"),
        (["output_path=5"], 3, "output_path=5: is no path of a local file"),
        (["output_path=''"], 3, "is no path of a local file"),
        (["output_path=s3://bucket/env.toml"], 3, "is no path of a local file"),
        (["output_path=here/"], 3, "is no path of a local file"),
        (["output_path=~no_such_user/env.toml"], 3, "Write the directory out"),
        (["section.slurm_base.account=x"], 3, "unknown config key"),
    ],
)
def test_what_is_refused_delivers_nothing(
    nemotron: Run, place: Path, overrides: list[str], code: int, message: str
) -> None:
    done = nemotron("steps", "run", "env/env_toml", "-c", "slurm", *overrides, cwd=place)
    assert done.returncode == code, done.stdout + done.stderr
    assert message in done.stderr and "Traceback" not in done.stdout + done.stderr
    assert not list(place.iterdir())


def test_an_existing_file_is_refused_before_anything_runs_and_replaced_with_force(
    nemotron: Run, place: Path, tmp_path: Path
) -> None:
    mine = place / "env.tiny.toml"
    mine.write_text("mine")
    mine.chmod(0o640)
    refused = nemotron("steps", "run", "env/env_toml", "-c", "tiny", cwd=place)
    assert refused.returncode == 5 and "force=true" in refused.stderr and "started" not in refused.stdout
    assert mine.read_text() == "mine" and not managed(tmp_path)
    assert not (tmp_path / "home/.nemotron/jobs").exists()
    for runs in (1, 2):  # the same spec again is a run of its own, and delivers again
        mine.write_text("mine")
        done = nemotron("steps", "run", "env/env_toml", "-c", "tiny", "force=true", cwd=place)
        assert done.returncode == 0 and "adopting" not in done.stdout, done.stderr
        assert len(managed(tmp_path)) == runs
        assert len(written(mine)) == PROFILES["tiny"] and mine.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in place.iterdir()] == ["env.tiny.toml"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("there", "message"),
    [("directory", "is a directory"), ("fifo", "is no regular file"), ("loop", "Name another file")],
)
def test_what_is_no_file_is_never_replaced(nemotron: Run, place: Path, there: str, message: str, force: bool) -> None:
    target = place / "env.tiny.toml"
    {"directory": target.mkdir, "fifo": lambda: os.mkfifo(target), "loop": lambda: target.symlink_to(target)}[there]()
    before = target.lstat()
    done = nemotron("steps", "run", "env/env_toml", "-c", "tiny", f"force={str(force).lower()}", cwd=place)
    wanted = "is a symbolic link" if there == "loop" and not force else message
    assert done.returncode == 5 and wanted in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert target.lstat().st_ino == before.st_ino and len(list(place.iterdir())) == 1


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_written_through_only_with_force(nemotron: Run, place: Path, dangling: bool) -> None:
    aim, link = place / "aim.toml", place / "env.tiny.toml"
    link.symlink_to(aim)
    if not dangling:
        aim.write_text("mine")
    refused = nemotron("steps", "run", "env/env_toml", "-c", "tiny", cwd=place)
    assert refused.returncode == 5 and f"is a symbolic link to {aim}" in refused.stderr
    assert aim.exists() != dangling and (dangling or aim.read_text() == "mine")
    done = nemotron("steps", "run", "env/env_toml", "-c", "tiny", "force=true", cwd=place)
    assert done.returncode == 0, done.stderr
    assert link.is_symlink() and len(written(aim)) == PROFILES["tiny"]


@pytest.mark.parametrize("path", ["file/env.toml", "/proc/env.toml", "x" * 300, "dangling/env.toml"])
def test_a_place_that_cannot_be_written_is_named(nemotron: Run, place: Path, tmp_path: Path, path: str) -> None:
    (place / "file").write_text("mine")
    (place / "dangling").symlink_to(place / "nowhere")
    done = nemotron("steps", "run", "env/env_toml", "-c", "tiny", f"output_path={path}", cwd=place)
    assert done.returncode == 5 and "output_path" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not managed(tmp_path) and {p.name for p in place.iterdir()} == {"file", "dangling"}


@pytest.mark.parametrize("tags", ["ab", "aa"])
def test_of_two_commands_at_once_one_writes_the_file_and_the_other_is_refused(
    nemotron: Run, place: Path, tags: str
) -> None:
    def run(tag: str) -> subprocess.CompletedProcess[str]:
        mine = f"sections.local_cpu.env_vars.TAG={tag}"
        return nemotron("steps", "run", "env/env_toml", "-c", "local", mine, "output_path=both.toml", cwd=place)

    with ThreadPoolExecutor(2) as pool:
        done = list(zip(tags, pool.map(run, tags), strict=True))
    assert sorted(d.returncode for _, d in done) == [0, 5], [d.stderr for _, d in done]
    winner = next(tag for tag, d in done if d.returncode == 0)
    loser = next(d for _, d in done if d.returncode == 5)
    assert written(place / "both.toml")["local_cpu"]["env_vars"]["TAG"] == winner
    assert "exists already" in loser.stderr and [p.name for p in place.iterdir()] == ["both.toml"]


def test_without_a_path_only_the_managed_artifact_is_made(nemotron: Run, place: Path, tmp_path: Path) -> None:
    done = nemotron("steps", "run", "env/env_toml", "-c", "tiny", "output_path=null", cwd=place)
    assert done.returncode == 0 and "Wrote" not in done.stdout, done.stderr
    assert not list(place.iterdir()) and len(managed(tmp_path)) == 1


@pytest.mark.parametrize("inside", [True, False])
def test_without_a_command_a_relative_path_lies_in_the_project_or_nowhere(
    project: Path, place: Path, tmp_path: Path, environ: dict[str, str], inside: bool
) -> None:
    code = """
from nemotron_dagster.dagster.materialize import materialize, op_name
from nemotron_dagster.project import find_project
key = ("env", "env_toml")
assert materialize(find_project(), [key], {op_name(key): {"config": {"config": "tiny"}}}, {})
"""
    env = {**environ, "NEMOTRON_HOME": str(tmp_path / "state")}
    if inside:
        env["NEMOTRON_PROJECT"] = str(project)
    before = set(project.iterdir())
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in set(project.iterdir()) - before} == ({"env.tiny.toml"} if inside else set())
    assert not list(place.iterdir())
    assert len(list((tmp_path / "state/artifacts/env/env_toml").glob("*/env.toml"))) == 1
    with dg.DagsterInstance.from_config(str(tmp_path / "state/dagster")) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["env", "env_toml"]))
        assert event and event.asset_materialization
        table = event.asset_materialization.metadata["profiles"]
    assert table.value


def test_the_payload_alone_writes_the_file_as_scripts_expect(place: Path, environ: dict[str, str]) -> None:
    def run(config: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(STEP / "step.py"), "--config", config]
        return subprocess.run(argv, cwd=place, env=environ, capture_output=True, text=True, check=False)

    file = overlay(place, output_path="x/y.toml", sections={"a": {"executor": "local", "python": "${oc.env:NOPE}"}})
    done = run(str(file))
    assert done.returncode == 0 and "Wrote x/y.toml with 1 profile section(s)" in done.stdout, done.stderr
    assert written(place / "x/y.toml") == {"a": {"executor": "local", "python": "${oc.env:NOPE}"}}
    again = run(str(file))
    assert again.returncode == 3 and "already exists" in again.stderr and "force=true" in again.stderr


def test_manifest_and_payload_name_the_same_literal_keys() -> None:
    step = load_catalog(Project(None, REPO / ".nemotron")).find("env/env_toml")
    assert step.literal == STEP_MODULE.LITERAL
    assert step.produces[0].deliver and step.ready


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a\n", "env.toml:1"),
        ("", "holds no profile"),
        ("[wandb]\nproject = 'x'\n", "holds no profile"),
        ("[a]\nexecutor = 'slurm'\nparttition = 'x'\n", "parttition"),
        ("[a]\nextends = 'b'\n", "'b'"),
        ("[a]\nexecutor = 'nope'\n", "nope"),
    ],
)
def test_a_file_that_no_target_would_take_is_no_artifact(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "env.toml").write_text(text)
    with pytest.raises(ArtifactError) as told:
        env_toml.validate(tmp_path / "env.toml")
    assert message in str(told.value) and str(tmp_path / "env.toml") in str(told.value)


def test_of_many_mistakes_twenty_are_told_and_an_inherited_one_once(tmp_path: Path) -> None:
    text = "[base]\nexecutor = 'local'\nnope = 1\n" + "".join(f"[c{i}]\nextends = 'base'\n" for i in range(50))
    (tmp_path / "env.toml").write_text(text)
    with pytest.raises(ArtifactError) as told:
        env_toml.validate(tmp_path)
    assert len(str(told.value).splitlines()) == 1
    text = "".join(f"[c{i}]\nexecutor = 'local'\nnope = {i}\n" for i in range(30))
    (tmp_path / "env.toml").write_text(text)
    with pytest.raises(ArtifactError) as told:
        env_toml.validate(tmp_path)
    assert len(str(told.value).splitlines()) == 21 and str(told.value).endswith("... and 10 more.")


def test_a_file_system_without_hard_links_gets_the_file_too_and_never_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    def fill_up(read: Any, out: Any) -> None:
        out.write(read.read(1))
        raise OSError(28, "No space left on device")

    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "env.toml").write_text("[a]\n")
    ref = ArtifactRef("env_toml", str(artifact), Manifest("env_toml", "env/env_toml", [], "k", path="env.toml"))
    wanted = Delivery("output_path", tmp_path / "new/env.toml")
    monkeypatch.setattr(os, "link", refuse)
    assert delivery.deliver(wanted, ref).read_text() == "[a]\n"
    with pytest.raises(PreflightError, match=r"exists already.*\n.*lies at .*artifact/env\.toml"):
        delivery.deliver(wanted, ref)
    wanted.path.unlink()
    monkeypatch.setattr(delivery.shutil, "copyfileobj", fill_up)
    with pytest.raises(PreflightError, match="No space left on device"):
        delivery.deliver(wanted, ref)
    assert not list((tmp_path / "new").iterdir())


def test_text_that_looks_like_a_number_stays_text_for_both_readers_of_yaml() -> None:
    words = ["1e5", "1.5e3", ".5e3", "-1e-5", "1e", "010", "1:30", "yes", "~", "0x1f", "1.", ".inf", "2024-01-01"]
    data = {"text": {w: w for w in words}, "numbers": [1e-5, 1e22, 1.0, 123, -0.0]}
    text = to_yaml(data)
    assert yaml.safe_load(text) == OmegaConf.to_container(OmegaConf.create(text)) == data


def test_json_names_the_file_that_was_delivered(nemotron: Run, place: Path) -> None:
    done = nemotron("steps", "run", "env/env_toml", "-c", "slurm", "--json", cwd=place, **SET)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["delivered"] == str(place / "env.slurm.toml")
