"""``nemotron`` itself: listing, showing, errors, pipes, and what an import costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import REPO, ROWS, ROWS_TOML, add_step
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.cli import render
from nemotron_dagster.plain_toml import plain
from nemotron_dagster.project import Project

Run = Callable[..., subprocess.CompletedProcess[str]]
NINE = ["id", "name", "category", "description", "tags", "path", "consumes", "produces", "parameters"]
IDS = list(load_catalog(Project(None, Path("/nonexistent"))).steps)


def ids(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [row["id"] for row in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (
            ["--consumes", "synthetic_jsonl", "--compatible", "--category", "rl"],
            ["rl/nemo_rl/dpo", "rl/nemo_rl/rlhf", "rl/nemo_rl/rlvr"],
        ),
        (["--consumes", "synthetic_jsonl"], []),
        (
            ["--produces", "training_jsonl", "--compatible"],
            ["curate/nemo_curator", "data_prep/rl_prep", "sdg/data_designer", "translate/nemo_curator"],
        ),
        (["--produces", "training_jsonl"], ["data_prep/rl_prep"]),
        (["--produces", "benchmark_parquet", "--compatible"], ["byob/mcq"]),
        (["--tag", "lora", "--category", "peft"], ["peft/automodel", "peft/megatron_bridge"]),
    ],
)
def test_filters_are_exact_and_compatible_follows_is_a_in_its_direction(
    nemotron: Run, tmp_path: Path, args: list[str], found: list[str]
) -> None:
    assert ids(nemotron("steps", "list", "--json", *args, cwd=tmp_path)) == found


def test_compatible_alone_is_refused_instead_of_ignored(nemotron: Run, tmp_path: Path) -> None:
    done = nemotron("steps", "list", "--compatible", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "--consumes or --produces" in done.stderr


@pytest.mark.parametrize("columns", ["40", "80", "120", "200"])
@pytest.mark.parametrize("form", [[], ["--tree"]])
def test_no_id_is_folded_or_cut_at_any_width(nemotron: Run, tmp_path: Path, columns: str, form: list[str]) -> None:
    done = nemotron("steps", "list", *form, cwd=tmp_path, COLUMNS=columns)
    assert done.returncode == 0 and done.stdout.startswith("Available Steps\n")
    words = done.stdout.split()
    assert [w for w in words if w in IDS] == IDS
    limit = max(int(columns), max(map(len, IDS)) + 8)
    assert max(map(len, done.stdout.splitlines())) <= limit


def test_into_a_pipe_each_step_is_one_line(environ: dict[str, str], tmp_path: Path) -> None:
    env = {k: v for k, v in environ.items() if k != "COLUMNS"}
    argv = [sys.executable, "-m", "nemotron_dagster.cli.main", "steps", "list"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()[3:]] == IDS


@pytest.mark.parametrize("args", ["list", "list --json", "list --tree", "show sft/automodel", "show dpo --json"])
def test_output_that_nobody_reads_is_no_error(environ: dict[str, str], tmp_path: Path, args: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "nemotron_dagster.cli.main", "steps", *args.split()]
    done = subprocess.run(
        argv, cwd=tmp_path, env=environ, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_terminal_that_is_not_utf8_gets_ascii_json_and_readable_text(nemotron: Run, tmp_path: Path) -> None:
    for args in (["show", "byob/mcq", "--json"], ["list", "--tree"]):
        done = nemotron("steps", *args, cwd=tmp_path, PYTHONIOENCODING="latin-1")
        assert done.returncode == 0 and done.stdout.isascii() and done.stderr == ""
    plain_text = nemotron("steps", "show", "byob/mcq", "--json", cwd=tmp_path)
    data = json.loads(nemotron("steps", "show", "byob/mcq", "--json", cwd=tmp_path, PYTHONIOENCODING="latin-1").stdout)
    assert data == json.loads(plain_text.stdout)


def test_show_json_has_the_reference_keys_first_and_then_ours(nemotron: Run, tmp_path: Path) -> None:
    data = json.loads(nemotron("steps", "show", "sft/automodel", "--json", cwd=tmp_path).stdout)
    assert list(data)[:10] == [*NINE, "runspec"]
    keys = ["name", "image", "launch", "config_dir", "default_config", "resources"]
    assert list(data["runspec"]) == keys and data["payload"] == "ready"
    facts = {f["name"]: f for f in data["config_details"]}
    assert list(facts) == data["configs"] == ["default", "tiny"]
    assert (facts["default"]["nodes"], facts["default"]["gpus_per_node"]) == (1, 4)  # the runspec's
    assert (facts["tiny"]["gpus_per_node"], facts["tiny"]["local"]) == (0, "on CPU")  # its own run.env's
    assert facts["tiny"]["purpose"].startswith("Teaches") and "local" in facts["tiny"]["executors"]


def test_show_says_what_each_config_needs_and_which_profiles_fit(nemotron: Run, project: Path) -> None:
    folder = project / "steps/demo/rows/config"
    (folder / "default.yaml").write_text("n: 1\n")
    (folder / "big.yaml").write_text(
        "# For a cluster,\n# over night.\n\n# not this\ndefaults: default\n"
        "run: {env: {nodes: '${oc.env:NO_SUCH_NODES,2}', gpus_per_node: 8}}\n"
    )
    (folder / "one.yaml").write_text("run: {env: {gpus_per_node: 1}}\n")
    (folder / "broken.yaml").write_text("a: [1\n")
    (project / "env.toml").write_text(
        '[lap]\nexecutor = "local"\n[base]\nexecutor = "slurm"\n[big]\nextends = "base"\n'
        '[elsewhere]\nexecutor = "nowhere"\n'
    )
    data = json.loads(nemotron("steps", "show", "rows", "--json", cwd=project).stdout)
    facts = {f["name"]: f for f in data["config_details"]}
    big = facts["big"]
    assert (big["purpose"], big["nodes"], big["gpus_per_node"]) == ("For a cluster, over night.", 2, 8)
    assert (
        "local" not in big["executors"] and big["local"] == "no: needs 2 nodes" and big["profiles"] == ["base", "big"]
    )
    assert facts["one"]["local"] == "with 1 GPU" and facts["default"]["profiles"] == ["lap", "base", "big", "local"]
    assert "broken.yaml" in facts["broken"]["problem"]
    text = nemotron("steps", "show", "rows", cwd=project).stdout
    assert "For a cluster, over night. Needs 2 x 8 GPUs." in " ".join(text.split())
    assert "broken — cannot be read" in text


def test_show_prints_parameters_that_no_config_holds_and_says_planned(nemotron: Run, project: Path) -> None:
    toml = ROWS_TOML.replace("demo/rows", "demo/plan").replace('env = "engine"', 'payload = "planned"')
    add_step(project, "demo/plan", toml + '[[parameters]]\nname = "no.such.key"\n', ROWS, default="n: 1\n")
    text = nemotron("steps", "show", "plan", cwd=project).stdout
    assert "no.such.key" in text and "Planned" in text and "exits with code 9" in text


def test_a_broken_env_toml_does_not_hide_a_step(nemotron: Run, project: Path) -> None:
    (project / "env.toml").write_text("[x\n")
    done = nemotron("steps", "show", "rows", cwd=project)
    assert done.returncode == 0 and "demo/rows" in done.stdout and "env.toml" in done.stderr


@pytest.mark.parametrize("command", [["list", "--json"], ["show", "rows", "--json"], ["run", "rows", "-d"]])
def test_a_broken_step_is_told_once_by_name_and_the_others_work(
    nemotron: Run, project: Path, command: list[str]
) -> None:
    for name in ("one", "two"):
        (add_step(project, f"demo/{name}", "", ROWS, default="n: 1\n") / "step.toml").write_text("[step\n")
    done = nemotron("steps", *command, cwd=project)
    assert done.returncode == 0 and "demo/rows" in done.stdout
    assert done.stderr.count("demo/one is left out") == done.stderr.count("demo/two is left out") == 1
    assert "step.toml:1:" in done.stderr


def test_a_broken_step_is_an_asset_with_its_error_and_the_definitions_load(project: Path) -> None:
    import dagster as dg

    from nemotron_dagster.dagster.definitions import build_definitions

    folder = add_step(project, "demo/bad_one", ROWS_TOML, ROWS, default="n: 1\n")
    (folder / "step.toml").write_text("[step\n")
    graph = build_definitions(Project(project, project / ".nemotron")).resolve_asset_graph()
    node = graph.get(dg.AssetKey(["demo", "bad_one"]))
    assert not node.is_materializable and node.group_name == "broken"
    assert "step.toml:1:" in (node.description or "")
    assert graph.get(dg.AssetKey(["demo", "rows"])).is_materializable


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["stpes", "list"], "no such command 'stpes'. Did you mean steps?"),
        (["steps", "lst"], "no such command 'lst'. Did you mean list?"),
        (["steps", "list", "--categroy", "x"], "no such option --categroy. Did you mean --category"),
        (["steps", "show"], "STEP_ID is missing"),
        (["--bogus"], "no such option --bogus"),
        (["steps", "show", "sft/automodle"], "Did you mean: sft/automodel"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_usage_is_one_message_with_the_closest_that_exists(
    nemotron: Run, tmp_path: Path, args: list[str], message: str, as_json: bool
) -> None:
    done = nemotron(*args, *(["--json"] if as_json else []), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    if as_json:
        error = json.loads(done.stderr)
        assert (error["error"], error["exit_code"]) == ("UsageError", 2) and message in error["message"]
    else:
        assert done.stderr.startswith("Error: ") and message in done.stderr and "Usage:" not in done.stderr


def test_an_error_in_json_names_file_line_and_column(nemotron: Run, project: Path) -> None:
    file = project / "steps/demo/rows/step.toml"
    file.write_text(file.read_text().replace('name = "Rows"', 'name = "Rows'))
    done = nemotron("steps", "show", "demo/rows", "--json", cwd=project)
    error = json.loads(done.stderr)
    assert (done.returncode, done.stdout, error["error"]) == (3, "", "ConfigError")
    assert (error["file"], error["line"]) == (str(file), 3) and error["column"] > 1
    assert len(error["warnings"]) == 1


PLANT = """
import sys
import nemotron_dagster.cli.steps as steps
from nemotron_dagster.cli.main import main
def boom(*args): raise {error}
steps.load_catalog = boom
main(sys.argv[1:])
"""


def planted(error: str, *args: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", PLANT.format(error=error), *args]
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_a_bug_of_ours_is_one_line_and_its_traceback_only_with_v(environ: dict[str, str], tmp_path: Path) -> None:
    env = {**environ, "PYTHONPATH": str(REPO)}
    done = planted("ZeroDivisionError('planted\\nbug')", "steps", "list", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (70, "", 1)
    assert done.stderr.startswith("Error: internal error (ZeroDivisionError: planted)") and "nemotron -v" in done.stderr
    shown = planted("ZeroDivisionError('planted')", "-v", "steps", "list", cwd=tmp_path, env=env)
    assert (
        shown.returncode == 70 and "Traceback" in shown.stderr and shown.stderr.splitlines()[-1].startswith("Error: ")
    )
    data = planted("ZeroDivisionError('planted')", "steps", "list", "--json", cwd=tmp_path, env=env)
    assert json.loads(data.stderr)["error"] == "InternalError"


def test_an_interrupt_is_130_and_no_traceback(environ: dict[str, str], tmp_path: Path) -> None:
    done = planted("KeyboardInterrupt()", "steps", "list", cwd=tmp_path, env={**environ, "PYTHONPATH": str(REPO)})
    assert (done.returncode, done.stderr) == (130, "Error: interrupted.\n")


@pytest.mark.parametrize("args", [[], ["steps"], ["pipelines"], ["env"]])
def test_no_arguments_print_the_help_on_stdout(nemotron: Run, tmp_path: Path, args: list[str]) -> None:
    bare = nemotron(*args, cwd=tmp_path)
    asked = [nemotron(*args, flag, cwd=tmp_path).stdout for flag in ("-h", "--help")]
    assert (bare.returncode, bare.stderr) == (0, "") and bare.stdout == asked[0] == asked[1]


@pytest.mark.parametrize("args", [["steps", "list"], ["steps", "show"], ["steps", "run"], []])
def test_help_has_an_example_and_knows_each_option(nemotron: Run, tmp_path: Path, args: list[str]) -> None:
    text = nemotron(*args, "-h", cwd=tmp_path).stdout
    assert f"nemotron {' '.join(args)}".strip() + " " in text.partition("Options:")[0].split("\n", 1)[1]


@pytest.mark.parametrize(
    ("args", "denied"),
    [
        (["steps", "list"], ["dagster", "omegaconf", "pydantic", "rich", "nemo_run", "pyarrow", "yaml"]),
        (["steps", "list", "--json"], ["dagster", "omegaconf", "pydantic", "rich", "nemo_run", "pyarrow", "yaml"]),
        (["steps", "show", "sft/automodel"], ["dagster", "omegaconf", "pydantic", "rich", "nemo_run", "pyarrow"]),
        (["steps", "show", "dpo", "--json"], ["dagster", "omegaconf", "pydantic", "rich", "nemo_run", "pyarrow"]),
        (["steps", "run", "sft/automodel", "-c", "tiny", "-d"], ["dagster", "nemo_run", "pyarrow", "pandas", "torch"]),
    ],
)
def test_a_command_imports_nothing_that_it_does_not_need(
    environ: dict[str, str], tmp_path: Path, args: list[str], denied: list[str]
) -> None:
    code = f"""
