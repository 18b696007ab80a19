"""The readers of config sources: OmegaConf's YAML, limits, positions, and files that are no files."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import ROWS, ROWS_TOML, add_step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from repository import files

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.catalog.manifest import load_step
from nemotron_dagster.config.compile import compile_job
from nemotron_dagster.config.source import read_toml, read_value, read_yaml, toml_position, yaml_position
from nemotron_dagster.errors import ConfigError, ProfileError
from nemotron_dagster.files import MAX_DEPTH, MAX_TEXT, MAX_TOML
from nemotron_dagster.project import Project

Reader = Callable[[Path], Any]


def exact(value: Any) -> Any:
    """With types and the order of keys, which == does not look at; nan equals itself."""
    if isinstance(value, dict):
        return [(exact(k), exact(v)) for k, v in value.items()]
    return [exact(v) for v in value] if isinstance(value, list) else (type(value).__name__, repr(value))


@pytest.mark.parametrize("file", files("**/*.yaml", "**/*.yml"), ids=lambda f: f.name)
def test_every_yaml_file_of_the_repository_reads_as_omegaconf_reads_it(file: Path) -> None:
    assert exact(read_yaml(file)) == exact(OmegaConf.to_container(OmegaConf.load(file)))


@pytest.mark.parametrize(
    "text",
    [
        "1", "", "~", "null", "a: 1", "1e-5", "1E5", "1.e5", "-1.5E3", ".5e3", "1e+3", "_1e5", "1e400", "-.inf", ".nan",
        "2020-01-01", "2020-01-01 10:00:00", "1_0", "1__0", "+1", "+_1", "0_", "0x1f", "0x", "0b11", "0b", "017",
        "0o17", "1:30", "1:30.5", "yes", "y", "On", "TRUE", "tRue", "a\tb", "..", "---", "# c", "a #c", "a#c",
        "- 1\n- 2", "{1: 2}", "{1.5: 2}", "{true: 2}", "! 5", "! '5'", "!!str 5", "!!null x", "!!float 1", "!!int '5'",
        "${oc.env:X}", "???", "{<<: {a: 1}}", "{a: &x 1, b: *x}", "{a: &x {b: 1}, c: {<<: *x, d: 2}}",
        "{<<: [{a: 1, b: 1}, {a: 2, c: 3}], z: 1, a: 5}", "{<<: {a: 1}, b: 2, '<<': 3}", "\ufeff1", "a\ufeffb",
        "'1\n\n 2'", '"\\u00e9\\n"', "|\n x\n  y\n", ">-\n x\n y\n", "é", "\U0001f600", "-", "a:b",
    ],
)  # fmt: skip
def test_odd_values_read_as_omegaconf_reads_them(text: str) -> None:
    assert exact(read_value(text, "v")) == exact(OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]))["v"])


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("a: [1\n", 2, 1, "did not find expected ',' or ']'"),
        ("a: 1\na: 2\n", 2, 1, "duplicate key 'a'"),
        ("a:\n  1: x\n  '1': y\n", 3, 3, "duplicate key '1'"),
        ("1: x\ntrue: y\n", 2, 1, "duplicate key 'True'"),
        ("a: {b: 1, b: 2}\n", 1, 11, "duplicate key 'b'"),
        ("a:\n\tb: 1\n", 2, 1, "a tab cannot indent"),
        ("a: @x\n", 1, 4, "'@' cannot start a value; quote it"),
        ("a: 1\n---\nb: 2\n", 2, 1, "a second document begins"),
        ("a: &x [*x]\n", 1, 8, "anchor 'x' contains itself"),
        ("a: *x\n", 1, 4, "anchor 'x' is used, but not defined before"),
        ("a: &x 1\nb: &x 2\n", 2, 4, "anchor 'x' is defined twice"),
        ("~: 1\n", 1, 1, "an empty or null key"),
        ("? [a]\n: 1\n", 1, 3, "a mapping or list cannot be a key"),
        ("a: !!python/object/apply:os.system [id]\n", 1, 4, "tag !!python/object/apply:os.system is not supported"),
        ("a: !!binary aGk=\n", 1, 4, "tag !!binary is not supported"),
        ("a: !!timestamp 2020-01-01\n", 1, 4, "tag !!timestamp is not supported"),
        ("a: !mine x\n", 1, 4, "tag !mine is not supported"),
        ("a: !!int x\n", 1, 4, "'x' is no !!int"),
        ("a: !!bool x\n", 1, 4, "'x' is no !!bool"),
        (f"a: {'9' * 5000}\n", 1, 4, "is no !!int"),
        ("a: {<<: 1}\n", 1, 9, "`<<` takes a mapping"),
        ("a: 'x\x00'\n", 1, 6, r"character U\+0000 is not allowed"),
        ("a: 1\nb: \x1b[31m\n", 2, 4, r"character U\+001B is not allowed"),
    ],
)
def test_malformed_yaml_is_named_by_line_and_column(
    tmp_path: Path, text: str, line: int, column: int, message: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"c\.yaml:{line}:{column}: is not valid YAML: .*{message}.* Mend that line"):
        read_yaml(file)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null\n", "\ufeff", "\ufeff# c\n"])
def test_an_empty_file_is_an_empty_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert read_yaml(tmp_path / "c.yaml") == {}


LAUGHS = "a: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"b{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 40)
)
CHAIN = "a: &a0 [x]\n" + "".join(f"b{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 100,000 values"),
        (CHAIN, "nests deeper"),
        ("[" * 1_000_000, "nests deeper"),
        ("{a: " * 100_000, "nests deeper"),
        ("- " * 100_000, "nests deeper"),
        ("\n".join(" " * i + "a:" for i in range(1000)), "nests deeper"),
        ("? " * 100_000, "cannot be a key"),
        ("[" + "1," * 400_000 + "]", "more than 100,000 values"),
        ("!" * 100_000, "is not supported"),
        ("x" * (2**20 + 1), "larger than 1 MiB"),
    ],
    ids=["laughs", "chain", "lists", "mappings", "dashes", "blocks", "questions", "wide", "tag", "long"],
)
def test_a_bomb_is_refused_before_it_expands_and_with_a_short_message(text: str, message: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError, match=message) as error:
        read_value(text, "override x")
    assert time.process_time() - began < 3
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_a_small_document_with_many_aliases_is_read_in_one_piece(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("base: &b {k: 1}\n" + "".join(f"u{i}: *b\n" for i in range(1000)))
    assert read_yaml(tmp_path / "c.yaml")["u999"] == {"k": 1}


def test_a_config_at_the_depth_limit_still_compiles_and_one_deeper_is_refused(project: Path) -> None:
    step = load_catalog(Project(project, project)).find("demo/rows")

    def nested(depth: int) -> str:
        path = step.directory / "config" / f"d{depth}.yaml"
        path.write_text("defaults: default\n" + "deep: " + "{k: " * depth + "1" + "}" * depth + "\n")
        return path.stem

    train = compile_job(step, nested(MAX_DEPTH - 1)).train
    node, levels = train["deep"], 0
    while isinstance(node, dict):
        node, levels = node["k"], levels + 1
    assert levels == MAX_DEPTH - 1
    with pytest.raises(ConfigError, match=r":2:\d+: .*nests deeper than"):
        compile_job(step, nested(MAX_DEPTH))


def toml(file: Path) -> Any:
    return read_toml(file, ProfileError)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Without the right of root to read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(("reader", "error"), [(read_yaml, ConfigError), (toml, ProfileError)])
def test_what_is_no_readable_file_is_named_and_never_waited_for(
    reader: Reader, error: type[Exception], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "plain").touch()
    (tmp_path / "latin").write_bytes("a: 1\nb: é".encode("latin-1"))
    (tmp_path / "wide").write_text("a = 'x'", encoding="utf-16")
    (tmp_path / "large").write_bytes(b"#" * (MAX_TEXT + 1 if reader is read_yaml else MAX_TOML + 1))
    cases = {
        tmp_path: "is a directory",
        tmp_path / "fifo": "is not a regular file",
        Path("/dev/zero"): "is not a regular file",
        tmp_path / "circle": "too many levels of symbolic links",
        tmp_path / "dangling": "no such file",
        tmp_path / "none": "no such file",
        tmp_path / "plain" / "below": "not a directory",
        tmp_path / ("x" * 300): "file name too long",
        Path("a\x00b"): r"a\\x00b: is no path",
        Path("a\ud800b"): r"a\\ud800b: is no path",
        tmp_path / "latin": r"latin:2:4: is not UTF-8 text \(byte 0xe9\)",
        tmp_path / "wide": r"wide:1:1: is not UTF-8 text",
        tmp_path / "large": "is larger than",
    }
    for path, message in cases.items():
        with pytest.raises(error, match=message) as caught:
            reader(path)
        assert str(caught.value).endswith("."), "no fix"


def test_a_file_without_the_right_to_read_it_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        os.chmod(folder, 0o755)
        file = Path(folder) / "c.yaml"
        file.write_text("a: 1\n")
        file.chmod(0)
        with ordinary_user(), pytest.raises(ConfigError, match=r"c\.yaml: cannot be read \(permission denied\)"):
            read_yaml(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb\n", r"2:2: is not valid TOML: Expected '='"),
        ("a = 1\na = 2", r"2:6: is not valid TOML: Cannot overwrite"),
        ("[a]\n[a]\n", r"2:3: is not valid TOML: Cannot declare"),
        ('a = """', r"1:8: is not valid TOML: Unterminated string"),
        ("a = '\x00'", r"1:6: is not valid TOML: Found invalid character"),
        ("b = 1\na = " + "9" * 5000, "2:1: is not valid TOML: a number has too many digits"),
        ("a = " + "[" * 5000, "nests deeper"),
        ("a = " + "{a=" * 3000, "nests deeper"),
        ("[" + "a." * 900 + "a]\n", "nests deeper"),
        ("a." * 300_000 + "a = 1", "1:1: a key of more than 1000 parts"),
    ],
    ids=range(10),
)
def test_malformed_toml_is_named_by_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "e.toml").write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=rf"e\.toml:.*{message}"):
        read_toml(tmp_path / "e.toml")
    assert time.process_time() - began < 3


