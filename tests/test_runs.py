"""``nemotron runs`` without Dagster: list, status, logs, cancel; from any process, whatever is broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from submissions import book, end_jobs, ended, records, until, yard

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def site(project: Path, tmp_path: Path) -> Iterator[Path]:
    yard(project, tmp_path / "site")
    yield tmp_path / "site"
    end_jobs(project)


def submit(nemotron: Run, project: Path, *args: str, profile: str = "lap") -> str:
    done = nemotron("steps", "run", "rows", *args, "-b", profile, "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["key"])


def test_a_job_is_listed_shown_followed_and_closed_without_dagster(
    nemotron: Run, project: Path, site: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    first = submit(nemotron, project, "n=2")
    second = submit(nemotron, project, f"until={release}")
    until((project / f".nemotron/jobs/{first}/exit.json").exists)
    table = nemotron("runs", "list", cwd=project)
    assert table.returncode == 0 and not table.stderr
    head, *lines = table.stdout.splitlines()
    assert head.split() == ["KEY", "STEP", "PROFILE", "STATE", "EXIT", "AGE", "ELAPSED", "GPUS", "RUN"]
    assert [line.split()[0] for line in lines] == [first[:8], second[:8]], "the newest last, keys short"
    assert "SUCCEEDED (sync)" in lines[0] and "RUNNING" in lines[1]
    only = json.loads(nemotron("runs", "list", "--state", "running", "--json", cwd=project).stdout)
    assert [(r["key"], r["detached"], r["profile"]) for r in only] == [(second, True, "lap")]
    assert len(json.loads(nemotron("runs", "list", "-n", "1", "--json", cwd=project).stdout)) == 1

    page = nemotron("runs", "status", first[:6], cwd=project).stdout
    assert "demo/rows  SUCCEEDED" in page and re.search(r"exit code +0", page) and re.search(r"ended +20", page)
    [data] = json.loads(nemotron("runs", "status", second, "--json", cwd=project).stdout)
    assert (data["state"], data["phase"], data["job"]["chain"]) == ("RUNNING", "submitted", 1)
    assert data["job"]["started"] and "ended" not in data["job"]

    log = project / f".nemotron/jobs/{second}/log"
    with open(log, "ab") as out:
        out.write(b"\xff\x00 raw \r\n")
    threading.Timer(2, release.touch).start()
    argv = [sys.executable, "-m", "nemotron_dagster.cli.main", "runs", "logs", "-f", second[:6]]
    followed = subprocess.run(argv, cwd=project, capture_output=True, check=True)
    assert followed.stdout == log.read_bytes() and b"\xff\x00 raw \r\n" in followed.stdout
    tail = subprocess.run([*argv[:-2], second, "--tail", "1"], cwd=project, capture_output=True, check=True)
    assert tail.stdout == b"".join(log.read_bytes().splitlines(keepends=True)[-1:])
    assert not (project / ".nemotron/dagster").exists()


def test_list_imports_neither_dagster_nor_nemo_run(nemotron: Run, project: Path, site: Path) -> None:
    submit(nemotron, project, "n=1")
    code = """
import sys
from nemotron_dagster.cli.main import main
try:
    main(["runs", "list"])
except SystemExit as e:
    assert not e.code, e.code