import sys
class Deny:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {denied!r}:
            raise SystemExit(f"imports {{name}}")
sys.meta_path.insert(0, Deny())
from nemotron_dagster.cli.main import main
main({args!r})
"""
    env = {**environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_our_json_is_the_standard_librarys(value: object) -> None:
    assert json.loads(render.pretty(value)) == value
    assert render.pretty(value).splitlines() == json.dumps(value, indent=2, ensure_ascii=False).splitlines() or (
        json.loads(render.pretty(value)) == value  # where stdout is not UTF-8
    )


TOML_PIECES = st.sampled_from(
    ["[a]", "[a.b]", "[[c]]", "[a.b.c]", "[c]", 'k = "v"', "k = 1", "j = 0.5", "k = true", 'l = ["a", "b",]',
     "n = [1, 2]", "x = 1_0",
     'm = """\nx\ny"""', 'e = "\\n"', "d = 2020-01-01", "i = {a = 1}", 'q = ""', "", "# c", "a.b = 1", "z = 01",
     'l2 = [\n "a"\n]', "f = 6e9", "g = -1", 't = "é"', "b = [ ]", 'u = """"""', 'v = """a"b"""', "w = 1.", "y = 'lit'",
     "k", "= 1", 'p = "a" # tail', "[ a ]", "[c.d]", "s = 0.5.1", "bom\ufeff = 1", "r = tru"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(TOML_PIECES, max_size=8))
