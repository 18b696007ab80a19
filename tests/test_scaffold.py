"""`nemotron init` and `nemotron steps new`: what they write runs at once; what they refuse leaves nothing behind."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers import REPO
from interpreters import payload_python

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.cli import scaffold
from nemotron_dagster.cli.main import cli
from nemotron_dagster.cli.names import check_step_id
from nemotron_dagster.config.check import check_project
from nemotron_dagster.errors import NemotronError, PreflightError, UsageError
from nemotron_dagster.project import Project, find_project

Nemotron = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new project, which the commands of this process work in."""
    root = tmp_path / "lab"
    scaffold.write_project(root, scaffold.project_files("lab"))
    for name in ("NEMOTRON_HOME", "NEMOTRON_ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NEMOTRON_PROJECT", str(root))
    for cached in (find_project, load_catalog):
        cached.cache_clear()
    yield root
    for cached in (find_project, load_catalog):
        cached.cache_clear()


def invoke(*args: str) -> Result:
    load_catalog.cache_clear()
    return CliRunner().invoke(cli, args)


def refused(*args: str) -> NemotronError:
    error = invoke(*args).exception
    assert isinstance(error, NemotronError), error
    return error


def below(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*"))


def test_a_new_project_passes_its_own_tests(nemotron: Nemotron, environ: dict[str, str], tmp_path: Path) -> None:
    envs = Path(payload_python("data")).parents[2]
    done = nemotron("init", "my-lab", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "    steps/\n      data/\n        times_tables/\n          config/\n            default.yaml\n" in done.stdout
    )
    assert done.stdout.endswith(
        "Next:\n    cd my-lab\n    nemotron steps run data/times_tables -c tiny -r gentle\n"
        "    nemotron pipelines run times_tables\n"
    )
    project, before = tmp_path / "my-lab", below(tmp_path / "my-lab")
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        env={**environ, "NEMOTRON_ENVS": str(envs), "PYTHONDONTWRITEBYTECODE": "1", "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "4 passed" in tested.stdout
    assert below(project) == before


def test_a_new_project_has_no_faults_and_keeps_the_house_rules(lab: Path) -> None:
    assert check_project(Project(lab, lab / ".nemotron"), "data/times_tables") == []
    ruff(lab)


def test_editors_know_the_profiles_of_a_new_project(lab: Path) -> None:
    import jsonschema

    first = (lab / "env.toml").read_text().splitlines()[0]
    schema = json.loads((lab / first.removeprefix("#:schema ")).read_text())
    profiles = tomllib.loads((lab / "env.toml").read_text())
    jsonschema.validate(profiles, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(profiles | {"gentle": {"executor": "nice", "nicenes": 10}}, schema)


def ruff(project: Path) -> None:
    """The project's Python is as this repository's."""
    for command in (["check"], ["format", "--check"]):
        config = ["--config", str(REPO / "pyproject.toml"), "--no-cache", "-q", "."]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *config], cwd=project, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_key_of_the_projects_own_target_gets_the_closest_one(nemotron: Nemotron, lab: Path) -> None:
    text = (lab / "env.toml").read_text()
    (lab / "env.toml").write_text(text.replace("niceness = 10", "nicenes = 10"))
    done = nemotron("steps", "run", "data/times_tables", "-c", "tiny", "-r", "gentle", cwd=lab)
    assert done.returncode == 4 and "nicenes" in done.stderr and "Did you mean niceness" in done.stderr
    (lab / "env.toml").write_text(text.replace("niceness = 10", "niceness = 20"))
    done = nemotron("steps", "run", "data/times_tables", "-c", "tiny", "-r", "gentle", cwd=lab)
    assert done.returncode == 4 and "niceness" in done.stderr and "Traceback" not in done.stderr


def test_an_empty_folder_that_one_stands_in_becomes_a_project(nemotron: Nemotron, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    inode = here.stat().st_ino
    done = nemotron("init", cwd=here)
    assert done.returncode == 0, done.stderr
    assert here.stat().st_ino == inode and (here / "workspace.yaml").is_file()
    assert 'name = "here"' in (here / "pyproject.toml").read_text()
    assert not [p for p in below(here) if "/.here." in p]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["full"], 5, "is not empty (it has a, b, c, d, e and 2 more)"),
        (["file"], 2, "is a file"),
        (["link"], 2, "is a link to nothing"),
        (["none/below"], 2, "mkdir -p"),
        (["my lab"], 2, "the folder 'my lab' must begin with a letter"),
        (["über"], 2, "--name uber"),
        (["x", "--name", "../up"], 2, "--name '../up'"),
        (["x", "--name", ""], 2, "is empty"),
        (["x", "--name", "9lives"], 2, "--name lives"),
        (["x", "--name", "con"], 2, "is a device on Windows"),
        (["x", "--name", "n" * 65], 2, "65 characters"),
        (["x", "--name", "end-"], 2, "--name end"),
        (["x", "--name", "a\nb"], 2, "must begin"),
        (["x", "--name", "${HOME}"], 2, "must begin"),
    ],
)
def test_init_refuses_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, message: str
) -> None:
    (tmp_path / "full").mkdir()
    for name in "abcdefg":
        (tmp_path / "full" / name).touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    monkeypatch.chdir(tmp_path)
    before = below(tmp_path)
    error = refused("init", *args)
    assert error.exit_code == code and message in str(error)
    assert below(tmp_path) == before