def test_a_key_of_a_yaml_file_is_found_where_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a:\n  b.c: 1\n  d: [x, {e: 2}]\n5: {f: 1}\nm: &m {n: 1}\no: {<<: *m, p: 2}\n")
    where = {
        "a": "1:1", "a.d": "3:3", "a.d.0": "3:7", "a.d[1].e": "3:11", "5.f": "4:5", "o.n": "5:8", "o.p": "6:13",
    }  # fmt: skip
    assert {k: str(yaml_position(file, k)) for k in where} == {k: f"{file}:{v}" for k, v in where.items()}
    for key in ("nope", "a.d.2", "a.d.x", "5.f.g", "", "a.d[9].e"):
        assert yaml_position(file, key) is None
    file.write_text("a: [")
    assert yaml_position(file, "a") is None


def test_a_key_of_a_toml_file_is_found_where_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(
        'top = 1 # [x]\n[base] # y\na.b = "#"\n"q.x" = { in = 1, \'y z\' = [1, {k = 2}] }\n'
        's = """\n[fake]\nfake = 1 \\"""\n"""\n  u = \'\'\'x\'\'\'\n[base.env_vars]\n  HF = 1979-05-27 07:32:00\n'
        '[[consumes]]\ntype = "a"\n[[consumes]]\ntype = "b"\n[consumes.deep]\narr = [\n  "]", # ]\n  { z = 1 },\n]\n'
    )
    where = {
        "top": "1:1", "base": "2:2", "base.a": "3:1", "base.a.b": "3:1", 'base."q.x"': "4:1", 'base."q.x".in': "4:11",
        'base."q.x"."y z".1.k': "4:32", "base.s": "5:1", "base.u": "9:3", "base.env_vars": "10:2",
        "base.env_vars.HF": "11:3", "consumes": "12:3", "consumes.0.type": "13:1", "consumes.1.type": "15:1",
        "consumes.1.deep.arr": "17:1", "consumes.1.deep.arr.1.z": "19:5",
    }  # fmt: skip
    assert {k: str(toml_position(file, k)) for k in where} == {k: f"{file}:{v}" for k, v in where.items()}
    for key in ("fake", "base.nope", "consumes.2", "", "a b"):
        assert toml_position(file, key) is None


