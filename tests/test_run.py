"""``nemotron steps run`` as a user meets it: exit codes, messages, adoption, resume, nothing half-written."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.jobs.prepare import code_digest
from nemotron_dagster.project import Project

Run = Callable[..., subprocess.CompletedProcess[str]]


def published(project: Path, step: str = "demo/rows") -> list[Path]:
    return sorted(p.parent for p in (project / ".nemotron/artifacts" / step).glob("*/artifact.json"))


def start(project: Path, environ: dict[str, str], *args: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "nemotron_dagster.cli.main", "steps", "run", *args]
    return subprocess.Popen(
        argv,
        cwd=project,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_rows(project: Path, count: int) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for state in (project / ".nemotron/artifacts/demo/rows/.staging").glob("*/output/state.txt"):
            text = state.read_text()
            if text and int(text) >= count:
                return state
        time.sleep(0.05)
    raise AssertionError("the job wrote no rows")


def test_a_run_publishes_streams_and_says_where_things_lie(nemotron: Run, project: Path) -> None:
    done = nemotron("steps", "run", "rows", "n=7", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "starting at 0" in done.stdout and "7/7" in done.stdout and "rows: 7" in done.stdout
    [artifact] = published(project)
    manifest = json.loads((artifact / "artifact.json").read_text())
    assert (manifest["type"], manifest["producer"], manifest["facts"]["rows"]) == ("raw_jsonl", "demo/rows", 7)
    assert (artifact / "report" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len((artifact / "rows.jsonl").read_text().splitlines()) == 7


def test_on_a_terminal_there_is_a_live_line_and_each_line_of_the_job_once(
    project: Path, environ: dict[str, str]
) -> None:
    import pty

    argv = [sys.executable, "-m", "nemotron_dagster.cli.main", "steps", "run", "rows", "n=7", "sleep=0.1"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(argv, cwd=project, env={**environ, "TERM": "xterm"}, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = b""
        try:
            while chunk := os.read(ours, 1 << 16):
                text += chunk
        except OSError:  # the other side is closed
            pass
    os.close(ours)
    assert process.returncode == 0, text.decode()
    assert text.count(b"starting at 0") == 1
    assert b"7/7" in text and b"DEBUG" not in text and b"STEP_SUCCESS" not in text


def test_the_manifest_records_the_code_that_ran_not_what_lies_there_when_it_ends(
    project: Path, environ: dict[str, str]
) -> None:
    def digest() -> str:
        return code_digest(load_catalog(Project(project, project)).find("demo/rows"))

    before = digest()
    with start(project, environ, "demo/rows", "n=20", "sleep=0.2") as command:
        wait_for_rows(project, 2)
        (project / "steps/demo/rows/README.md").write_text("changed meanwhile")
        command.communicate()
    [artifact] = published(project)
    assert json.loads((artifact / "artifact.json").read_text())["code_digest"] == before != digest()


def test_a_run_outside_any_project_leaves_the_directory_alone(nemotron: Run, project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = nemotron("steps", "run", "demo/rows", cwd=elsewhere, NEMOTRON_PROJECT=str(project))
    assert done.returncode == 0, done.stderr
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["demo/rows", "fail=true"], 1, "row 7 is wrong\nMend row 7."),
        (["demo/rows", "crash=7"], 1, "exit code 7"),
        (["demo/rows", "garbage=true"], 8, r"rows.jsonl:1: is not JSON"),
        (["demo/rowz"], 2, "Did you mean: demo/rows"),
        (["demo/rows", "-b", "cluster"], 4, "unknown profile 'cluster'"),
        (["demo/rows", "-c", "nope"], 2, "no config 'nope'"),
        (["demo/rows", "m=1"], 3, "unknown config key 'm'"),
        (["demo/rows", "n=[1"], 3, "not valid YAML"),
        (["demo/rows", "-r", "nosuch"], 4, "unknown profile 'nosuch'"),
        (["demo/rows", "run.env.gpus_per_node=512"], 5, "needs 512 GPUs"),
        (["demo/rows", "run.env.python=/no/python"], 5, "no such interpreter"),
        (["demo/count", "data=/no/such/file.jsonl"], 8, "no such file"),
        (["byob/mcq", "-c", "tiny"], 9, "not built yet"),
    ],
)
def test_each_failure_has_its_exit_code_one_message_and_publishes_nothing(
    nemotron: Run, project: Path, args: list[str], code: int, message: str
) -> None:
    done = nemotron("steps", "run", *args, cwd=project)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("Error: ") and message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not published(project) and not published(project, "demo/count")


def test_a_state_directory_that_cannot_be_written_is_named(nemotron: Run, project: Path) -> None:
    done = nemotron("steps", "run", "demo/rows", cwd=project, NEMOTRON_HOME="/proc/nope")
    assert done.returncode == 5 and "NEMOTRON_HOME" in done.stderr and "Traceback" not in done.stderr


def test_an_invalid_output_is_set_aside_and_the_next_run_starts_afresh(nemotron: Run, project: Path) -> None:
    for jobs in (1, 2):
        done = nemotron("steps", "run", "demo/rows", "garbage=true", cwd=project)
        assert done.returncode == 8 and "starting at 0" in done.stdout, done.stdout + done.stderr
        assert len(list((project / ".nemotron/jobs").iterdir())) == jobs
    [aside] = (project / ".nemotron/artifacts/demo/rows/.staging").iterdir()
    assert aside.name.endswith(".rejected") and str(aside) in done.stderr
    assert not published(project)


def test_bad_rows_are_refused_by_file_and_line_before_anything_is_submitted(nemotron: Run, project: Path) -> None:
    data = project / "data.jsonl"
    data.write_text('{"messages": [{"role": "user", "content": "x"}]}\n{"text": "no messages"}\n')
    done = nemotron("steps", "run", "demo/count", f"data={data}", cwd=project)
    assert done.returncode == 8 and f"{data}:2: has no `messages`" in done.stderr
    assert not (project / ".nemotron/jobs").exists()


def test_an_upstream_artifact_feeds_the_next_step_and_lands_in_its_lineage(nemotron: Run, project: Path) -> None:
    assert nemotron("steps", "run", "demo/rows", cwd=project).returncode == 0
    done = nemotron("steps", "run", "demo/count", cwd=project)
    assert done.returncode == 0 and "input training_jsonl is demo/rows" in done.stdout, done.stderr
    [source], [copy] = published(project), published(project, "demo/count")
    [entry] = json.loads((copy / "artifact.json").read_text())["inputs"]
    assert entry["uri"] == str(source) and entry["asset"] == ["demo", "rows"]


def test_an_explicit_output_is_published_there_and_never_overwritten(nemotron: Run, project: Path) -> None:
    mine = project / "mine"
    assert nemotron("steps", "run", "demo/rows", f"output_dir={mine}", cwd=project).returncode == 0
    assert (mine / "artifact.json").is_file()
    before = (mine / "rows.jsonl").read_bytes()
    done = nemotron("steps", "run", "demo/rows", f"output_dir={mine}", "n=2", cwd=project)
    assert done.returncode == 5 and "not empty" in done.stderr
    assert (mine / "rows.jsonl").read_bytes() == before


def test_killing_the_command_leaves_the_job_and_the_next_run_adopts_it(
    nemotron: Run, project: Path, environ: dict[str, str]
) -> None:
    args = ("demo/rows", "n=40", "sleep=0.15")
    with start(project, environ, *args) as first:
        wait_for_rows(project, 2)
        os.killpg(first.pid, signal.SIGKILL)
    done = nemotron("steps", "run", *args, cwd=project)
    assert done.returncode == 0 and "adopting job" in done.stdout, done.stdout + done.stderr
    assert len(list((project / ".nemotron/jobs").iterdir())) == 1
    [artifact] = published(project)
    assert len((artifact / "rows.jsonl").read_text().splitlines()) == 40
    with dg.DagsterInstance.from_config(str(project / ".nemotron/dagster")) as instance:
        assert [r.status.value for r in instance.get_runs()] == ["SUCCESS", "FAILURE"]  # the newest first
    assert not list((project / ".nemotron/dagster/running").iterdir())


def test_two_commands_that_watch_one_job_both_succeed_and_publish_once(
    project: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    release = tmp_path / "release"
    args = ("demo/rows", f"until={release}")
    with start(project, environ, *args) as first:
        wait_for_rows(project, 5)
        with start(project, environ, *args) as second:
            assert second.stdout and first.stdout
            adopted = any("adopting job" in line for line in iter(second.stdout.readline, ""))
            release.touch()
            texts = [second.stdout.read(), first.stdout.read()]
    assert adopted, texts
    assert (first.returncode, second.returncode) == (0, 0), texts
    assert len(published(project)) == 1 and len(list((project / ".nemotron/jobs").iterdir())) == 1


def test_a_job_that_finished_while_nobody_watched_is_published_by_the_next_run(
    nemotron: Run, project: Path, environ: dict[str, str]
) -> None:
    args = ("demo/rows", "n=10", "sleep=0.1")
    with start(project, environ, *args) as first:
        wait_for_rows(project, 2)
        os.killpg(first.pid, signal.SIGKILL)
    [directory] = (project / ".nemotron/jobs").iterdir()
    for _ in range(100):
        if (directory / "exit.json").exists():
            break
        time.sleep(0.1)
    done = nemotron("steps", "run", *args, cwd=project)
    assert done.returncode == 0 and "adopting job" in done.stdout, done.stdout + done.stderr
    [artifact] = published(project)
    assert artifact.name == directory.name and len(list((project / ".nemotron/jobs").iterdir())) == 1


def test_killing_the_job_fails_the_run_and_the_next_one_resumes(
    nemotron: Run, project: Path, environ: dict[str, str]
) -> None:
    args = ("demo/rows", "n=40", "sleep=0.1")
    with start(project, environ, *args) as first:
        wait_for_rows(project, 3)
        [pid] = (project / ".nemotron/jobs").glob("*/pid.json")
        os.killpg(json.loads(pid.read_text())["child"], signal.SIGKILL)
        text = first.stdout.read() if first.stdout else ""
    assert first.returncode == 1 and "killed by SIGKILL" in text and "continue from its last checkpoint" in text
    assert not published(project)
    done = nemotron("steps", "run", *args, cwd=project)
    assert done.returncode == 0 and "continuing from what an earlier" in done.stdout, done.stderr
    [artifact] = published(project)
    reported = json.loads((artifact / "artifact.json").read_text())["reported"]
    assert reported["first"] >= 3
    assert len((artifact / "rows.jsonl").read_text().splitlines()) == 40
    with open(artifact / "report/metrics.csv", newline="") as table:
        steps = [int(row["step"]) for row in csv.DictReader(table)]
    assert steps == list(range(1, 41)), "the curve has every step once, over both jobs"


def test_ctrl_c_cancels_the_job(project: Path, environ: dict[str, str]) -> None:
    with start(project, environ, "demo/rows", "n=200", "sleep=0.2") as command:
        wait_for_rows(project, 2)
        os.kill(command.pid, signal.SIGINT)
        text = command.stdout.read() if command.stdout else ""
    assert command.returncode == 7 and "Error: " in text and "Traceback" not in text
    [directory] = (project / ".nemotron/jobs").iterdir()
    for _ in range(100):
        if (directory / "exit.json").exists():
            break
        time.sleep(0.1)
    assert json.loads((directory / "exit.json").read_text())["cancelled"] is True
    assert not published(project)


def test_a_run_of_the_command_line_that_is_terminated_in_the_ui_cancels_its_job(
    project: Path, environ: dict[str, str]
) -> None:
    with start(project, environ, "demo/rows", "n=200", "sleep=0.2") as command:
        wait_for_rows(project, 2)
        with dg.DagsterInstance.from_config(str(project / ".nemotron/dagster")) as instance:
            [run] = instance.get_runs()
            instance.report_run_canceling(run)  # what Terminate does
            text = command.stdout.read() if command.stdout else ""
            command.wait()
            assert command.returncode == 7 and "Error: " in text and "Traceback" not in text, text
            ended = instance.get_run_by_id(run.run_id)
            assert ended is not None and ended.status is dg.DagsterRunStatus.CANCELED
    [directory] = (project / ".nemotron/jobs").iterdir()
    assert json.loads((directory / "exit.json").read_text())["cancelled"] is True
    assert not published(project)


def test_a_planted_secret_is_in_no_file_and_no_output(nemotron: Run, project: Path) -> None:
    overlay = project / "secret.yaml"
    text = (project / "steps/demo/rows/config/default.yaml").read_text()
    overlay.write_text(text.replace("output_dir: ./out\n", "") + "key: ${oc.env:GIVEN_TOKEN}\n")
    profile = '[p]\nexecutor = "local"\n[p.env_vars]\nPLANTED_TOKEN = "${oc.env:GIVEN_TOKEN}"\nPLAIN = "seen"\n'
    (project / "env.toml").write_text(profile)
    secret = "planted-5ecret-value"
    done = nemotron("steps", "run", "demo/rows", "-c", str(overlay), "-r", "p", cwd=project, GIVEN_TOKEN=secret)
    assert done.returncode == 0 and "secret is set" in done.stdout, done.stderr
    assert secret not in done.stdout + done.stderr
    leaks = [p for p in project.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    assert not leaks


def test_dry_run_prints_the_compiled_config_and_touches_nothing(nemotron: Run, project: Path) -> None:
    before = sorted(project.rglob("*"))
    done = nemotron("steps", "run", "demo/rows", "-d", "n=9", cwd=project)
    assert done.returncode == 0 and "n: 9" in done.stdout
    assert sorted(p for p in project.rglob("*") if "__pycache__" not in p.parts) == before


def test_a_startup_command_has_its_secret_when_it_runs_and_nobody_else_sees_it(
    nemotron: Run, project: Path, tmp_path: Path
) -> None:
    seen, literal = tmp_path / "seen", "hf_" + "a1B2" * 8
    (project / "env.toml").write_text(f"""
