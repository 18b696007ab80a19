"""Thirty jobs over four nodes, in every way that a job can end, and what everybody is told of each."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from behave import behaving
from commands import Commands
from places import Place
from processes import wait_until
from submissions import book, instance, materialized_keys

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `data_version`")


@dataclass(frozen=True)
class Way:
    """What is asked for, how it ends, and what is said of that.

    Attributes:
        exit: of the command where it waits for the job, or is refused.
        run: the status of its Dagster run; None where there is none.
    """

    arguments: tuple[str, ...]
    state: str
    code: int | None
    exit: int
    says: str
    run: str | None = "FAILURE"


def way(arguments: str, state: str, code: int | None, exit: int, says: str, run: str | None = "FAILURE") -> Way:
    return Way(tuple(arguments.split()), state, code, exit, says, run)


WAYS = {
    "ok": way("", "SUCCEEDED", 0, 0, "", "SUCCESS"),
    "requeued": way("how=requeue", "SUCCEEDED", 0, 0, "", "SUCCESS"),
    "one": way("how=code code=1", "FAILED", 1, 1, r"exit code 1\b"),
    "seven": way("how=code code=7", "FAILED", 7, 1, r"exit code 7\b"),
    "segv": way("how=segv", "FAILED", -11, 1, "killed by SIGSEGV"),
    "rank": way("how=rank code=5 run.env.nodes=2", "FAILED", 5, 1, r"exit code 5, task 1 on n\d"),
    "memory": way("how=memory run.env.mem=200", "OUT_OF_MEMORY", -9, 1, "used more memory than it was given"),
    "time": way("how=hang", "TIMEOUT", None, 1, "its time limit was reached"),
    "gone": way("how=hang", "CANCELLED", None, 7, "the job was cancelled", "CANCELED"),
    "held": way(
        "how=hang run.env.additional_parameters.hold=true",
        *("CANCELLED", None, 7, "the job was cancelled", "CANCELED"),
    ),
    "long": way(
        "run.env.partition=short run.env.time='00:30:00'",
        *("FAILED", None, 1, r"it can never start: .*\(Partition(TimeLimit|Config)\)"),
    ),
    "nowhere": way("run.env.partition=nowhere", "FAILED", None, 6, "Invalid partition name", None),
    "purple": way("run.env.constraint=purple", "FAILED", None, 6, "Change in the profile: constraint", None),
    "wide": way("run.env.nodes=9", "", None, 5, "needs 9 nodes; partition debug on this machine has 4", None),
}
LOCAL = {
    **{"ok": 4, "requeued": 2, "one": 2, "seven": 2, "segv": 2, "rank": 2, "memory": 2, "time": 3, "gone": 3},
    **{"held": 1, "long": 2, "nowhere": 1, "purple": 1, "wide": 1},
}
OVER_SSH = {"ok": 2, "requeued": 1, "seven": 1, "segv": 1, "time": 1, "gone": 1, "long": 1, "nowhere": 1}
ATTACHED = ("ok", "seven", "gone", "long")


@pytest.mark.parametrize("place", ["local", "ssh"], indirect=True)
def test_every_job_ends_in_its_state_with_its_code_and_its_message(
    place: Place, project: Path, environ: dict[str, str], nemotron: Run, tmp_path: Path
) -> None:
    behaving(project, place)
    here = place.tunnel == "local"
    names = [f"{kind}-{i}" for kind, count in (LOCAL if here else OVER_SSH).items() for i in range(count)]
    names += [f"{kind}-a" for kind in (ATTACHED if here else ATTACHED[:2])]
    asked = {
        name: (
            *("steps", "run", "behave", f"number={number}", *WAYS[_kind(name)].arguments),
            *(("-r", "cluster") if name.endswith("-a") else ("-b", "cluster", "--json")),
        )
        for number, name in enumerate(names)
    }
    commands = Commands(asked, tmp_path / "said", project, environ)
    _interfere(place, project, asked)
    done = commands.ended()

    for name, command in done.items():
        wanted = WAYS[_kind(name)]
        refused = wanted.exit in (5, 6)
        exit_code = wanted.exit if refused or name.endswith("-a") else 0
        assert command.returncode == exit_code, (name, command.stdout, command.stderr)
        if exit_code:
            assert re.search(wanted.says, command.stderr), (name, command.stderr)
            assert "Traceback" not in command.stderr
    synced: dict[str, str] = {}

    def all_closed() -> bool:
        told = nemotron("runs", "sync", "--json", cwd=project)
        synced.update({r["key"]: r["text"] for r in json.loads(told.stdout)})
        return not book(project).open()

    wait_until(all_closed, "every submission is closed", 300)
    assert nemotron("runs", "sync", cwd=project).stderr == "Nothing to publish.\n"

    listed = json.loads(nemotron("runs", "list", "--all", "--json", cwd=project).stdout)
    keys = [row["key"] for row in listed]
    pages = {p["key"]: p for p in json.loads(nemotron("runs", "status", *keys, "--json", cwd=project).stdout)}
    recorded = {name for name in names if WAYS[_kind(name)].state}
    by_number = {int(book(project).get(k).order.settings["number"]): k for k in keys}  # type: ignore[union-attr]
    found = {name: by_number[n] for n, name in enumerate(names) if n in by_number}
    assert set(found) == recorded and len(keys) == len(recorded), "one submission each, none for what was never tried"

    for name, key in found.items():
        wanted, page = WAYS[_kind(name)], pages[key]
        assert page == {**page, **next(r for r in listed if r["key"] == key)}
        assert (page["state"], page["exit_code"]) == (wanted.state, wanted.code), (name, page)
        good = wanted.state == "SUCCEEDED"
        assert page["phase"] == ("published" if good else "cancelled" if wanted.state == "CANCELLED" else "failed")
        assert bool(page["uri"]) is good and bool(page["error"]) is not good
        assert re.search(wanted.says, page["error"] or ""), (name, page["error"])
        if key in synced:
            assert synced[key] == (page["uri"] or page["error"].splitlines()[0])
        assert page["job"].get("restarts", 0) == (1 if name.startswith("requeued") else 0), name
        assert place.names(key) == (0 if wanted.exit == 6 else 1), name

    with instance(project) as history:
        runs = {r.tags.get("nemotron/job"): r for r in history.get_runs()}
        for name, key in found.items():
            wanted = WAYS[_kind(name)]
            if wanted.run is None:
                assert key not in runs, "nothing of it was ever run"
                continue
            assert runs[key].status.value == wanted.run, name
            if wanted.run != "SUCCESS":
                assert re.search(wanted.says, _told(history, runs[key].run_id)), name
        assert len(runs) == len(history.get_runs()), "one run for each"
    good = {key for name, key in found.items() if WAYS[_kind(name)].state == "SUCCEEDED"}
    made = materialized_keys(project, "demo/behave")
    assert set(made) == good and len(made) == len(good), "the asset's history has each success once, and nothing else"


def _kind(name: str) -> str:
    return name.partition("-")[0]


def _interfere(place: Place, project: Path, asked: dict[str, tuple[str, ...]]) -> None:
    """Do to the jobs what others do to them, once they run: cancel them, requeue them, let their time be up."""
    numbers = {str(n): name for n, name in enumerate(asked)}
    waits = {n for n in asked if _kind(n) in ("requeued", "time", "gone", "held")}

    def act() -> bool:
        for record in book(project).open():
            name = numbers[str(record.order.settings["number"])]
            if name not in waits or record.handle is None:
                continue
            job = record.handle.id
            begun = any(b"begins" in f.read_bytes() for f in Path(record.handle.directory).glob("log-*"))
            if _kind(name) == "held" or begun:
                waits.remove(name)
                if _kind(name) == "requeued":
                    place.cluster.command("scontrol", "requeue", job)
                elif _kind(name) == "time":
                    place.cluster.expire(int(job))
                else:
                    place.cluster.command("scancel", job)
        return not waits

    wait_until(act, "every job that is interfered with has begun", 300)


def _told(history: dg.DagsterInstance, run: str) -> str:
    """What the run's log says of its failure, or of why it was cancelled."""
    said = []
    for event in history.all_logs(run):
        found = event.dagster_event
        if found and found.is_step_failure:
            data = found.step_failure_data
            said.append(str(data.user_failure_data.description if data.user_failure_data else data.error))
        elif found and found.message:
            said.append(found.message)
    return "\n".join(said)
