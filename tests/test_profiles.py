"""env.toml: where it is looked for, inheritance, interpolations, secrets, system sections."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import REPO

from nemotron_dagster.config import profiles
from nemotron_dagster.config.compile import compile_job
from nemotron_dagster.config.profiles import Environment, find_env_file, load_environment, read_environment
from nemotron_dagster.config.references import reveal
from nemotron_dagster.config.secrets import HIDDEN, redact
from nemotron_dagster.errors import ProfileError

TOKEN = "hf_" + "a1B2" * 8


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    monkeypatch.setattr(profiles, "_warned", set())
    for name in ("SURELY_UNSET", "MY_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def environment(text: str, tmp_path: Path) -> Environment:
    file = tmp_path / "env.toml"
    file.write_text(text, encoding="utf-8")
    return read_environment(file)


# ---- lookup ----


def test_the_nearest_file_upward_wins_and_a_pyproject_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "repo" / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "env.toml").touch()
    monkeypatch.chdir(inner)
    assert find_env_file() == tmp_path / "env.toml"
    (tmp_path / "repo" / "pyproject.toml").touch()
    assert find_env_file() is None
    (tmp_path / "repo" / "env.toml").touch()
    assert find_env_file() == tmp_path / "repo" / "env.toml"
    (inner / "env.toml").touch()
    assert find_env_file() == inner / "env.toml"


def test_a_project_ends_the_search_and_its_own_file_counts_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (root / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    (tmp_path / "env.toml").touch()
    monkeypatch.chdir(root / "sub")
    assert find_env_file(root) is None
    (root / "env.toml").touch()
    assert find_env_file(root) == root / "env.toml"
    (root / "sub" / "pyproject.toml").touch()
    assert find_env_file(root) == root / "env.toml"
    monkeypatch.chdir(elsewhere)
    assert find_env_file(root) == root / "env.toml"


def test_the_named_file_counts_and_its_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text('[a]\nexecutor = "local"\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NEMOTRON_ENV_FILE", "~/other.toml")
    assert "a" in load_environment().profiles


@pytest.mark.parametrize("how", ["directory", "fifo", "unreadable", "dangling", "missing"])
def test_what_is_no_file_is_a_named_error_and_not_passed_over(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "env.toml"
    monkeypatch.chdir(tmp_path)
    if how == "directory":
        file.mkdir()
    elif how == "fifo":
        os.mkfifo(file)
    elif how == "dangling":
        file.symlink_to(tmp_path / "gone")
    elif how == "missing":
        monkeypatch.setenv("NEMOTRON_ENV_FILE", str(file))
    else:
        file.symlink_to(file)  # also refused to a superuser, who may read any file
    with pytest.raises(ProfileError, match=r"env\.toml"):
        load_environment(tmp_path)


def test_local_is_built_in_and_ones_own_replaces_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_environment(tmp_path).profile("local") == {"executor": "local"}
    (tmp_path / "env.toml").write_text('[local]\nexecutor = "slurm"\n')
    assert load_environment(tmp_path).profile("local") == {"executor": "slurm"}
    (tmp_path / "env.toml").write_text('[mine]\nextends = "local"\npython = "/p"\n')
    assert load_environment(tmp_path).profile("mine") == {"executor": "local", "python": "/p"}


def test_a_projects_own_default_profiles_come_before_the_bundled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "profiles.toml").write_text('[local]\nexecutor = "mine"\n[team]\nextends = "local"\n')
    assert load_environment(tmp_path).profile("team") == {"executor": "mine"}


# ---- inheritance ----


def test_tables_merge_key_by_key_along_the_chain_and_lists_are_replaced(tmp_path: Path) -> None:
    text = """
