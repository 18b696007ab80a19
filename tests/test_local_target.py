"""Local jobs: started once per key, alive without their submitter, truthful about how they ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nemotron_dagster.errors import ProfileError
from nemotron_dagster.jobs.target import JobHandle, State, Submission, Target, make_target
from nemotron_dagster.project import Project


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return make_target(Project(None, tmp_path), None, {})


def job(key: str, code: str) -> Submission:
    return Submission(
        key=key, step="demo/x", argv=(sys.executable, "-c", textwrap.dedent(code)), files={"c.yaml": "n: 1"}
    )


def wait(target: Target, handle: JobHandle, seconds: float = 20) -> State:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = target.statuses([handle])[handle.key]
        if status.state.final:
            return status.state
        time.sleep(0.05)
    raise AssertionError(f"{handle.key} did not end: {status}")


@pytest.mark.parametrize(
    ("code", "state", "exit_code"),
    [
        ("print('hello')", State.SUCCEEDED, 0),
        ("raise SystemExit(7)", State.FAILED, 7),
        ("import os; os.kill(os.getpid(), 11)", State.FAILED, -11),
    ],
)
def test_how_a_job_ended_is_told_with_its_exit_code(target: Target, code: str, state: State, exit_code: int) -> None:
    handle = target.submit(job("k", code))
    assert wait(target, handle) is state
    assert target.statuses([handle])["k"].exit_code == exit_code


def test_a_command_that_cannot_start_is_a_failed_job_and_says_so(target: Target) -> None:
    handle = target.submit(Submission(key="k", step="s", argv=("/no/such/program",)))
    assert wait(target, handle) is State.FAILED
    assert b"/no/such/program" in target.read(handle, {}).log


def test_submitting_a_known_key_adopts_the_job(target: Target, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'runs')!r}, 'a').write('x'); import time; time.sleep(0.5)"
    handles = [target.submit(job("k", code)) for _ in range(3)]
    assert wait(target, handles[0]) is State.SUCCEEDED
    target.submit(job("k", code))
    assert (tmp_path / "runs").read_text() == "x"
    assert target.find("k") is not None and target.find("other") is None


def test_the_log_is_read_from_an_offset(target: Target) -> None:
    handle = target.submit(job("k", "print('one'); print('two')"))
    wait(target, handle)
    chunk = target.read(handle, {})
    assert chunk.log == b"one\ntwo\n"
    assert target.read(handle, {"log": 4}).log == b"two\n"
    assert target.read(handle, chunk.cursor).log == b""


def test_cancel_stops_the_job_and_what_it_started(target: Target, tmp_path: Path) -> None:
    code = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
        time.sleep(60)
    """
    handle = target.submit(job("k", code))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    target.cancel(handle)
    assert wait(target, handle) is State.CANCELLED
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not running(child):
            break
        time.sleep(0.05)
    assert not running(child)


def test_a_job_lives_on_when_its_submitter_is_killed(tmp_path: Path) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from nemotron_dagster.jobs.target import Submission, make_target
        from nemotron_dagster.project import Project
        target = make_target(Project(None, Path(sys.argv[1])), None, {})
        code = "import time; time.sleep(1.5); print('survived')"
        target.submit(Submission(key="k", step="s", argv=(sys.executable, "-c", code)))
        print("submitted", flush=True)
        time.sleep(60)
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as submitter:
        assert submitter.stdout is not None and submitter.stdout.readline() == "submitted\n"
        os.killpg(submitter.pid, signal.SIGKILL)
    target = make_target(Project(None, tmp_path), None, {})
    handle = target.find("k")
    assert handle is not None and target.statuses([handle])["k"].state is State.RUNNING
    assert wait(target, handle) is State.SUCCEEDED
    assert target.read(handle, {}).log == b"survived\n"


def test_a_job_whose_supervisor_was_killed_is_running_while_it_lives_and_lost_after(target: Target) -> None:
    import json

    handle = target.submit(job("k", "import time; time.sleep(1.5)"))
    os.kill(json.loads(Path(handle.directory, "pid.json").read_text())["supervisor"], signal.SIGKILL)
    time.sleep(0.2)
    assert target.statuses([handle])["k"].state is State.RUNNING
    assert wait(target, handle) is State.LOST


def test_arguments_reach_the_job_exactly(target: Target) -> None:
    words = ("a b", "$(id)", "'; rm -rf /", "*", "é\n")
    handle = target.submit(Submission("k", "s", (sys.executable, "-c", "import sys; print(sys.argv[1:])", *words)))
    wait(target, handle)
    assert target.read(handle, {}).log.decode() == f"{list(words)}\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": "locale"}, "no target named 'locale'.*Did you mean local"),
        ({"executor": "local", "gpus_per_nod": 1}, "local has no key .gpus_per_nod.*Did you mean gpus_per_node"),
        (
            {"executor": "local", "startup_commands": "str"},
            "startup_commands = .str.: must be a list of commands",
        ),
        ({}, "names no executor"),
    ],
)
def test_a_wrong_profile_is_refused_by_the_targets_schema(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        make_target(Project(None, tmp_path), "p", settings)


def test_a_projects_resources_folder_adds_a_target(project: Path) -> None:
    (project / "resources").mkdir()
    (project / "resources" / "moon.py").write_text(
        "from pydantic import BaseModel\n"
        "class Settings(BaseModel):\n    executor: str\n    crater: int = 3\n"
        "def make_target(settings, state):\n    return settings.crater\n"
    )
    assert make_target(Project(project, project), "p", {"executor": "moon"}) == 3


def running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
