"""Secrets of jobs that end in every way: they are looked for in every file, process list and event there is."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from behave import behaving
from commands import Commands
from places import Place
from processes import wait_until
from submissions import book, instance

Run = Callable[..., subprocess.CompletedProcess[str]]

SECRET_THEN_FAILS = """run.env.startup_commands=['export FROM="${oc.env:MY_API_KEY}"', 'false']"""
COMMANDS = {
    "ok": ("-b",),
    "code": ("-b", "how=code", "code=7"),
    "gone": ("-b", "how=hang"),
    "time": ("-b", "how=hang"),
    "requeue": ("-b", "how=requeue"),
    "startup": ("-b", SECRET_THEN_FAILS),
    "refused": ("-b", "run.env.constraint=purple"),
    "never": ("-b", "run.env.partition=short", "run.env.time='00:30:00'"),
    "attached": ("-r",),
    "crashed": ("-r", "how=segv"),
}


@pytest.mark.parametrize("place", ["local", "ssh"], indirect=True)
def test_a_planted_secret_is_found_nowhere_however_its_job_ends(
    place: Place, project: Path, environ: dict[str, str], nemotron: Run, tmp_path: Path
) -> None:
    core = f"planted{uuid.uuid4().hex}"
    given = {"MY_TOKEN": f'it\'s $A {core}-1 "x" \\', "MY_PASSWORD": f"{core}-2", "MY_API_KEY": f"{core}-3"}
    seen = {
        "HF_TOKEN": given["MY_TOKEN"],
        "URL": f"https://me:{given['MY_PASSWORD']}@host",
        "FROM": given["MY_API_KEY"],
    }
    behaving(
        project,
        place,
        env_vars={"HF_TOKEN": "${oc.env:MY_TOKEN}", "URL": "https://me:${oc.env:MY_PASSWORD}@host"},
        startup_commands=['export FROM="${oc.env:MY_API_KEY}"'],
    )
    config = project / "steps/demo/behave/config/default.yaml"
    digests = {name: hashlib.sha256(value.encode()).hexdigest() for name, value in seen.items()}
    config.write_text(config.read_text().replace("secrets: {}", f"secrets: {json.dumps(digests)}"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environ.update(given, TMPDIR=str(scratch), ANOTHER_NAME_OF_THE_SAME=given["MY_TOKEN"])
    jobs = Path(place.profile["remote_job_dir"])
    secrets = jobs / ".nemotron-secrets"
    everywhere = (tmp_path, place.cluster.root)
    asked = {
        name: ("steps", "run", "behave", f"number={n}", *arguments, how, "cluster")
        for n, (name, (how, *arguments)) in enumerate(COMMANDS.items())
    }
    with listed_processes() as processes:
        commands = Commands(asked, tmp_path / "said", project, environ)
        waits = {"gone", "time", "requeue"}

        def act() -> bool:
            for record in book(project).open():
                name = list(COMMANDS)[int(record.order.settings["number"])]
                if name in waits and record.handle and begun(record.handle.directory):
                    holders = holding(core, *everywhere)
                    assert {f.parent for f in holders} == {secrets}, "while it runs, in its private file alone"
                    assert {stat.S_IMODE(f.stat().st_mode) for f in holders if f.exists()} <= {0o600}
                    kept = place.cluster.command("scontrol", "write", "batch_script", record.handle.id, "-")
                    shown = place.cluster.command("scontrol", "show", "job", "-d", record.handle.id)
                    assert core not in kept + shown
                    waits.remove(name)
                    if name == "time":
                        place.cluster.expire(int(record.handle.id))
                    else:
                        word = ("scancel",) if name == "gone" else ("scontrol", "requeue")
                        place.cluster.command(*word, record.handle.id)
            return not waits

        wait_until(act, "every job that is interfered with has begun", 300)
        codes = {name: done.returncode for name, done in commands.ended().items()}
        assert codes == {**dict.fromkeys(COMMANDS, 0), "refused": 6, "crashed": 1}

        def all_closed() -> bool:
            nemotron("runs", "sync", cwd=project)
            return not book(project).open()

        wait_until(all_closed, "every submission is closed", 300)
        for argv in (("list",), ("status", *book(project).keys())):
            told = nemotron("runs", *argv, "--json", cwd=project)
            assert core not in told.stdout + told.stderr
        state = {row["key"]: row["state"] for row in json.loads(nemotron("runs", "list", "--json", cwd=project).stdout)}
    ends = {list(COMMANDS)[int(r.order.settings["number"])]: state[r.key] for r in book(project).all()}
    good = dict.fromkeys(("ok", "requeue", "attached"), "SUCCEEDED")
    bad = {**dict.fromkeys(("code", "startup", "refused", "never", "crashed"), "FAILED"), "gone": "CANCELLED"}
    assert ends == {**good, **bad, "time": "TIMEOUT"}, "each job had its secrets"
    assert not [line for line in processes if core in line], "what every user of the machine could read"
    assert len(processes) > 100
    assert holding(core, *everywhere) == [], "nowhere on disk: state, event log, compute logs, spool, accounting"
    assert not list(secrets.iterdir())
    with instance(project) as history:
        runs = history.get_runs()
        assert len(runs) == len(COMMANDS) - 1, "of each but the one that was refused"
        for run in runs:
            events = "\n".join(e.to_json() for e in history.all_logs(run.run_id))
            assert core not in f"{run.tags}{run.run_config}{events}"


def begun(directory: str) -> bool:
    return any(b"begins" in f.read_bytes() for f in Path(directory).glob("log-*"))


@contextmanager
def listed_processes() -> Iterator[set[str]]:
    """The command line of every process that is seen until the context is left, asked for again and again."""
    found: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True).stdout
            found.update(listed.decode(errors="replace").splitlines())
            done.wait(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def holding(text: str, *roots: Path) -> list[Path]:
    """The files with ``text`` in them, compressed or not."""
    found = []
    for root in roots:
        for folder, _, names in os.walk(root):
            for file in (Path(folder, name) for name in names):
                try:
                    data = file.read_bytes() if stat.S_ISREG(file.lstat().st_mode) else b""
                    if data[:2] == b"\x1f\x8b":
                        data = gzip.decompress(data)
                except (OSError, EOFError):  # it has gone, or is just being written
                    continue
                if text.encode() in data:
                    found.append(file)
    return found