[a]
executor = "local"
mounts = ["x:y", "p:q"]
[a.env_vars]
ONE = "a"
TWO = "a"
[b]
extends = "a"
[b.env_vars]
TWO = "b"
[c]
extends = "b"
mounts = ["m:n"]
"""
    env = environment(text, tmp_path)
    assert env.profile("c") == {"executor": "local", "mounts": ["m:n"], "env_vars": {"ONE": "a", "TWO": "b"}}
    assert env.origin("c", ("env_vars", "TWO")).name == "b"
    assert env.origin("c", ("executor",)).name == "a"
    assert env.profile("a")["env_vars"] == {"ONE": "a", "TWO": "a"}, "a child changed its parent"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[a]\nextends = ["b", "c"]\n', r"env\.toml:2:1: `extends` of profile 'a' is a list.*Name one parent"),
        ("[a]\nextends = 5\n", r"env\.toml:2:1: `extends` of profile 'a' is a number"),
        ('[a]\nextends = "base1"\n[base]\n', r"env\.toml:2:1: unknown profile 'base1' \(extended by 'a'\).*mean base"),
        ('[a]\nextends = "a"\n', r"env\.toml:2:1: .*circle: a -> a"),
        (
            '[a]\nextends = "b"\n[b]\nx = 1\nextends = "c"\n[c]\nextends = "b"\n',
            r"toml:7:1: .*circle: a -> b -> c -> b",
        ),
        ('[a]\nextends = "wandb"\n[wandb]\nproject = "p"\n', r"toml:2:1: unknown profile 'wandb'.*system section"),
        ("[a]\ntime = 04:00:00\n", r"toml:2:1: time = 04:00:00 is a TOML time.*\"04:00:00\""),
        ('[a]\nx = "${oc.env:SURELY_UNSET}"\n', r"toml:2:1: profile 'a': x: variable SURELY_UNSET is not set\. Export"),
        ('[a]\nx = "${nope}/y"\n', r"toml:2:1: profile 'a': x: the profile has no key 'nope'"),
        ('[a]\nx = "${oc.env:"\n', r"toml:2:1: profile 'a': x: .*malformed"),
        ('[a]\nx = "${y}"\ny = "${x}"\n', r"toml:2:1: profile 'a': x: .*in a circle: x -> y -> x"),
        ('[a]\nx = "${art:m,path}"\n', r"toml:2:1: profile 'a': x: profiles know .* not \$\{art:"),
        (
            '[a]\nextends = "b"\n[b]\n[b.env_vars]\nX = "${oc.env:SURELY_UNSET}"\n',
            r"toml:5:1: profile 'a': env_vars\.X",
        ),
        ('[a]\nm = ["x", "${oc.env:SURELY_UNSET}"]\n', r"toml:2:\d+: profile 'a': m\.1: variable SURELY_UNSET"),
    ],
)
def test_a_wrong_profile_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=message):
        environment(text, tmp_path).profile("a")


def test_a_profile_name_with_a_dot_is_found_at_its_line(tmp_path: Path) -> None:
    env = environment('["gpu.big"]\nx = "${oc.env:SURELY_UNSET}"\n', tmp_path)
    with pytest.raises(ProfileError, match=r"toml:2:1: profile 'gpu\.big'"):
        env.profile("gpu.big")


def test_only_the_profile_in_use_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env.toml").write_text('[bad]\nx = "${oc.env:SURELY_UNSET}"\n[good]\nexecutor = "local"\n')
    monkeypatch.chdir(tmp_path)
    assert load_environment(tmp_path).profile("good") == {"executor": "local"}


def test_siblings_defaults_and_nested_references_resolve_over_the_merged_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", "/here")
    text = """
[base]
job = "${workspace}/jobs"
nodes = "${oc.decode:${oc.env:SURELY_UNSET,2}}"
deep = "${oc.env:SURELY_UNSET,${oc.env:HERE}/x}"
[child]
extends = "base"
workspace = "${oc.env:HERE}"
"""
    profile = environment(text, tmp_path).profile("child")
    assert (profile["job"], profile["nodes"], profile["deep"]) == ("/here/jobs", 2, "/here/x")


def test_an_auto_mount_stays_for_the_target(tmp_path: Path) -> None:
    mount = "${auto_mount:git+https://example.org/r.git@main,/opt/r}"
    assert environment(f'[a]\nmounts = ["{mount}"]\n', tmp_path).profile("a")["mounts"] == [mount]


# ---- secrets ----


def test_a_secret_stays_a_reference_until_it_is_revealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "planted-value")
    monkeypatch.setenv("PLAIN", "seen")
    text = """