BROKEN = Path("steps/demo/broken")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "demo/rows"', "id = 5", r"step\.toml:2:1: id = 5 is not text in quotes"),
        ('env = "engine"', "env = ['x']", r"step\.toml:6:1: env = .*text"),
        ("resumable = true", "resumable = 'yes'", r"step\.toml:7:1: resumable = 'yes' is not true or false"),
        ("resumable = true", "tags = 5", r"step\.toml:7:1: tags = 5 is not a list of texts"),
        ("resumable = true", "tags = [5]", "tags = "),
        ("resumable = true", "freeform = 'model'", "freeform = 'model' is not a list of texts"),
        ("resumable = true", "payload = 'done'", "payload = 'done' is not 'ready' or 'planned'"),
        ("resumable = true", "payload = []", "payload"),
        ('name = "Rows"', "name = 2020-01-01", "name = "),
        ("[step]\n", "consumes = 'x'\n[step]\n", r"step\.toml:1:1: consumes = 'x' is not an array of tables"),
        ("[step]\n", "models = [1]\n[step]\n", "models = "),
        ("[step]\n", "reference = 1\n[step]\n", "reference = 1 is not a table"),
        ("[[produces]]", "[produces]", "produces = "),
        ('type = "raw_jsonl"', "type = 1", r"step\.toml:9:1: type = 1"),
        ('bind = "output_dir"', "bind = ''", "bind = '' is not a config key"),
        ('bind = "output_dir"', "bind = 'a b'", "bind = 'a b'"),
        ('bind = "output_dir"', "bind = []", r"bind = \[\] is not a config key"),
        ('bind = "output_dir"', "bind = ['a', 5]", "bind = .* is not a config key"),
        ('bind = "output_dir"', "bind = [{key = 'a', sufix = ''}]", "unknown key 'sufix'.*Did you mean suffix"),
        ('bind = "output_dir"', "path = '../x'", "not a path below the output directory"),
        ('bind = "output_dir"', "path = '/x'", "not a path below the output directory"),
        ('bind = "output_dir"', "required = 1", "required = 1 is not true or false"),
        ("[[parameters]]", '[[produces]]\ntype = "raw_jsonl"\n[[parameters]]', "a second .* named 'raw_jsonl'"),
        ('choices = ["a", "b", "null"]', "choices = 'a'", "choices = 'a' is not a list"),
        ('choices = ["a", "b", "null"]', "default = 2020-01-01", "default = .*quote a date"),
        ('choices = ["a", "b", "null"]', "chioces = []", "toml:16:1: unknown key 'chioces'.*Did you mean choices"),
        ("[step]\n", "[[step]]\n", "has no .step. table"),
    ],
)  # fmt: skip
def test_a_manifest_value_of_the_wrong_kind_breaks_its_step_only(
    project: Path, old: str, new: str, message: str
) -> None:
    text = ROWS_TOML.replace("demo/rows", "demo/broken")
    old = old.replace("demo/rows", "demo/broken")
    assert old in text
    add_step(project, "demo/broken", text.replace(old, new), ROWS, default="n: 1\n")
    breaks(project, message)