@pytest.mark.parametrize("existing", [False, True, None])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_init_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, existing: bool | None
) -> None:
    folder = tmp_path / "lab"
    if existing is not False:
        folder.mkdir()
    if existing is None:
        monkeypatch.chdir(folder)
    before = below(tmp_path)
    files, real, calls = scaffold.project_files("lab"), os.rename, []

    def rename(source: Path, target: Path) -> None:
        calls.append(target)
        if existing is not None or len(calls) == 4:
            raise error
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(PreflightError if isinstance(error, OSError) else KeyboardInterrupt):
        scaffold.write_project(folder, files)
    assert calls and below(tmp_path) == before


@pytest.mark.parametrize(
    ("step_id", "options", "made"),
    [
        ("data/rows", ["--produces", "synthetic_jsonl"], "synthetic_jsonl"),
        ("data/changed", ["--consumes", "raw_jsonl", "--description", "Changes rows."], "training_jsonl"),
        ("a/b/c_2", ["--consumes", "checkpoint_hf", "--launch", "torchrun"], "training_jsonl"),
    ],
)
def test_a_new_step_without_faults_runs_at_once(
    nemotron: Nemotron, lab: Path, step_id: str, options: list[str], made: str
) -> None:
    assert invoke("steps", "new", step_id, *options).exit_code == 0
    load_catalog.cache_clear()
    assert check_project(Project(lab, lab / ".nemotron"), step_id) == []
    done = nemotron("steps", "run", step_id, "-c", "tiny", cwd=lab)
    assert done.returncode == 0, done.stderr
    asset = lab / ".nemotron/artifacts" / step_id
    pointer = json.loads((asset / "latest.json").read_text())
    manifest = json.loads((asset / pointer["uri"] / "artifact.json").read_text())
    assert manifest["type"] == made and manifest["facts"]["rows"] == 3


def test_a_new_step_of_another_type_says_what_is_to_be_written(nemotron: Nemotron, lab: Path) -> None:
    done = invoke("steps", "new", "train/mine", "--consumes", "training_jsonl", "--produces", "checkpoint_hf")
    assert "refuses to run until main in step.py makes a checkpoint_hf" in done.output
    load_catalog.cache_clear()
    assert check_project(Project(lab, lab / ".nemotron"), "train/mine") == []
    assert "until `main` makes a checkpoint_hf" in (lab / "steps/train/mine/README.md").read_text()
    ran = nemotron("steps", "run", "train/mine", "-c", "tiny", cwd=lab)
    assert ran.returncode == 1
    assert f"Write main in {lab}/steps/train/mine/step.py" in ran.stderr and "Traceback" not in ran.stderr