[a]
url = "https://u:${oc.env:MY_TOKEN}@h/${oc.env:PLAIN}"
copy = "${env_vars.OTHER}"
fallback = "${oc.env:SURELY_UNSET,${oc.env:MY_TOKEN}}"
client_secret = "${oc.env:PLAIN}"
[a.env_vars]
OTHER = "${oc.env:MY_TOKEN,''}"
"""
    profile = environment(text, tmp_path).profile("a")
    assert "planted-value" not in str(profile)
    assert profile["url"] == "https://u:${oc.env:MY_TOKEN}@h/seen"
    assert profile["copy"] == profile["env_vars"]["OTHER"] == "${oc.env:MY_TOKEN,''}"
    assert profile["fallback"] == "${oc.env:MY_TOKEN}"
    assert profile["client_secret"] == "${oc.env:PLAIN}", "what fills a secret's key is a secret"
    assert reveal(profile["url"]) == "https://u:planted-value@h/seen"


def test_revealing_names_the_variable_that_is_not_set_and_takes_defaults() -> None:
    assert reveal("${oc.env:SURELY_UNSET,''}") == ""
    assert reveal("plain") == "plain"
    with pytest.raises(ProfileError, match=r"SURELY_UNSET is not set.*Export SURELY_UNSET"):
        reveal("x${oc.env:SURELY_UNSET}")


@pytest.mark.parametrize(
    "text",
    [
        f'[a]\nexecutor = "local"\n[a.env_vars]\nHF_TOKEN = "{TOKEN}"\n',
        f'[a]\nexecutor = "local"\nstartup_commands = ["export T={TOKEN}"]\n\n',
        f'[a]\nextends = "b"\n[b]\nx = 1\nclient_secret = "{TOKEN}"\n',
    ],
)
def test_a_secret_written_down_is_told_once_with_its_line_and_never_shown(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = environment(text, tmp_path)
    line = next(i for i, t in enumerate(text.splitlines(), 1) if TOKEN in t)
    env.profile("a")
    env.profile("a")
    told = capsys.readouterr()
    assert told.err.count("Warning") == 1 and f"env.toml:{line}:" in told.err and "${oc.env:" in told.err
    assert TOKEN not in told.err + told.out and TOKEN not in str(redact(env.profile("a")))


def test_redaction_knows_a_token_by_its_form_too() -> None:
    assert redact({"note": f"use {TOKEN} here", "tokenizer": "hf_short"}) == {
        "note": f"use {HIDDEN} here",
        "tokenizer": "hf_short",
    }


def test_a_compiled_job_holds_no_secret_of_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemotron_dagster.catalog import load_catalog
    from nemotron_dagster.project import Project

    monkeypatch.setenv("MY_TOKEN", "planted-value")
    env = environment('[a]\nexecutor = "local"\n[a.env_vars]\nHF_TOKEN = "${oc.env:MY_TOKEN}"\n', tmp_path)
    step = load_catalog(Project(None, REPO / "nonexistent")).find("sft/automodel")
    spec = compile_job(step, "tiny", profile="a", environment=env)
    assert spec.environment["env_vars"]["HF_TOKEN"] == "${oc.env:MY_TOKEN}"
    monkeypatch.setenv("MY_TOKEN", "rotated")
    assert compile_job(step, "tiny", profile="a", environment=env).digest == spec.digest


# ---- system sections and the top level ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('executor = "slurm"\n', r"env\.toml:1:1: executor is text; env\.toml holds only tables.*\[executor\]"),
        ('[[gpu]]\nexecutor = "slurm"\n', r"env\.toml:1:\d+: gpu is a list of tables.*\[gpu\]"),
        ('[wandb]\nprojct = "p"\n', r"toml:2:1: unknown key 'projct' in \[wandb\]\. Did you mean project"),
        ("[wandb]\nproject = 5\n", r"toml:2:1: \[wandb\] project is a number\. Give it text"),
        ('[cache]\nexecutor = "slurm"\n', r"toml:1:\d+: \[cache\] is a system section and cannot be a profile"),
        ('[cli]\ntheem = "x"\n', r"Did you mean theme"),
        ("[artifacts]\nwandb = 3\n", r"toml:2:1: \[artifacts\] wandb is a number\. Give it true or false or a table"),
        ('[artifacts.manifest]\nrot = "x"\n', r"toml:2:1: unknown key 'rot' in \[artifacts\.manifest\]"),
    ],
)
def test_a_wrong_top_level_or_system_section_is_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProfileError, match=message):
        load_environment(tmp_path)


def test_every_documented_key_of_the_system_sections_is_accepted_and_none_is_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env.toml").write_text("""
[wandb]
project = "${oc.env:WANDB_PROJECT,nemotron}"
entity = "e"
run_name = "r"
name = "n"
group = "g"
job_type = "j"
tags = ["a"]
[cli]
theme = "monokai"
[cache]
git_dir = "/c"
[artifacts]
root = "${oc.env:HERE}/a"
backend = "file"
wandb = true
[artifacts.manifest]
root = "/m"
""")
    monkeypatch.setenv("HERE", "/here")
    monkeypatch.chdir(tmp_path)
    env = load_environment(tmp_path)
    assert env.profiles == ("local",)
    assert env.section("artifacts")["root"] == "/here/a"
    for name in ("wandb", "cli", "cache", "artifacts"):
        with pytest.raises(ProfileError, match=rf"unknown profile '{name}': \[{name}\] is a system section"):
            env.profile(name)
