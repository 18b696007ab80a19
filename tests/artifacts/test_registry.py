"""Artifact types are found by name, a project's own ones first, and what a module leaves out has a default."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_dagster.artifacts.markdown import json_block, table
from nemotron_dagster.artifacts.registry import artifact_type
from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.errors import ArtifactError, ConfigError
from nemotron_dagster.project import Project, bundled

OWN = """
LAYOUT = "One file."
def validate(path): return {"bytes": path.stat().st_size}
def figures(facts): return {"bytes": facts["bytes"]}
"""


def own(tmp_path: Path, name: str, text: str) -> Project:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / f"{name}.py").write_text(text)
    return Project(tmp_path, tmp_path)


def test_a_projects_own_type_needs_three_names_and_gets_defaults_for_the_rest(tmp_path: Path) -> None:
    loaded = artifact_type("weights", own(tmp_path, "weights", OWN))
    (tmp_path / "w").write_bytes(b"1234")
    facts = loaded.validate(tmp_path / "w")
    assert loaded.figures(facts) == {"bytes": 4} and loaded.LAYOUT == "One file."
    assert (loaded.tables(facts), loaded.samples(facts), loaded.columns(facts)) == ({}, "", [])
    assert loaded.draw(facts, tmp_path) == []
    with pytest.raises(ArtifactError, match=r"cannot be read as a Python value.*define `read` in .*weights\.py"):
        loaded.read(tmp_path / "w")


def test_a_projects_own_module_replaces_the_bundled_type(tmp_path: Path) -> None:
    assert artifact_type("raw_jsonl", own(tmp_path, "raw_jsonl", OWN)).LAYOUT == "One file."
    assert artifact_type("raw_jsonl", Project(None, tmp_path)).LAYOUT != "One file."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LAYOUT = ''", r"has no validate, figures\. Define"),
        ("import nope_nope", r"cannot be loaded \(ModuleNotFoundError: .*nope_nope"),
        ("1 / 0", "cannot be loaded .*division by zero"),
        ("def", "cannot be loaded .*SyntaxError"),
    ],
)
def test_a_broken_module_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        artifact_type("weights", own(tmp_path, "weights", text))


@pytest.mark.parametrize("name", ["nope", "../manifest", "_jsonl", "a.b", ""])
def test_an_unknown_name_is_an_artifact_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"no artifact type|Write .*nope\.py with LAYOUT, validate, figures"):
        artifact_type(name, Project(tmp_path, tmp_path))


def test_every_bundled_module_is_a_type_of_the_graph_and_says_its_layout(tmp_path: Path) -> None:
    known = load_catalog(Project(None, tmp_path)).types.parents
    folder = bundled("steps").parent / "nemotron_dagster/artifacts/types"
    modules = [p.stem for p in folder.glob("[!_]*.py")]
    assert modules
    for name in modules:
        assert name in known
        assert len(artifact_type(name, Project(None, tmp_path)).LAYOUT) > 20


def test_a_projects_own_type_has_its_place_in_the_graph(tmp_path: Path) -> None:
    text = OWN + 'IS_A = ("raw_jsonl",)\nCONVERT_TO = {"binidx": "mine/pack"}\nDESCRIPTION: str = "Mine."\n1 / 0\n'
    types = load_catalog(own(tmp_path, "mine", text)).types
    assert types.accepts("training_jsonl", "mine") and not types.accepts("mine", "training_jsonl")
    assert types.converter("binidx", "mine") == "mine/pack" and types.descriptions["mine"] == "Mine."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IS_A = 'raw_jsonl'", r"mine\.py:1: IS_A is not a tuple of type names"),
        ("x = ()\nIS_A = x", r"mine\.py:2: IS_A is not a tuple"),
        ("IS_A = ('raw_json',)", r"mine is_a 'raw_json', which is no type\. Did you mean raw_jsonl"),
        ("CONVERT_TO = {'binidx': 1}", "CONVERT_TO is not a mapping"),
        ("def", r"mine\.py: is no Python module"),
    ],
)
def test_a_wrong_place_in_the_graph_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_catalog(own(tmp_path, "mine", text))


def test_markdown_cannot_be_broken_by_what_it_shows() -> None:
    text = table(("a", "b"), [("x|y\nz", 1234567), (None, 0.5)])
    assert text.splitlines()[2:] == ["| x\\|y z | 1,234,567 |", "| – | 0.500 |"]
    block = json_block([{"t": "```\n# out"}, {"t": "x" * 1000}], width=50)
    assert block.count("```") == 2 and max(map(len, block.splitlines())) == 51