def test_one_artifact_can_fill_several_keys_each_with_its_suffix(project: Path) -> None:
    bind = "bind = ['a', {key = 'b.c', suffix = '/y'}, {key = 'd'}]\nsuffix = '/x'"
    text = ROWS_TOML.replace("demo/rows", "demo/many").replace('bind = "output_dir"', bind)
    add_step(project, "demo/many", text, ROWS, default="n: 1\n")
    port = load_catalog(Project(project, project / ".nemotron")).find("demo/many").produces[0]
    assert port.keys == (("a", "/x"), ("b.c", "/y"), ("d", "/x"))


def breaks(project: Path, message: str) -> None:
    catalog = load_catalog(Project(project, project / ".nemotron"))
    assert list(catalog.broken) == ["demo/broken"]
    assert "demo/rows" in catalog.steps and "sft/automodel" in catalog.steps
    with pytest.raises(ConfigError, match=message):
        catalog.find("demo/broken")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# gpus_per_node = 0", "# nodes = 'two'", r"step\.py:6:3: nodes = 'two' is not a whole number"),
        ("# gpus_per_node = 0", "# nodes = 0", "nodes = 0"),
        ("# gpus_per_node = 0", "# nodes = true", "nodes = True"),
        ("# gpus_per_node = 0", "# gpus_per_node = -1", "gpus_per_node = -1"),
        ("# gpus_per_node = 0", "# gpu_per_node = 1", "unknown key 'gpu_per_node'.*Did you mean gpus_per_node"),
        ("# gpus_per_node = 0", "# nodes =", r"step\.py:6:8: its `# /// script` block is not valid TOML"),
        ("# [tool.runspec]", "# [tool.runspec]\n# config = 1", "config = 1 is not a table"),
        ('# launch = "python"', "# launch = 1", "launch = 1 is not text"),
        ('# launch = "python"', "# cmd = []", "cmd"),
        ("# [tool.runspec.run]", "# [tool.runspec.config]\n# dir = '../rows/config'", "leaves the step's folder"),
        ("# [tool.runspec.run]", "# [tool.runspec.config]\n# dir = '/etc'", "leaves the step's folder"),
        ("# [tool.runspec.run]", "# [tool.runspec.config]\n# default = '../x'", "default = '../x'"),
        ("# [tool.runspec]\n", "", r"no \[tool.runspec\] table"),
    ],
)
def test_a_runspec_value_of_the_wrong_kind_breaks_its_step_only(
    project: Path, old: str, new: str, message: str
) -> None:
    script = ROWS.replace('# name = "steps/demo/rows"\n', "")
    if "[tool.runspec.config]" in new:
        new += "\n# [tool.runspec.run]"
    if old == "# [tool.runspec]\n":
        script = script.replace("# [tool.runspec.", "# [tool.other.")
    assert old in script
    toml_text = ROWS_TOML.replace("demo/rows", "demo/broken")
    add_step(project, "demo/broken", toml_text, script.replace(old, new), default="n: 1\n")
    breaks(project, message)