print([m for m in ("dagster", "nemo_run", "omegaconf", "pyarrow") if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert "demo/rows" in done.stdout and done.stderr.splitlines()[-1] == "[]"
    ended(project)


def test_a_key_may_be_short_and_what_fits_none_or_several_is_refused_with_candidates(
    nemotron: Run, project: Path, site: Path
) -> None:
    keys = [submit(nemotron, project, f"n={n}") for n in (1, 2)]
    ended(project)
    for record in records(project):  # as if two keys began alike
        (project / f".nemotron/ledger/open/{record.key}.json").rename(project / f"{record.key}.json")
    for number, key in enumerate(keys):
        text = (project / f"{key}.json").read_text().replace(key, f"abc{number}{key[4:]}")
        (project / f".nemotron/ledger/open/abc{number}{key[4:]}.json").write_text(text)
    done = nemotron("runs", "status", "abc", cwd=project)
    assert done.returncode == 2 and "fits 2 submissions" in done.stderr
    assert f"abc0{keys[0][4:]}" in done.stderr and f"abc1{keys[1][4:]}" in done.stderr
    assert nemotron("runs", "status", "abc1", cwd=project).returncode == 0
    done = nemotron("runs", "logs", "nosuch", cwd=project)
    assert done.returncode == 2 and "no submission has that key" in done.stderr and "abc1" in done.stderr
    table = nemotron("runs", "list", cwd=project).stdout
    assert f"abc0{keys[0][4:8]}" in table


def test_cancel_stops_the_job_closes_the_submission_and_may_be_repeated(
    nemotron: Run, project: Path, site: Path
) -> None:
    key = submit(nemotron, project, "until=/never")
    done = nemotron("runs", "cancel", key[:8], cwd=project)
    assert (done.returncode, done.stdout) == (0, f"{key}  cancelled\n"), done.stderr
    assert json.loads((project / f".nemotron/jobs/{key}/exit.json").read_text())["cancelled"] is True
    record = book(project).get(key)
    assert record is not None and record.phase == "cancelled" and record.status is not None
    assert record.status.state == "CANCELLED" and not book(project).open()
    again = nemotron("runs", "cancel", key, "--json", cwd=project)
    assert again.returncode == 0 and json.loads(again.stdout)[0]["phase"] == "cancelled"
    for n in (2, 3):
        submit(nemotron, project, f"n={n}", "until=/never")
    assert nemotron("runs", "cancel", "--all", cwd=project).stdout.count("cancelled") == 2
    assert [r.phase for r in records(project)] == ["cancelled"] * 3
    assert nemotron("runs", "cancel", cwd=project).returncode == 2


def test_a_cluster_that_does_not_answer_leaves_the_last_known_state_and_a_warning(
    nemotron: Run, project: Path, site: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    keys = [submit(nemotron, project, f"n={n}", f"until={release}", profile="yard") for n in (1, 2, 3)]
    (site / "questions").unlink(missing_ok=True)
    board = next((project / ".nemotron/board").glob("*.json"))
    board.unlink()
    listed = json.loads(nemotron("runs", "list", "--json", cwd=project).stdout)
    assert [r["state"] for r in listed] == ["RUNNING"] * 3
    assert (site / "questions").read_text() == "?", "one question for all jobs of the cluster"
    (site / "down").touch()
    seen = json.loads(board.read_text())
    board.write_text(json.dumps({**seen, "time": 0}))
    done = nemotron("runs", "list", cwd=project)
    assert done.returncode == 0 and done.stdout.count("RUNNING?") == 3, done.stdout
    assert done.stderr.count("yard.example: no answer") == 1
    [row] = json.loads(nemotron("runs", "status", keys[0], "--json", cwd=project).stdout)
    assert (row["state"], row["state_known"]) == ("RUNNING", False)
    done = nemotron("runs", "cancel", keys[0], cwd=project)
    assert done.returncode == 6 and "not cancelled: yard.example" in done.stdout
    assert not any(r.phase == "cancelled" for r in records(project))
    (site / "down").unlink()
    release.touch()
    ended(project)


def test_a_broken_record_and_a_target_that_is_gone_are_told_and_hide_nothing(
    nemotron: Run, project: Path, site: Path
) -> None:
    key = submit(nemotron, project, "n=1", profile="yard")
    ended(project)
    (project / ".nemotron/ledger/open/0123.json").write_text("{")
    (project / "resources/yard.py").unlink()
    done = nemotron("runs", "list", cwd=project)
    assert done.returncode == 0 and key[:8] in done.stdout
    assert "0123.json: is no record of a submission" in done.stderr and "no target named 'yard'" in done.stderr
    done = nemotron("runs", "logs", key, cwd=project)
    assert done.returncode == 4 and "no target named 'yard'" in done.stderr and "Traceback" not in done.stderr


def test_the_log_of_a_chain_is_that_of_all_its_jobs(nemotron: Run, project: Path, site: Path) -> None:
    done = nemotron("steps", "run", "rows", "n=4", "crash=99", "-r", "yard", cwd=project)
    assert done.returncode == 1, done.stdout + done.stderr
    [record] = records(project)
    assert len(record.handles) == 2 and record.status is not None and record.status.state == "TIMEOUT"
    text = nemotron("runs", "logs", "-f", record.key, cwd=project).stdout
    assert text.index("starting at 0") < text.index("starting at 4")
    assert nemotron("runs", "logs", record.key, "--tail", "1", cwd=project).stdout == text.splitlines(True)[-1]
    assert "2 of at most 2" in nemotron("runs", "status", record.key, cwd=project).stdout


def test_tab_offers_keys_and_asks_no_cluster(nemotron: Run, project: Path, site: Path, environ: dict[str, str]) -> None:
    key = submit(nemotron, project, "n=1", profile="yard")
    ended(project)
    (site / "questions").unlink(missing_ok=True)
    asked = {**environ, "_NEMOTRON_COMPLETE": "bash_complete", "COMP_WORDS": "nemotron runs logs ", "COMP_CWORD": ""}
    argv = [sys.executable, "-m", "nemotron_dagster.cli.main"]
    done = subprocess.run(argv, cwd=project, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert key in done.stdout and not (site / "questions").exists()