[p]
executor = "local"
startup_commands = [
    "printf '%s %s' 'a ${{oc.env:PLANTED_TOKEN}}' \\"\\\\${{HOME}}\\" > {seen}",
    "echo 'then {literal}' | wc -c >> {seen}",
    "export LEFT=\\\\${{HOME}}",
]
""")
    command = ("steps", "run", "demo/rows", "-r", "p", "n=1")
    shown = nemotron(*command, "-d", "--json", cwd=project, PLANTED_TOKEN="planted-value", HOME="/home/of")
    submitted = json.loads(shown.stdout)["submission"]
    assert submitted["secrets"] == ["NEMOTRON_STARTUP_0", "NEMOTRON_STARTUP_1"]
    assert 'eval "$NEMOTRON_STARTUP_0"' in submitted["command"][2] and "LEFT=${HOME}" in submitted["command"][2]
    done = nemotron(*command, cwd=project, PLANTED_TOKEN="planted-value", HOME="/home/of")
    assert done.returncode == 0, done.stderr
    assert seen.read_text().split() == ["a", "planted-value", "/home/of41"], seen.read_text()
    said = shown.stdout + shown.stderr + done.stdout + done.stderr
    state = b"".join(f.read_bytes() for f in (project / ".nemotron").rglob("*") if f.is_file())
    for secret in ("planted-value", literal):
        assert secret not in said and secret.encode() not in state


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ('run_command = "python {script} ${oc.env:A_TOKEN}"', 4, "run_command refers to a secret.*write .NAME"),
        ('startup_commands = ["echo ${oc.env:A_TOKEN}"]', 4, "A_TOKEN is not set.*Export A_TOKEN"),
    ],
)
def test_a_secret_that_would_be_written_down_or_is_not_set_is_refused_before_anything_runs(
    line: str, code: int, message: str, nemotron: Run, project: Path
) -> None:
    (project / "env.toml").write_text(f'[p]\nexecutor = "local"\n{line}\n')
    done = nemotron("steps", "run", "demo/rows", "-r", "p", cwd=project)
    assert done.returncode == code and re.search(message, done.stderr), done.stderr
    assert not (project / ".nemotron" / "jobs").exists()
