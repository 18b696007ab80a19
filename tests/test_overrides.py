"""Overrides: every key can be reached, and a key or a value that cannot be meant is refused with what can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import add_step
from hypothesis import given
from hypothesis import strategies as st

from nemotron_dagster.catalog import Step, load_catalog
from nemotron_dagster.config.compile import compile_job
from nemotron_dagster.config.keys import get, join, merge, parse_key, put, split_assignment
from nemotron_dagster.config.overrides import parse_dotlist, to_dotlist
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.project import Project

TOML = """\
[step]
id = "demo/typed"
freeform = ["kwargs", "models.*.extra"]
[[produces]]
type = "training_jsonl"
bind = "output_dir"
[[parameters]]
name = "algorithm"
choices = ["first", "shuffle"]
[[parameters]]
name = "length"
choices = [2048, 4096]
[[parameters]]
name = "peft"
choices = ["lora", "null"]
"""
CONFIG = """\
output_dir: ./out
algorithm: first
length: 2048
steps: 10
max_steps: 10
weight: 0
penalty_ratio: 5
rate: 0.1
flag: true
name: word
kind: auto
empty: null
items: [1, 2]
section: {inner: 1, deep: {x: y}}
kwargs: {size: 4, layers: {n: 2}}
models: [{name: a, extra: {}}, {name: b}]
by_name: ${section}
peft: {type: lora, dim: 8}
'a.b': {'c d': 1}
1st: {2: two}
ünï: 1
"""
SCRIPT = '# /// script\n# [tool.runspec]\n# name = "steps/demo/typed"\n# ///\n'


@pytest.fixture
def step(project: Path) -> Step:
    add_step(project, "demo/typed", TOML, SCRIPT, default=CONFIG)
    return load_catalog(Project(project, project)).find("demo/typed")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (
            "steps=abc",
            r"^steps=abc: expected a whole number; the config holds 10\. Give steps such a value, or null\.$",
        ),
        ("steps=1.5", "steps=1.5: expected a whole number; the config holds 10"),
        ("max_steps=1.5", "max_steps=1.5: expected a whole number; the config holds 10"),
        ("steps=1e3", "expected a whole number, like 1000"),
        ("steps=true", "expected a whole number"),
        ("steps=[1]", "expected a whole number, not a list"),
        ("steps={a: 1}", r"steps is a value, not a section"),
        ("rate=fast", "expected a number; the config holds 0.1"),
        ("flag=1", "expected true or false; the config holds true"),
        ("flag=yes please", "expected true or false"),
        (
            "name=[a]",
            'expected text, not a list; the config holds "word"|expected text, not a list; the config holds word',
        ),
        ("items=1", r"expected a list, like \[a, b\]; the config holds \[1, 2\]"),
        ("section=1", r"section is a section \(inner, deep\), not a value"),
        ("section=[1]", "section is a section"),
        ("section={inner: x}", "section.inner=x: expected a whole number"),
        ("section={iner: 2}", r"unknown config key 'section\.iner'.*Did you mean section\.inner"),
        ("kwargs.size=big", r"kwargs\.size=big: expected a whole number; the config holds 4"),
        ("kwargs=adam", "kwargs is a section"),
        ("kwargs.layers=2", "kwargs.layers is a section"),
        ("steps.more=1", "steps is a value, not a section"),
        ("items[5]=1", r"items has 2 items"),
        ("items.x=1", r"items has 2 items"),
        ("models[0].nam=1", r"unknown config key 'models\[0\]\.nam'.*Did you mean models\[0\]\.name"),
        ("models[1].extras=1", r"unknown config key"),
        ("algorithm=shufle", "algorithm=shufle: not one of first, shuffle. Did you mean shuffle"),
        ("length=3000", "length=3000: not one of 2048, 4096"),
        ("peft=dora", "not one of lora, null"),
        ("run=1", r"run is a section \(env, wandb\)"),
        ("run.env=1", r"run\.env is a section"),
        ("run.nodes=2", r"unknown config key 'run\.nodes'.*A setting of the target is run\.env\.nodes"),
        ("run.evn.nodes=2", r"unknown config key.*Did you mean run\.env"),
        ("artefacts.root=/x", "unknown config key"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(step: Step, token: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_job(step, overrides=[token])


@pytest.mark.parametrize(
    ("token", "key", "value"),
    [
        ("steps=null", "steps", None),
        ("steps=20", "steps", 20),
        ("steps=auto", "steps", "auto"),
        ("steps=${length}", "steps", 2048),
        ("weight=0.5", "weight", 0.5),
        ("penalty_ratio=2.5", "penalty_ratio", 2.5),
        ("rate=1", "rate", 1),
        ("rate=1e-5", "rate", 1e-5),
        ("flag=false", "flag", False),
        ("name=12", "name", 12),
        ("name='1e-5'", "name", "1e-5"),
        ("kind=8", "kind", 8),
        ("kind=true", "kind", True),
        ("empty={a: [1]}", "empty", {"a": [1]}),
        ("empty.made.here=1", "empty.made.here", 1),
        ("items=[]", "items", []),
        ("items=null", "items", None),
        ("items[1]=5", "items", [1, 5]),
        ("section=null", "section", None),
        ("section={deep: {x: z}}", "section", {"inner": 1, "deep": {"x": "z"}}),
        ("by_name.inner=2", "by_name", {"inner": 2, "deep": {"x": "y"}}),
        ("kwargs.anything.goes=1", "kwargs.anything.goes", 1),
        ("models.1.extra.anything=1", "models[1].extra", {"anything": 1}),
        ("models[0].extra={x: 1}", "models[0].extra", {"x": 1}),
        ("peft=lora", "peft", "lora"),
        ("peft=null", "peft", None),
        ("peft.dim=16", "peft.dim", 16),
        ('["a.b"]["c d"]=2', '["a.b"]["c d"]', 2),
        ("['a.b'].c d=2", '["a.b"]["c d"]', 2),
        (r"a\.b[c d]=2", '["a.b"]["c d"]', 2),
        ("1st.2=zwei", "1st.2", "zwei"),
        ("ünï=2", "ünï", 2),
        ("artifacts.manifest.root=/art", "artifacts.manifest.root", "/art"),
    ],
)
def test_an_override_that_fits_is_set(step: Step, token: str, key: str, value: Any) -> None:
    assert get(compile_job(step, overrides=[token]).train, key) == value


@pytest.mark.parametrize(
    ("token", "notes"),
    [
        (
            "kwargs.sizes=5",
            ("kwargs.sizes is new to the config, whose section takes any key. If you mean kwargs.size",),
        ),
        ("kwargs.fused=true", ()),
        ("kwargs.size2=5", ()),
        ("kwargs.size=5", ()),
        ("models[0].extra.anything=1", ()),
    ],
)
def test_a_new_key_of_a_free_section_that_looks_mistyped_is_noted(
    step: Step, token: str, notes: tuple[str, ...]
) -> None:
    found = compile_job(step, None, [token]).notes
    assert len(found) == len(notes) and all(f.startswith(n) for f, n in zip(found, notes, strict=True))


def test_run_takes_settings_and_artifact_references(step: Step) -> None:
    spec = compile_job(step, overrides=["run.env.nodes=2", "run.env.env_vars={A: b}", "run.data=blend:v2"])
    assert spec.environment == {"nodes": 2, "env_vars": {"A": "b"}}
    assert spec.train["run"] == {"data": "blend:v2"}


def test_what_a_config_file_says_must_be_one_of_the_choices_too(step: Step, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("algorithm: fist\nlength: ${n}\nn: 4096\n")
    with pytest.raises(
        ConfigError, match=r"mine\.yaml.*: algorithm=fist: not one of first, shuffle\. Did you mean first"
    ):
        compile_job(step, str(mine))
    mine.write_text("algorithm: shuffle\nlength: ${n}\nn: 3\n")
    with pytest.raises(ConfigError, match=r"length=3: not one of 2048, 4096"):
        compile_job(step, str(mine))


def test_unknown_keys_that_are_let_through_still_hide_no_secret(step: Step) -> None:
    assert compile_job(step, overrides=["brand.new=1"], allow_unknown=True).train["brand"] == {"new": 1}
    for token in ("brand.api_token=abc", "brand={api_token: abc}"):
        with pytest.raises(ConfigError, match=r"override brand\.api_token=…: a secret must not") as e:
            compile_job(step, overrides=[token], allow_unknown=True)
        assert "abc" not in str(e.value)


def test_an_override_that_runs_through_a_value_is_refused_even_where_keys_are_free(step: Step) -> None:
    with pytest.raises(ConfigError, match=r"steps\.x=1: cannot be set: steps is a value, not a section"):
        compile_job(step, overrides=["steps.x=1"], allow_unknown=True)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.b", ("a", "b")),
        ("a[0].b", ("a", "0", "b")),
        ("a[b]", ("a", "b")),
        ('a["x.y"]', ("a", "x.y")),
        ("a['x]y']", ("a", "x]y")),
        ("[a.b]", ("a.b",)),
        (r"a\.b.c", ("a.b", "c")),
        (r"a\=b", ("a=b",)),
        ("a b.c-d", ("a b", "c-d")),
        ("1.2", ("1", "2")),
    ],
)
def test_a_key_is_read_as_its_parts(text: str, parts: tuple[str, ...]) -> None:
    assert parse_key(text) == parts


@given(
    st.lists(st.text(st.characters(min_codepoint=32, blacklist_characters="\x7f"), min_size=1, max_size=6), min_size=1)
)
def test_a_written_key_reads_back(parts: list[str]) -> None:
    if any('"' in p and "'" in p for p in parts) or any(p.startswith(("'", '"')) or "\\" in p for p in parts):
        return  # such keys have no spelling
    assert parse_key(join(tuple(parts))) == tuple(parts)


def test_an_equals_sign_in_brackets_belongs_to_the_key() -> None:
    assert split_assignment('a["x=y"].b=c=d') == ('a["x=y"].b', "c=d")
    assert split_assignment("a=b[c=d]") == ("a", "b[c=d]")


@pytest.mark.parametrize(
    ("base", "over"),
    [
        ({"a": {"b": 1}}, {"a": {"c": 2}}),
        ({"a": 1}, {"a": {"c": 2}}),
        ({"a": {"c": 2}}, {"a": None}),
        ({"a": [1, {"x": 1}]}, {"a": [2]}),
        ({"a": 1, "b": None}, {"a": "???", "b": "???", "c": "???"}),
        ({"a": {"x": 1}, "b": "${a}"}, {"b": {"y": 2}}),
        ({"a": {"x": 1}, "b": "${a}"}, {"b": "${a.x}"}),
        ({"a": {1: "x"}}, {"a": {1: "y", 2: "z"}}),
    ],
)
def test_layers_merge_as_omegaconf_merges_them(base: dict[str, Any], over: dict[str, Any]) -> None:
    from omegaconf import OmegaConf

    before = repr((base, over))
    assert merge(base, over, base) == OmegaConf.to_container(OmegaConf.merge(base, over))
    assert repr((base, over)) == before


def test_a_list_is_walked_by_its_index() -> None:
    data = {"a": [{"b": 1}]}
    put(data, "a[0].b", 2)
    put(data, "a.0.c", 3)
    assert data == {"a": [{"b": 2, "c": 3}]}


def test_numbers_that_json_does_not_know_survive_the_way_through_a_launchpad() -> None:
    (key, value), (_, text) = parse_dotlist(to_dotlist({"x": float("inf"), "y": "naïve 😀"}))
    assert (key, value, text) == ("x", float("inf"), "naïve 😀")
