"""`nemotron steps check`: every fault is found, named by file and line, and hinders nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import COUNT, COUNT_TOML, ROWS, ROWS_TOML, ROWS_YAML, add_step

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.catalog.check import Finding
from nemotron_dagster.config.check import check_project
from nemotron_dagster.errors import UsageError
from nemotron_dagster.project import Project

TINY = "# Seconds.\ndefaults: default.yaml\n"
DEFAULT = f"# Rows.\n{ROWS_YAML}"
TOML = ROWS_TOML.replace('"demo/rows"', '"demo/x"')
SCRIPT = ROWS.replace("steps/demo/rows", "steps/demo/x")
OOM = '[[errors]]\nname = "oom"\nrecovery = "Take less."\n'
PLANNED = SCRIPT[: SCRIPT.index("def main")] + 'if __name__ == "__main__":\n    payload.not_built("demo/x")\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with one step, demo/x, in which nothing is wrong."""
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    folder = add_step(tmp_path, "demo/x", TOML, SCRIPT, default=DEFAULT, tiny=TINY)
    (folder / "README.md").write_text("# X\n")
    return tmp_path


def check(root: Path, step_id: str | None = "demo/x") -> list[Finding]:
    load_catalog.cache_clear()
    return check_project(Project(root, root / ".nemotron"), step_id)


def test_the_bundle_has_no_errors() -> None:
    found = check_project(Project(None, Path("/nonexistent")))
    assert [str(f) for f in found if f.level == "error"] == []


def test_a_faultless_step_has_no_findings_and_nothing_is_written(root: Path) -> None:
    before = sorted(root.rglob("*"))
    assert check(root) == []
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("old", "new", "line", "level", "message"),
    [
        (
            'bind = "output_dir"',
            'bind = "output_dri"',
            10,
            "error",
            "bind 'output_dri' is no key.*Did you mean output_dir",
        ),
        ('bind = "output_dir"\n', "", 8, "error", "has no bind"),
        ('env = "engine"', 'env = "trian"', 6, "error", "no payload environment 'trian'.*Did you mean train"),
        ('"b", "null"]', '"b"]\ndefault = "c"', 17, "error", "mode: default 'c' is none of its choices \\(a, b\\)"),
        ('name = "sleep"', 'name = "slepe"', 12, "warning", "slepe is in no config.*Did you mean sleep"),
        ('name = "mode"', 'name = "sleep"', 15, "error", "sleep is described twice"),
        ("resumable = true", 'freeform = ["sectoin"]', 7, "error", "'sectoin'.*Did you mean section"),
        ("resumable = true", '[[errors]]\nname = "oom"', 7, "error", "entry has no recovery"),
        (
            "resumable = true",
            f'{OOM}check = ["memroy"]',
            10,
            "error",
            "check = .'memroy'. is not a list of locks and given",
        ),
        ("resumable = true", f'{OOM}check = ["given:rows"]', 10, "error", "given: the step consumes no 'rows'"),
        ("resumable = true", f'{OOM}check = ["pack_size"]', 10, "error", "no port has the lock 'pack_size'"),
        (
            "resumable = true",
            "[[models]]\nname = 'm'\nmin_gpus = '8'",
            9,
            "error",
            "min_gpus = '8' is not a whole number",
        ),
        ("resumable = true", "[[strategies]]\nwhen = 'x'\nthne = 'y'", 9, "error", "'thne'.*Did you mean then"),
        (
            "[[produces]]",
            '[[consumes]]\ntype = "raw_jsonl"\nbind = "n"\nfrom = "x/y"\n[[produces]]',
            11,
            "error",
            "no step 'x/y'",
        ),
        (
            "[[produces]]",
            '[[consumes]]\ntype = "raw_jsonl"\nbind = "n"\nfrom = "sft/automodel"\n[[produces]]',
            11,
            "error",
            "sft/automodel makes checkpoint_hf, which is no raw_jsonl",
        ),
        ("Writes rows.", "", 5, "warning", "has no description"),
        ("raw_jsonl", "raw_josnl", 9, "error", "unknown artifact type 'raw_josnl'"),
        ("[step]", "[step]\ntags = 3", 2, "error", "tags = 3 is not a list"),
        ('category = "demo"', 'category = "my demo"', 4, "error", "letters, digits and _"),
    ],
)
def test_a_fault_of_the_manifest_is_told_at_its_line(
    root: Path, old: str, new: str, line: int, level: str, message: str
) -> None:
    file = root / "steps/demo/x/step.toml"
    assert old in TOML
    file.write_text(TOML.replace(old, new))
    assert one(check(root), message) == (str(file), line, level)


