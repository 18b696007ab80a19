"""Config compile: composition, overrides, profiles, binding, secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from helpers import REPO

from nemotron_dagster.catalog import Catalog, Step, load_catalog
from nemotron_dagster.config.compile import bind_output, compile_job
from nemotron_dagster.config.overrides import parse_dotlist, split_tokens, to_dotlist
from nemotron_dagster.config.profiles import Environment, load_environment
from nemotron_dagster.config.secrets import HIDDEN, is_secret, redact
from nemotron_dagster.errors import ConfigError, NemotronError, ProfileError, UsageError
from nemotron_dagster.project import Project


@pytest.fixture
def rows(project: Path) -> Step:
    return load_catalog(Project(project, project)).find("demo/rows")


def config(step: Step, name: str, text: str) -> Path:
    path = step.directory / "config" / f"{name}.yaml"
    path.write_text(text)
    return path


def test_defaults_chain_merges_in_order_and_the_file_itself_wins(rows: Step) -> None:
    config(rows, "mid", "defaults: [default.yaml, _self_]\nn: 7\nsection: {inner: 2, more: 3}\n")
    config(rows, "top", "defaults: mid\nsection: {inner: 9}\n")
    train = compile_job(rows, "top").train
    assert (train["n"], train["section"]) == (7, {"inner": 9, "more": 3})
    assert "defaults" not in train


def test_a_circle_of_defaults_is_named(rows: Step) -> None:
    config(rows, "a", "defaults: b\n")
    config(rows, "b", "defaults: a\n")
    with pytest.raises(ConfigError, match=r"circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        compile_job(rows, "a")


def test_bases_may_be_absolute_or_beside_a_link_and_a_missing_one_names_both_files(rows: Step, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("n: 8\n")
    top = config(rows, "top", f"defaults: [default, {base}, _self_]\nsleep: 1.5\n")
    train = compile_job(rows, "top").train
    assert (train["n"], train["sleep"], train["mode"]) == (8, 1.5, "a")
    (rows.directory / "config" / "linked.yaml").symlink_to(base)
    assert compile_job(rows, "linked").train == {"n": 8}
    (tmp_path / "far.yaml").write_text("defaults: base\n")
    (rows.directory / "config" / "link.yaml").symlink_to(tmp_path / "far.yaml")
    with pytest.raises(ConfigError, match=r"config/base\.yaml \(a base of .*config/link\.yaml\): no such file"):
        compile_job(rows, "link")
    base.unlink()
    with pytest.raises(ConfigError, match=rf"{base} \(a base of {top}\): no such file"):
        compile_job(rows, "top")


@pytest.mark.parametrize("name", ["..", "...", "a\\b", "\0", "x" * 5000, "default.yml"])
def test_a_config_name_never_leaves_the_steps_folder(rows: Step, name: str) -> None:
    with pytest.raises((UsageError, ConfigError), match=r"no config|no such config file"):
        compile_job(rows, name)


def test_what_a_bundled_base_says_is_not_the_users_wish(project: Path, tmp_path: Path) -> None:
    count = load_catalog(Project(project, project)).find("demo/count")
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"defaults: {count.directory}/config/default.yaml\nextra: 1\n")
    spec = compile_job(count, str(mine), inputs={"training_jsonl": "/up"})
    assert (spec.train["data"], spec.bound, spec.explicit_output) == ("/up", ("training_jsonl",), None)


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("bad", "a: [1\n", ConfigError, r"bad\.yaml:2:1: is not valid YAML"),
        ("list", "- 1\n", ConfigError, "not a mapping"),
        ("base", "defaults: nope\n", ConfigError, r"nope\.yaml \(a base of .*base\.yaml\)"),
        (
            "ref",
            "defaults: default\nn: ${nothing.here}\n",
            ConfigError,
            r"ref\.yaml:2:1: n: the config has no key nothing",
        ),
        ("env", "defaults: default\nn: ${oc.env:SURELY_UNSET}\n", ConfigError, "SURELY_UNSET"),
        ("ask", "defaults: default\nm:\n  q: ???\n", ConfigError, r"m\.q must be given\. Add m\.q=VALUE"),
        ("nul", "a: '\\0'\nb: \x00", ConfigError, "not valid YAML"),
    ],
)
def test_a_bad_config_file_names_file_and_fix(rows: Step, name: str, text: str, error: type, message: str) -> None:
    config(rows, name, text)
    with pytest.raises(error, match=message):
        compile_job(rows, name)


def test_an_unknown_config_name_suggests_and_a_missing_path_lists_what_there_is(rows: Step, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config 'defualt'\. Did you mean default"):
        compile_job(rows, "defualt")
    with pytest.raises(ConfigError, match="no such config file"):
        compile_job(rows, "./missing.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        compile_job(rows, str(tmp_path) + "/")


@pytest.mark.parametrize(
    ("token", "value"),
    [
        ("n=1e-5", 1e-5),
        ("n=true", True),
        ("n=null", None),
        ("n=[1, a]", [1, "a"]),
        ("n={a: 1}", {"a": 1}),
        ("n='1e-5'", "1e-5"),
        ("n=a b", "a b"),
        ("n=", None),
        ("n=x=y", "x=y"),
        ("n=héé", "héé"),
    ],
)
def test_override_values_are_yaml_as_omegaconf_reads_it(token: str, value: object) -> None:
    assert parse_dotlist([token]) == [("n", value)]


@pytest.mark.parametrize(
    "token", ["a..b=1", ".a=1", "a.=1", "=1", "a[=1", "a[]=1", "a[0]b=1", "a. b=1", "a\n=1", "a]=1"]
)
def test_a_malformed_key_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="is not a key"):
        parse_dotlist([token])


def test_tokens_split_into_overrides_and_passthrough() -> None:
    split = split_tokens(["a=1", "--flag", "--x=y", "word", "--", "b=2"])
    assert split.dotlist == ("a=1",)
    assert split.passthrough == ("--flag", "--x=y", "word", "b=2")


@pytest.mark.parametrize(
    "data",
    [
        {"lr": "1e-5"},
        {"a": {"b": [1, {"c": None}], "d": "x: y"}},
        {"s": "# not a comment", "t": "", "u": " padded ", "v": "a\nb"},
        {"i": "${oc.env:X}", "l": [1, 2], "e": {}},
    ],
)
def test_overrides_given_as_data_round_trip_through_the_dotlist(data: dict) -> None:
    from omegaconf import OmegaConf

    loaded = OmegaConf.create({})
    for key, value in parse_dotlist(to_dotlist(data)):
        OmegaConf.update(loaded, key, value)
    assert OmegaConf.to_container(loaded) == ({"lr": 1e-5} if "lr" in data else data)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("nn=1", "unknown config key 'nn'.*Did you mean n"),
        ("section.iner=1", "Did you mean section.inner"),
        ("section=1", "is a section"),
        ("mode=c", "not one of a, b, null"),
        ("api_token=abc", "a secret must not be written down"),
    ],
)
def test_a_wrong_override_is_refused_with_the_closest_match(rows: Step, token: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_job(rows, overrides=[token])


def test_an_unknown_key_passes_where_it_is_asked_for_or_free_form(rows: Step) -> None:
    assert compile_job(rows, overrides=["nn=1"], allow_unknown=True).train["nn"] == 1
    assert compile_job(rows, overrides=["run.env.anything=1"]).environment["anything"] == 1
    assert compile_job(rows, overrides=["mode=null"]).train["mode"] is None


def test_an_upstream_artifact_fills_its_key_and_a_users_value_wins(project: Path, tmp_path: Path) -> None:
    count = load_catalog(Project(project, project)).find("demo/count")
    assert compile_job(count, inputs={"training_jsonl": "/up"}).train["data"] == "/up"
    spec = compile_job(count, overrides=["data=/mine"], inputs={"training_jsonl": "/up"})
    assert (spec.train["data"], spec.external) == ("/mine", {"training_jsonl": "/mine"})
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("data: /overlaid\noutput_dir: /out\n")
    spec = compile_job(count, str(overlay), inputs={"training_jsonl": "/up"})
    assert spec.external == {"training_jsonl": "/overlaid"}
    assert spec.explicit_output == Path("/out")


def test_a_relative_path_that_is_here_becomes_absolute_and_other_words_stay(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = load_catalog(Project(project, project)).find("demo/count")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.jsonl").touch()

    def compiled(value: str) -> str:
        return str(compile_job(count, overrides=[f"data='{value}'"]).train["data"])

    assert compiled("d/x.jsonl") == f"{tmp_path}/d/x.jsonl"
    assert compiled("d/*.jsonl") == f"{tmp_path}/d/*.jsonl"
    assert compiled("d") == f"{tmp_path}/d"
    for word in ("org/model", "squad", "d/missing.jsonl", "/d/x.jsonl", "s3://d/x"):
        assert compiled(word) == word


def test_an_offered_artifact_leaves_an_optional_input_alone_that_the_config_does_not_name() -> None:
    step = load_catalog(Project(None, REPO / "nonexistent")).find("eval/model_eval")
    offered = {"checkpoint_hf": "/up"}
    assert compile_job(step, "tiny", offered=offered).bound == ("checkpoint_hf",)
    assert compile_job(step, "tiny_chat", offered=offered).bound == ()
    assert compile_job(step, "tiny_chat", inputs=offered).train["target"]["checkpoint"] == "/up"


def test_the_output_directory_is_not_part_of_the_digest_and_everything_else_is(rows: Step) -> None:
    spec = compile_job(rows)
    assert bind_output(spec, rows.produces[0], Path("/staged"))["output_dir"] == "/staged"
    assert compile_job(rows, overrides=["output_dir=/x"]).digest == spec.digest
    assert compile_job(rows, overrides=["n=6"]).digest != spec.digest
    assert compile_job(rows, passthrough=["--x"]).digest != spec.digest


def test_a_secret_variable_stays_a_reference_in_what_is_written(rows: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2")
    monkeypatch.setenv("PLAIN_NAME", "seen")
    config(rows, "sec", "defaults: default\nkey: ${oc.env:MY_API_KEY}\nurl: a-${oc.env:PLAIN_NAME}\n")
    spec = compile_job(rows, "sec")
    assert spec.train["key"] == "${oc.env:MY_API_KEY}"
    assert spec.train["url"] == "a-seen"
    assert "hunter2" not in yaml.safe_dump(spec.train)


@pytest.mark.parametrize("name", ["HF_TOKEN", "api_key", "wandb_api_key", "clientSecret", "db.password", "NGC_KEY"])
def test_secrets_are_told_by_word(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["tokenizer", "max_new_tokens", "api_key_name", "typo.key", "calculate_per_token_loss"]
)
def test_ordinary_names_are_not_secrets(name: str) -> None:
    assert not is_secret(name)


def test_redaction_hides_values_and_keeps_references() -> None:
    data = {"HF_TOKEN": "x", "tokenizer": "t", "api_key": "${oc.env:K}", "list": [{"password": "p"}]}
    want = {"HF_TOKEN": HIDDEN, "tokenizer": "t", "api_key": "${oc.env:K}", "list": [{"password": HIDDEN}]}
    assert redact(data) == want


def environment(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    (tmp_path / "env.toml").write_text(text)
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    return load_environment()


def test_profiles_inherit_and_interpolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        '[base]\nexecutor="local"\nroot="/r"\nmounts=["a"]\n[base.env_vars]\nA="1"\nB="2"\n'
        '[child]\nextends="base"\njob="${root}/x"\nmounts=["b"]\n[child.env_vars]\nB="3"\n'
    )
    profile = environment(text, tmp_path, monkeypatch).profile("child")
    assert profile["job"] == "/r/x" and profile["mounts"] == ["b"] and profile["env_vars"] == {"A": "1", "B": "3"}
    assert "extends" not in profile


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ('[a]\nextends="b"\n[b]\nextends="a"\n', "a", "circle: a -> b -> a"),
        ('[a]\nextends="nope"\n', "a", r"unknown profile 'nope' \(extended by 'a'\)"),
        ("[gpu]\n", "gpuu", "Did you mean gpu"),
        ("[wandb]\nproject='p'\n", "wandb", "unknown profile 'wandb'"),
        ('[a]\nx="${oc.env:SURELY_UNSET}"\n', "a", "SURELY_UNSET"),
    ],
)
def test_a_wrong_profile_is_named(
    text: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProfileError, match=message):
        environment(text, tmp_path, monkeypatch).profile(name)


def test_a_missing_or_malformed_env_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "no.toml"))
    with pytest.raises(ProfileError, match="cannot be read"):
        load_environment()
    with pytest.raises(ProfileError, match=r"env\.toml:1:3: is not valid TOML"):
        environment("[a\n", tmp_path, monkeypatch)


def test_profile_and_yaml_merge_as_the_reference_does(rows: Step) -> None:
    text = "defaults: default\nrun: {env: {nodes: 1, container_image: yaml, mounts: [m], env_vars: {A: y}}}\n"
    config(rows, "env", text)
    table = {
        "executor": "local",
        "nodes": 1,
        "container_image": "p",
        "mounts": ["q"],
        "env_vars": {"A": "p"},
        "time": "1",
    }
    spec = compile_job(rows, "env", profile="p", environment=Environment(None, {"p": table}))
    env = spec.environment
    assert (env["container_image"], env["mounts"], env["env_vars"], env["time"]) == (
        "yaml",
        ["m", "q"],
        {"A": "p"},
        "1",
    )
    assert spec.run["profile"] == "p" and spec.run["recipe"]["name"] == "steps/demo/rows"


def bundled() -> Catalog:
    return load_catalog(Project(None, REPO / "nonexistent"))


@pytest.mark.parametrize(
    ("step_id", "name"), [(s.id, c) for s in bundled().steps.values() for c in s.configs], ids=lambda v: v
)
def test_every_bundled_config_composes_and_whatever_it_lacks_is_named(step_id: str, name: str) -> None:
    step = bundled().find(step_id)
    try:
        spec = compile_job(step, name)
    except NemotronError as e:  # needs a variable or an artifact: it must say which key
        assert "." in str(e) and re.search(r"(?:Set|Add|Export|Run) ", str(e)), str(e)
    else:
        assert spec.train and "run" not in spec.train