@example(["[a.b]", "[a]"])
@example(["[[c]]", "[c]"])
@example(['k = "v"', 'k = "v"'])
def test_what_the_fast_reader_reads_is_what_tomllib_reads(pieces: list[str]) -> None:
    text = "\n".join(pieces)
    found = plain(text)
    if found is not None:
        assert found == tomllib.loads(text)


@given(st.text(alphabet=' \n\t"=[]#.abc1"\\e'))
def test_nothing_that_tomllib_refuses_is_read_by_the_fast_reader(text: str) -> None:
    found = plain(text)
    if found is not None:
        assert found == tomllib.loads(text)


def test_the_bundles_manifests_are_read_fast() -> None:
    texts = [p.read_text(encoding="utf-8") for p in (REPO / "steps").rglob("step.toml")]
    assert sum(plain(t) is not None for t in texts) >= len(texts) * 0.8


def test_a_linked_step_is_found_and_a_circle_of_links_ends(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (project / "steps/demo/rows").rename(elsewhere)
    (project / "steps/demo/rows").symlink_to(elsewhere)
    (project / "steps/demo/loop").symlink_to(project / "steps")
    catalog = load_catalog(Project(project, project))
    assert "demo/rows" in catalog.steps and not catalog.broken
    assert not [i for i in catalog.steps if "loop" in i]


def test_a_working_directory_that_is_gone_is_named(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    for words in ("steps list", "steps run demo/rows -d", "env list"):
        script = (
            f"mkdir -p gone && cd gone && rmdir ../gone && exec {sys.executable} -m nemotron_dagster.cli.main {words}"
        )
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and "working directory is gone" in done.stderr, done.stderr


def test_a_dry_run_records_the_command_line_in_its_order(nemotron: Callable, project: Path) -> None:
    words = ["n=3", "--flag", "sleep=0", "--", "x=y"]
    done = nemotron("steps", "run", "-d", "demo/rows", *words[:3], "--json", *words[3:], cwd=project)
    recorded = json.loads(done.stdout)["run"]["cli"]
    assert recorded["argv"] == words
    assert recorded["dotlist"] == ["n=3", "sleep=0"] and recorded["passthrough"] == ["--flag", "x=y"]