@pytest.mark.parametrize(
    ("old", "new", "line", "level", "message"),
    [
        ("import json,", "import dagster, json,", 10, "error", "imports dagster"),
        ("import json,", "from nemotron_dagster import errors\nimport json,", 10, "error", "imports nemotron_dagster"),
        ("def main(cfg):", "def main(cfg:", 17, "error", "is not valid Python"),
        ("steps/demo/x", "steps/demo/y", 3, "warning", "runspec name 'steps/demo/y' is not 'steps/demo/x'"),
        (
            '# ///\n"',
            '# [tool.runspec.config]\n# default = "defualt"\n# ///\n"',
            9,
            "error",
            "no config 'defualt'.*default",
        ),
        ("# [tool.runspec.run]", '# image = "nvcr.io/a b"\n# [tool.runspec.run]', 4, "error", "no container image"),
        ("gpus_per_node = 0", "gpus_per_node = -1", 7, "error", "gpus_per_node = -1"),
        ("# launch", '# cmd = "run {script} {cfg}"\n# launch', 5, "error", "cmd has {cfg}"),
        (
            "payload.run(",
            'payload.not_built("demo/x")\npayload.run(',
            39,
            "error",
            'the manifest says payload = "ready"',
        ),
    ],
)
def test_a_fault_of_the_payload_is_told_at_its_line(
    root: Path, old: str, new: str, line: int, level: str, message: str
) -> None:
    file = root / "steps/demo/x/step.py"
    assert old in SCRIPT
    file.write_text(SCRIPT.replace(old, new, 1))
    assert one(check(root), message) == (str(file), line, level)


@pytest.mark.parametrize(
    ("name", "text", "line", "level", "message"),
    [
        ("tiny", "defaults: default.yaml\n", 1, "warning", "does not begin with a comment"),
        ("tiny", "# T\ndefaults: defualt.yaml\n", 1, "error", "no such file"),
        ("tiny", "# T\nn: 1\nn: 2\n", 3, "error", "n"),
        ("tiny", "# T\ndefaults: default.yaml\n\nn: ${section.outer}\n", 4, "error", "section.outer"),
        ("tiny", "# T\ndefaults: default.yaml\nrun: {env: {gpus_per_node: 2}}\n", 1, "error", "asks for 2 GPUs"),
        ("other", "# T\ndefaults: tiny.yaml\nn: [\n", 4, "error", "YAML"),
    ],
)
def test_a_fault_of_a_config_is_told_at_its_line(
    root: Path, name: str, text: str, line: int, level: str, message: str
) -> None:
    file = root / f"steps/demo/x/config/{name}.yaml"
    file.write_text(text)
    told = one(check(root), message)
    assert told[0].endswith(".yaml") and told[1:] == (line, level)


def test_what_only_a_user_can_give_is_no_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSET_FOR_THIS_TEST", raising=False)
    text = "# T\ndefaults: default.yaml\nn: ???\noutput_dir: ${oc.env:UNSET_FOR_THIS_TEST}/${section.inner}\n"
    (root / "steps/demo/x/config/tiny.yaml").write_text(text)
    assert check(root) == []


def test_a_planned_step_must_end_in_not_built(root: Path) -> None:
    folder = root / "steps/demo/x"
    (folder / "step.toml").write_text(TOML.replace('env = "engine"', 'env = "engine"\npayload = "planned"'))
    assert "must end in payload.not_built('demo/x')" in check(root)[0].message
    (folder / "step.py").write_text(PLANNED)
    assert check(root) == []
    (folder / "step.py").write_text(PLANNED.replace('not_built("demo/x")', 'not_built("demo/y")'))
    assert "payload.not_built names ['demo/y']" in check(root)[0].message


def test_a_ready_step_without_a_config_for_small_machines(root: Path) -> None:
    (root / "steps/demo/x/config/tiny.yaml").unlink()
    assert [(f.level, f.message) for f in check(root)] == [
        ("warning", "has no config `tiny`. Add one that runs offline on two CPU cores.")
    ]
    file = root / "steps/demo/x/step.py"
    file.write_text(SCRIPT.replace("gpus_per_node = 0", "gpus_per_node = 8"))
    assert [f.level for f in check(root)] == ["error"]


def test_missing_files_are_told(root: Path) -> None:
    folder = root / "steps/demo/x"
    (folder / "README.md").unlink()
    (folder / "step.py").unlink()
    assert [(f.level, f.message.split(".")[0]) for f in check(root)] == [
        ("warning", "has no README"),
        ("error", "has no step"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[mine]\nis_a = ['raw_josnl']\n", 2, "is_a 'raw_josnl'.*raw_jsonl"),
        ("[a]\nis_a = ['b']\n[b]\nis_a = ['a']\n", 2, "types are each other"),
        ("[mine]\nconvert_to = { raw_jsonl = 'demo/z' }\n", 2, "no step 'demo/z'.*demo/x"),
        ("[mine]\nconvert_to = { raw_jsonl = 'demo/x' }\n", 2, "demo/x does not consume mine"),
        ("[mine]\nconvert_to = { raw_josnl = 'demo/x' }\n", 2, "no type 'raw_josnl'.*raw_jsonl"),
        ("[raw_jsonl]\nconvert_to = { checkpoint_hf = 'demo/x' }\n", 2, "demo/x does not produce checkpoint_hf"),
        ("[mine\n", 1, "not valid TOML"),
    ],
)
def test_a_fault_of_the_type_graph_is_told_at_its_line(root: Path, text: str, line: int, message: str) -> None:
    file = root / "steps/types.toml"
    file.write_text(text)
    assert one(check(root, None), message) == (str(file), line, "error")