@pytest.mark.parametrize("name", ["step.toml", "step.py"])
@pytest.mark.parametrize("kind", ["directory", "fifo", "circle"])
def test_something_else_in_place_of_a_manifest_breaks_its_step_only(project: Path, name: str, kind: str) -> None:
    folder = add_step(project, "demo/broken", ROWS_TOML.replace("demo/rows", "demo/broken"), ROWS, default="n: 1\n")
    (folder / name).unlink()
    if kind == "directory":
        (folder / name).mkdir()
    elif kind == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(name)
    breaks(project, name)


def test_a_config_folder_that_cannot_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        step = add_step(Path(folder), "demo/rows", ROWS_TOML, ROWS, default="n: 1\n")
        loaded = load_step(step, Path(folder) / "steps")
        (step / "config").chmod(0)
        try:
            with ordinary_user():
                with pytest.raises(ConfigError, match=r"config: cannot be read \(permission denied\)"):
                    load_step(step, Path(folder) / "steps")
                with pytest.raises(ConfigError, match=r"config: cannot be read \(Permission denied\)"):
                    _ = loaded.configs
        finally:
            (step / "config").chmod(0o755)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine = 1\n", r"types\.toml:1:1: mine = 1 is not a table"),
        ("[mine]\nis_a = 'raw_jsonl'\n", r"types\.toml:2:1: is_a = 'raw_jsonl' is not a list of texts"),
        ("[mine]\nis_a = ['raw_json']\n", r"types\.toml:2:1: mine is_a 'raw_json'.*Did you mean raw_jsonl"),
        ("[mine]\nconvert_to = []\n", "convert_to = "),
        ("[mine]\nconvert_to = {raw_jsonl = 1}\n", r"types\.toml:2:15: raw_jsonl = 1 is not text"),
        ("[mine]\ndescription = 1\n", "description = 1"),
        ("[mine]\nisa = []\n", "Did you mean is_a"),
    ],
)
def test_a_wrong_type_file_is_named(project: Path, text: str, message: str) -> None:
    (project / "steps" / "types.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_catalog(Project(project, project / ".nemotron"))


def test_a_directory_named_types_toml_is_named(project: Path) -> None:
    (project / "steps" / "types.toml").mkdir()
    with pytest.raises(ConfigError, match=r"types\.toml: is a directory"):
        load_catalog(Project(project, project / ".nemotron"))


values = st.recursive(
    st.one_of(
        st.sampled_from(["true", "0", "-1", "1e9", "''", '"x"', "nan", "2020-01-01", "'../x'", "''''''", "'\\u0000'"]),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda v: f"[{', '.join(v)}]"),
        st.lists(inner, max_size=2).map(lambda v: "{" + ", ".join(f"k{i} = {x}" for i, x in enumerate(v)) + "}"),
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_but_a_config_error_leaves_a_mutated_manifest(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "steps" / "demo" / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("step.toml", ROWS_TOML), ("step.py", ROWS)):
        lines = text.split("\n")
        block = len(lines) if name == "step.toml" else 9
        for _ in range(data.draw(st.integers(0, 2))):
            i = data.draw(st.integers(0, block - 1))
            kind = data.draw(st.sampled_from(["value", "drop", "twice", "noise"]))
            if kind == "value" and "=" in lines[i]:
                lines[i] = lines[i].partition("=")[0] + "= " + data.draw(values)
            elif kind == "drop":
                lines[i] = ""
            elif kind == "twice":
                lines[i] += "\n" + lines[i]
            else:
                lines[i] += data.draw(st.text(max_size=5))
        (folder / name).write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    try:
        step = load_step(folder, tmp_path / "steps")
    except ConfigError as e:
        assert str(e).startswith(str(folder)) and str(e)[-1] in ".?", str(e)
    else:
        assert step.id == "demo/rows" and isinstance(step.tags, tuple)
