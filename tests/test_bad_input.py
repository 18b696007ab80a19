"""Every bad input of the table through the real command line: one message, the right exit code, nothing else."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_input import INJECTIONS, USAGE, Case, cases, place

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.cli.main import main
from nemotron_dagster.project import find_project

CASES = cases()
#: As real processes too: the entry point, the terminal's encoding and the exit code are theirs alone.
PROCESSES = [
    "yaml_unclosed", "yaml_laughs", "yaml_is_fifo", "yaml_interpolation_circle", "config_name_unknown",
    "config_name_surrogate", "override_unknown", "override_yaml_escape", "env_unclosed_header",
    "env_directory", "env_extends_circle", "env_file_fifo", "manifest_tags_number", "pipeline_circle",
    "command_option", "step_rtl_show", "step_planned",
]  # fmt: skip


def snapshot(*roots: Path) -> dict[str, tuple[object, ...]]:
    """Everything below the roots: kind, mode, content and time of change."""
    found: dict[str, tuple[object, ...]] = {}
    for root in roots:
        for path in [root, *root.rglob("*")]:
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
            found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


@pytest.fixture
def world(project: Path, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """The project as the working directory, with a home and a state of their own."""
    roots = (project, tmp_path / "home", tmp_path / "state")
    for root in roots[1:]:
        root.mkdir(exist_ok=True)
    for name in list(os.environ):
        if name.startswith(("NEMOTRON_", "DAGSTER_", "XDG_")):
            monkeypatch.delenv(name)
    for name, value in {"HOME": roots[1], "NEMOTRON_HOME": roots[2]}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(project)
    find_project.cache_clear()
    load_catalog.cache_clear()
    return roots


def prepared(case: Case, root: Path) -> tuple[list[str], dict[str, str]]:
    place(root, case.files)
    return list(case.argv), {k: v.replace("{root}", str(root)) for k, v in case.env.items()}


def check(case: Case, code: object, out: str, err: str) -> None:
    shown = f"{case.name}: exit {code}\n{out[:2000]}\n{err[:3000]}"
    assert code == case.code, shown
    assert out == "", shown
    assert "Traceback" not in err and "internal error" not in err.lower(), shown
    for pattern in case.says:
        assert re.search(pattern, err, re.DOTALL), f"{pattern!r} is not said: {shown}"
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, shown
    assert len(err) < 6000, f"{len(err)} characters: {shown}"
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff]", err), f"a raw control character: {shown}"
    message = err[err.index("Error: ") :].rstrip()
    assert "\n\n" not in message, f"more than one paragraph: {shown}"
    assert case.code == USAGE or message[-1] in ".?)", f"no whole sentence: {shown}"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_bad_input_is_one_message_with_its_exit_code_and_changes_nothing(
    case: Case, world: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, env = prepared(case, world[0])
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    before = snapshot(*world)
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    out, err = capsys.readouterr()
    check(case, exit_.value.code, out, err)
    assert snapshot(*world) == before, f"{case.name}: left something behind"


@pytest.mark.parametrize("case", [c for c in CASES if c.name in PROCESSES], ids=lambda c: c.name)
def test_bad_input_given_to_a_process_is_told_the_same_way(
    case: Case, world: tuple[Path, ...], tmp_path: Path, nemotron: Callable
) -> None:
    argv, env = prepared(case, world[0])
    before = snapshot(*world)
    done = nemotron(*argv, cwd=world[0], **{"NEMOTRON_HOME": str(world[2]), **env})
    check(case, done.returncode, done.stdout, done.stderr)
    assert snapshot(*world) == before, f"{case.name}: left something behind"


def test_the_table_is_large_distinct_and_whole() -> None:
    names = [c.name for c in CASES]
    assert len(names) == len(set(names)) >= 200
    assert set(PROCESSES) <= set(names)
    assert all(c.says for c in CASES)


@pytest.mark.parametrize("text", INJECTIONS)
def test_shell_text_in_values_and_arguments_is_only_text(
    text: str, world: tuple[Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(*world)
    argv = ["steps", "run", "demo/rows", "-d", f"output_dir='{text.strip()}'", "--flag", text]
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    out, err = capsys.readouterr()
    assert exit_.value.code in (0, None), err
    assert "touch pwned" in out and snapshot(*world) == before