def test_default_producers_in_a_circle_and_equal_names_in_dagster_are_told(root: Path) -> None:
    for name, source in (("a", "b"), ("b", "a"), ("b-c", "a"), ("b_c", "a")):
        toml = COUNT_TOML.replace("demo/count", f"demo/{name}").replace("demo/rows", f"demo/{source}")
        script = COUNT.replace("demo/count", f"demo/{name}")
        add_step(root, f"demo/{name}", toml, script, default="# D\ndata: ???\noutput_dir: ./out\n")
    messages = [f.message for f in check(root, None) if f.step.startswith("demo/") and f.level == "error"]
    assert any("feed each other: demo/" in m for m in messages)
    assert any("has the same name in Dagster as demo/b" in m for m in messages)


def test_all_findings_of_all_steps_come_in_one_report_and_decide_the_exit_code(nemotron: Callable, root: Path) -> None:
    add_step(root, "demo/bad", "[step]\nnaem = 'x'\ntags = 'y'\n", ROWS, default=DEFAULT)
    stray = root / "steps/demo/stray"
    stray.mkdir()
    (stray / "step.py").write_text(ROWS)
    done = nemotron("steps", "check", cwd=root)
    assert done.returncode == 3
    lines = [line for line in done.stdout.splitlines() if "/demo/" in line]
    assert len([line for line in lines if "demo/bad/step.toml" in line]) == 2  # naem, tags
    assert [line for line in lines if "demo/stray/step.py:1: error: has no step.toml beside it" in line]
    assert "Traceback" not in done.stderr and ", " in done.stderr.splitlines()[-1]
    data = json.loads(nemotron("steps", "check", "--json", cwd=root).stdout)
    assert {tuple(row) for row in data} == {("file", "line", "level", "message", "step")}
    assert {row["step"] for row in data if row["level"] == "error"} == {"demo/bad", "demo/stray"}
    # and the others still work
    listed = nemotron("steps", "list", "--json", "--category", "demo", cwd=root)
    assert [s["id"] for s in json.loads(listed.stdout)] == ["demo/x"] and "demo/bad is left out" in listed.stderr
    assert nemotron("steps", "run", "demo/x", "-c", "tiny", cwd=root).returncode == 0
    one_step = nemotron("steps", "check", "demo/x", cwd=root)
    assert (one_step.returncode, one_step.stdout) == (0, "") and "no errors, no warnings" in one_step.stderr


def test_a_step_that_is_not_there_is_a_usage_error(root: Path) -> None:
    with pytest.raises(UsageError, match="Unknown step id: demo/y\nDid you mean: demo/x"):
        check(root, "demo/y")


def one(found: list[Finding], message: str) -> tuple[str, int, str]:
    """File, line and level of the only finding with this message."""
    import re

    matching = [f for f in found if re.search(message, f.message)]
    assert len(matching) == 1, [str(f) for f in found]
    return matching[0].file, matching[0].line, matching[0].level


def test_every_key_of_a_port_and_the_grammar_of_a_mount_are_checked(root: Path) -> None:
    manifest = '[step]\nid = "demo/wide"\n[[produces]]\ntype = "training_jsonl"\nbind = ["out", "nowhere"]\n'
    mounts = "# One line.\nout: null\nrun: {env: {mounts: ['${auto_mount:git+not-a-url,/x}']}}\n"
    add_step(root, "demo/wide", manifest, ROWS, default=mounts)
    found = [str(f) for f in check_project(Project(root, root), "demo/wide")]
    assert any("step.toml:5: error: produces training_jsonl: bind 'nowhere' is no key" in f for f in found), found
    assert any("default.yaml:3: error: run.env.mounts[0]: auto_mount:" in f for f in found), found


def test_a_projects_own_types_are_part_of_the_graph_that_is_checked(root: Path) -> None:
    own = root / "artifacts"
    own.mkdir()
    (own / "mine.py").write_text('IS_A = ("yours",)\nCONVERT_TO = {"training_jsonl": "demo/nosuch"}\n')
    with (root / "steps" / "types.toml").open("a") as types:
        types.write('\n[derived]\nis_a = ["mine"]\n')
    found = [str(f) for f in check_project(Project(root, root))]
    assert len(found) == 1 and "is_a 'yours', which is no type" in found[0]
    (own / "yours.py").write_text('IS_A = ("mine",)\n')
    found = [str(f) for f in check_project(Project(root, root))]
    assert any("mine.py:1: error: type mine: convert_to training_jsonl: no step 'demo/nosuch'" in f for f in found)
    assert any("types are each other: " in f for f in found)
