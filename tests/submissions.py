"""What tests of submitted jobs share: a target with a cluster that can be unreachable, histories, waiting."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg

from nemotron_dagster.jobs.ledger import Ledger, Record, ledger

#: Local jobs of a "cluster": each question is counted; while the file `down` is there it does not answer; a job that
#: exits with 99 has hit its time limit.
YARD = """
from dataclasses import replace
from pathlib import Path
from typing import Literal

from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.target import State, bundled_target

local = bundled_target("local")


class Settings(local.Settings):
    executor: Literal["yard"] = "yard"
    site: str
    max_chain: int = 1


def make_target(settings, state):
    return Yard(state / "jobs", Path(settings.site))


class Yard(local.LocalTarget):
    cluster = "yard.example"

    def __init__(self, root, site):
        super().__init__(root)
        self.site = site

    def statuses(self, handles):
        with open(self.site / "questions", "a") as out:
            out.write("?")
        if (self.site / "down").exists():
            raise TargetError("yard.example: no answer. Try again later.")
        found = super().statuses(handles)
        return {k: replace(s, state=State.TIMEOUT) if s.exit_code == 99 else s for k, s in found.items()}
"""


def yard(project: Path, site: Path) -> None:
    """Give the project the target ``yard`` and the profiles ``yard`` (two jobs at most per chain) and ``lap``."""
    (project / "resources").mkdir()
    (project / "resources/yard.py").write_text(YARD)
    site.mkdir()
    profile = f'[yard]\nexecutor = "yard"\nsite = "{site}"\nmax_chain = 2\n'
    (project / "env.toml").write_text(f'{profile}[lap]\nexecutor = "local"\n')


def book(project: Path) -> Ledger:
    return ledger(project / ".nemotron")


def records(project: Path) -> list[Record]:
    return book(project).all()


@contextmanager
def instance(project: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(project / ".nemotron/dagster")) as found:
        yield found


def history(project: Path, asset: str = "demo/rows") -> list[dg.EventLogRecord]:
    """The asset's materializations, the newest first."""
    with instance(project) as found:
        return list(found.fetch_materializations(dg.AssetKey(asset.split("/")), limit=500).records)


def materialized_keys(project: Path, asset: str = "demo/rows") -> list[str]:
    """The key of the submission behind each materialization."""
    found = []
    for row in history(project, asset):
        assert row.asset_materialization is not None
        found.append(str(row.asset_materialization.metadata["nemotron/job/key"].value))
    return found


def end_jobs(project: Path) -> None:
    """Kill what jobs of the project a test has left running."""
    for file in (project / ".nemotron/jobs").glob("*/pid.json"):
        if not (file.parent / "exit.json").exists():
            with suppress(ProcessLookupError):
                os.killpg(json.loads(file.read_text())["child"], signal.SIGKILL)


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of ``what``."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
    return found


def ended(project: Path) -> None:
    """Wait until every job of the project has ended."""
    until(lambda: all((d / "exit.json").exists() for d in (project / ".nemotron/jobs").iterdir()))