def test_what_a_new_step_cannot_read_is_refused_and_not_left_out(nemotron: Nemotron, lab: Path) -> None:
    invoke("steps", "new", "data/rows", "--consumes", "eval_results")
    (lab / "results.json").write_text("{}")
    script = lab / "steps/data/rows/step.py"
    config = lab / "given.yaml"
    config.write_text(f"eval_results: {lab}/results.json\noutput_dir: {lab}/out\nrows: 3\n")
    done = subprocess.run(
        [sys.executable, str(script), "--config", str(config)],
        env={**os.environ, "PYTHONPATH": str(REPO / "steps"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3 and "reading a eval_results is not written yet" in done.stderr
    assert not (lab / "out").exists()


def test_every_combination_of_options_makes_a_step_without_faults(lab: Path) -> None:
    consumed = [(), ("raw_jsonl",), ("checkpoint_hf",), ("raw_jsonl", "checkpoint_hf"), ("binidx",)]
    produced = ("training_jsonl", "checkpoint_hf", "packed_parquet")
    cases = list(itertools.product(("python", "torchrun", "ray"), consumed, produced))
    for i, (launch, consumes, produces) in enumerate(cases):
        options = [x for c in consumes for x in ("--consumes", c)]
        done = invoke("steps", "new", f"x/y{i}", *options, "--produces", produces, "--launch", launch)
        assert done.exit_code == 0, done.exception
    load_catalog.cache_clear()
    assert [str(f) for f in check_project(Project(lab, lab / ".nemotron")) if f.step.startswith("x/")] == []
    steps = load_catalog(Project(lab, lab / ".nemotron")).steps
    for i, (launch, consumes, produces) in enumerate(cases):
        step = steps[f"x/y{i}"]
        assert step.runspec is not None and step.runspec.launch == launch
        assert (tuple(p.type for p in step.consumes), step.produces[0].type) == (consumes, produces)
    ruff(lab)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["data/times_tables"], "exists already"),
        (["sft/automodel"], "is a bundled step.*--override"),
        (["data/new", "--override"], "no bundled step data/new"),
        (["data/new", "--consumes", "raw_josnl"], "--consumes raw_josnl: no artifact type. Did you mean raw_jsonl"),
        (["data/new", "--produces", "nothing_like_it_at_all"], "Types: .*training_jsonl"),
        (["data/new", "--consumes", "raw_jsonl", "--consumes", "raw_jsonl"], "named twice"),
        (["data/new", "--description", 'a "quoted" one'], "--description"),
        (["data/new", "--description", "a\x1b[31m"], "--description"),
        (["data/times_tables/more"], "cannot lie in another's, and data/times_tables is a step"),
        (["rl/nemo_rl"], "cannot lie in another's, and rl/nemo_rl/dpo is a step"),
        (["curate/nemo_curator", "--override", "--produces", "eval_results"], "takes filtered_jsonl from"),
    ],
)
def test_steps_new_refuses_and_writes_nothing(lab: Path, args: list[str], message: str) -> None:
    before = below(lab)
    error = refused("steps", "new", *args)
    assert isinstance(error, UsageError) and re.search(message, str(error)), error
    assert below(lab) == before


@pytest.mark.parametrize(
    "step_id",
    [
        "", "x", "/x/y", "x//y", "x/", "../x", "x/../../y", "x/./y", "x\\y", "_x/y", "x/_y", ".x/y", "X/y", "x/ÿ",
        "x/y z", "x/y-z", "x/y__z", "x/y_", "x/1y", "x/con", "com1/x", "x/y.z", "x/" + "y" * 65, "a/b/c/d/e", "x/y\n",
        "x/\u202ey", "x/$(id)",
    ],
)  # fmt: skip
def test_an_id_that_is_no_good_somewhere_is_refused(step_id: str) -> None:
    with pytest.raises(UsageError, match=r"^step id "):
        check_step_id(step_id)


def test_an_id_is_suggested_where_one_is_near() -> None:
    with pytest.raises(UsageError, match="For example data/my_rows"):
        check_step_id("Data/My-Rows")


def test_a_bundled_step_is_replaced_on_demand_with_the_same_ports(lab: Path) -> None:
    assert invoke("steps", "new", "curate/nemo_curator", "--override").exit_code == 0
    load_catalog.cache_clear()
    mine = load_catalog(Project(lab, lab / ".nemotron")).steps["curate/nemo_curator"]
    assert mine.directory == lab / "steps/curate/nemo_curator"
    assert [p.type for p in (*mine.consumes, *mine.produces)] == ["raw_jsonl", "filtered_jsonl"]
    assert [f for f in check_project(Project(lab, lab / ".nemotron")) if f.level == "error"] == []


def test_outside_a_project_steps_new_names_init(nemotron: Nemotron, tmp_path: Path) -> None:
    done = nemotron("steps", "new", "data/rows", cwd=tmp_path)
    assert done.returncode == 2 and "nemotron init" in done.stderr and "Traceback" not in done.stderr


def test_a_new_step_that_cannot_be_written_whole_is_not_there(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = below(lab)

    def fail(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    assert "No space left" in str(refused("steps", "new", "fresh/rows"))
    assert below(lab) == before


def test_listing_steps_imports_no_scaffold(tmp_path: Path) -> None:
    code = """
import sys
from nemotron_dagster.cli.main import main
try:
    main(["steps", "list", "--json"])
except SystemExit as e:
    assert not e.code, e.code
wrong = [m for m in sys.modules if m.startswith("nemotron_dagster.cli.") and m.split(".")[2] in
         ("scaffold", "new_step", "check", "templates", "names")]
assert not wrong, wrong
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
