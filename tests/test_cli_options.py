"""How ``nemotron steps run`` reads its command line: every option anywhere, every other token untouched."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_dagster.cli import steps as commands
from nemotron_dagster.cli.options import VERBATIM, once

Run = Callable[..., subprocess.CompletedProcess[str]]


def parsed(*args: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    with commands.run.make_context("run", list(args)) as ctx:
        return ctx.params, ctx.meta[VERBATIM]


@pytest.mark.parametrize(
    "args",
    [
        ["-c", "tiny", "-d", "demo/rows", "n=1", "--lr", "3"],
        ["demo/rows", "-c", "tiny", "n=1", "-d", "--lr", "3"],
        ["demo/rows", "n=1", "--config=tiny", "--lr", "3", "--dry-run"],
        ["demo/rows", "n=1", "--lr", "3", "-d", "-c", "tiny"],
    ],
)
def test_options_stand_before_between_and_after_the_rest(args: list[str]) -> None:
    params, verbatim = parsed(*args)
    assert (params["step_id"], params["config"], params["dry_run"]) == ("demo/rows", ("tiny",), True)
    assert (params["tokens"], verbatim) == (("n=1", "--lr", "3"), ())


def test_what_stands_after_two_dashes_is_verbatim() -> None:
    rest = ("-c", "x", "k=v", "--json", "--", "-d", "--stage")
    params, verbatim = parsed("demo/rows", "n=1", "--", *rest)
    assert verbatim == rest and params["tokens"] == ("n=1",)
    assert params["config"] == () and not params["dry_run"] and not params["as_json"]


@given(st.lists(st.text(min_size=1).filter(lambda t: t != "--"), max_size=6), st.lists(st.text(), max_size=6))
def test_any_other_token_arrives_as_it_was_typed(tokens: list[str], rest: list[str]) -> None:
    try:
        params, verbatim = parsed("demo/rows", *tokens, "--", *rest)
    except click.ClickException:  # looks like an option of ours: refused, not bent
        assert any(t.startswith("-") for t in tokens)
        return
    except click.exceptions.Exit:
        assert {"-h", "--help"} & set(tokens)
        return
    if not any(t.startswith("-") for t in tokens):
        assert params["tokens"] == tuple(tokens)
    assert verbatim == tuple(rest)


@pytest.mark.parametrize(
    "token", ["-lr", "-lcrb", "-v", "-x", "-1", "--lr=0.1", "--learning-rate", "-", "--no-dry", "--batch_size=3"]
)
def test_an_argument_of_the_payload_is_not_taken_apart(token: str) -> None:
    params, _ = parsed("demo/rows", token, "0.1")
    assert params["tokens"] == (token, "0.1") and not params["run"] and not params["batch"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["demo/rows", "-c"], "-c"),
        (["demo/rows", "-c", "-d"], "-c"),
        (["demo/rows", "-c", "--", "x"], "-c"),
        (["-r", "demo/rows", "-b"], "-b"),
        (["demo/rows", "--dry-rnu"], "Did you mean --dry-run? What is meant for step.py goes after --"),
        (["demo/rows", "--forcesquash"], "Did you mean --force-squash?"),
        (["demo/rows", "--jsn"], "Did you mean --json?"),
        (["demo/rows", "-ctiny"], "Did you mean -c tiny?"),
        (["demo/rows", "-rank", "0"], "Did you mean -r ank?"),
        (["--lr", "demo/rows"], "before the step's id"),
        ([], "STEP_ID"),
    ],
)
def test_what_is_most_likely_a_slip_is_refused_and_no_run_starts(
    nemotron: Run, project: Path, args: list[str], message: str
) -> None:
    done = nemotron("steps", "run", *args, cwd=project)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr, done.stderr
    assert not (project / ".nemotron").exists()


def test_a_value_given_twice_must_be_the_same() -> None:
    assert once("-c", "a", "a") == "a" and once("-c") is None
    with pytest.raises(click.UsageError, match="-c was given 2 values: a, b"):
        once("-c", "a", "b")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-r", "P", "steps", "list"], 2, "--run: only `nemotron steps run` takes that"),
        (["-c", "X", "steps", "show", "rows"], 2, "`nemotron steps show` does not"),
        (["-d", "pipelines", "list"], 2, "--dry-run"),
        (["--force-squash", "env", "build"], 2, "--force-squash"),
        (["-c", "default", "steps", "run", "rows", "-c", "other"], 2, "-c was given 2 values: default, other"),
        (["-r", "P", "steps", "run", "rows", "-b", "P"], 2, "Give one of them"),
        (["-r", "P", "-b", "P", "steps", "run", "rows"], 2, "Give one of them"),
        (["steps", "run", "rows", "-r", "P", "-b", "P", "-d"], 2, "Give one of them"),
        (["--stage", "steps", "run", "rows"], 2, "--stage is not built"),
        (["steps", "run", "rows", "--stage"], 2, "--stage is not built"),
        (["--force-squash", "steps", "run", "rows", "-d"], 2, "local makes no container squash files"),
        (["steps", "run", "rows", "--force-squash"], 2, "local makes no container squash files"),
        (["-r", "nosuch", "steps", "run", "rows"], 4, "unknown profile 'nosuch'"),
    ],
)
def test_an_option_is_honoured_or_refused_never_dropped(
    nemotron: Run, project: Path, args: list[str], code: int, message: str
) -> None:
    done = nemotron(*args, cwd=project)
    assert (done.returncode, done.stdout) == (code, "") and message in done.stderr, done.stderr
    assert not (project / ".nemotron").exists()


def test_options_before_the_command_reach_steps_run(nemotron: Run, project: Path) -> None:
    (project / "steps/demo/rows/config/small.yaml").write_text("defaults: default\nn: 2\n")
    (project / "env.toml").write_text('[lap]\nexecutor = "local"\n')
    done = nemotron("-c", "small", "-r", "lap", "-d", "steps", "run", "rows", "-c", "small", cwd=project)
    assert done.returncode == 0 and "mode: run" in done.stdout and "profile: lap" in done.stdout, done.stderr
    assert "n: 2" in done.stdout and not (project / ".nemotron").exists()


@pytest.mark.parametrize(
    ("args", "mode"), [([], "local"), (["-r", "lap"], "run"), (["-b", "lap"], "batch"), (["--batch=lap"], "batch")]
)
def test_the_mode_is_local_run_or_batch(nemotron: Run, project: Path, args: list[str], mode: str) -> None:
    (project / "env.toml").write_text('[lap]\nexecutor = "local"\n')
    done = nemotron("steps", "run", "rows", "-d", *args, cwd=project)
    assert done.returncode == 0 and f"mode: {mode}" in done.stdout, done.stderr


def test_a_config_file_by_a_relative_path_is_found_from_any_directory(
    nemotron: Run, project: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "elsewhere" / "mine.yaml"
    mine.parent.mkdir()
    text = (project / "steps/demo/rows/config/default.yaml").read_text()
    mine.write_text(text.replace("n: 5", "n: 2").replace("output_dir: ./out\n", ""))
    for name in ("./mine.yaml", "mine.yaml", "../elsewhere/mine.yaml"):
        done = nemotron("steps", "run", "rows", "-c", name, cwd=mine.parent, NEMOTRON_PROJECT=str(project))
        assert done.returncode == 0 and "rows: 2" in done.stdout, done.stdout + done.stderr
    done = nemotron("steps", "run", "rows", "-c", "./none.yaml", cwd=mine.parent, NEMOTRON_PROJECT=str(project))
    assert done.returncode == 3 and "none.yaml: no such config file" in done.stderr


def test_json_of_a_run_is_one_document_on_success_and_on_failure(nemotron: Run, project: Path) -> None:
    done = nemotron("steps", "run", "rows", "n=2", "--json", cwd=project)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    [made] = json.loads(done.stdout)
    assert made["name"] == "demo/rows" and made["summary"]["rows"] == 2
    assert (Path(made["artifact"]["path"]) / "artifact.json").is_file()
    done = nemotron("steps", "run", "rows", "fail=true", "--json", cwd=project)
    error = json.loads(done.stderr)
    assert (done.returncode, done.stdout, error["error"]) == (1, "", "JobFailed") and "row 7" in error["message"]


def test_v_after_the_command_is_the_payloads(nemotron: Run, project: Path) -> None:
    done = nemotron("steps", "run", "rows", "fail=true", "-v", cwd=project)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    shown = nemotron("-v", "steps", "run", "rows", "fail=true", cwd=project)
    assert shown.returncode == 1 and "Traceback" in shown.stderr and "Error: demo/rows: row 7" in shown.stderr


def test_explain_prints_the_layers_of_each_key_and_runs_nothing(nemotron: Run, project: Path) -> None:
    args = ("steps", "run", "rows", "n=3", "--explain", "n", "--explain", "section.inner")
    done = nemotron(*args, cwd=project)
    assert done.returncode == 0 and "default.yaml:1:" in done.stdout and "section.inner" in done.stdout, done.stderr
    rows = json.loads(nemotron(*args, "--json", cwd=project).stdout)
    assert list(rows) == ["n", "section.inner"] and [r["value"] for r in rows["n"]] == [5, 3]
    assert [r["wins"] for r in rows["n"]] == [False, True] and not (project / ".nemotron").exists()
