"""What the schedulers say, shared by every process of the project: one call per cluster and poll, whoever asks.

``<state>/board/<cluster>.json`` holds the last answer. Whoever finds it too old and gets the lock asks for all open
jobs of the cluster at once; everyone else reads what that one wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.locks import held
from nemotron_dagster.artifacts.manifest import write_json
from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.ledger import Ledger
from nemotron_dagster.jobs.target import JobHandle, Status, Target, status_from

POLL = (1.0, 30.0)  # seconds: first and longest pause between two questions; it grows while nothing changes
_GROWTH = 1.5


@dataclass(frozen=True)
class Board:
    """The answers below ``<state>/board``."""

    root: Path
    ledger: Ledger

    def status(self, target: Target, handle: JobHandle, urgent: bool = False) -> Status:
        """The job's status, not older than the present pause; ``urgent``: asked again, but once a second at most.

        Raises:
            TargetError: the cluster could not be reached when it was asked last.
        """
        if not target.cluster:
            return target.statuses([handle])[handle.key]
        file = self._file(target.cluster)
        seen = _read(file)
        if not _fresh(seen, handle, urgent):
            with held(file.with_suffix(".lock"), wait=handle.key not in seen.get("jobs", {})) as mine:
                seen = _read(file)
                if mine and not _fresh(seen, handle, urgent):
                    seen = self._ask(target, handle, seen)
                    write_json(file, seen)
        if seen.get("error"):
            raise TargetError(seen["error"])
        return status_from(seen["jobs"][handle.key])

    def statuses(self, target: Target, handles: Sequence[JobHandle]) -> dict[str, Status]:
        """Key -> status of open jobs of one target, with one question at most; without those that it does not know.

        Raises:
            As ``status``.
        """
        if not target.cluster:
            return target.statuses(handles)
        jobs = _read(self._file(target.cluster)).get("jobs", {})
        for handle in sorted(handles, key=lambda h: h.key in jobs)[:1]:  # asking for one asks for all
            self.status(target, handle)
        return self.last(target.cluster, handles)

    def last(self, cluster: str, handles: Iterable[JobHandle]) -> dict[str, Status]:
        """Key -> the last answer, however old."""
        jobs = _read(self._file(cluster)).get("jobs", {})
        return {h.key: status_from(jobs[h.key]) for h in handles if h.key in jobs}

    def _ask(self, target: Target, handle: JobHandle, seen: dict[str, Any]) -> dict[str, Any]:
        """Ask the scheduler once, for this job and every open one of its cluster."""
        handles = {r.handle.key: r.handle for r in self.ledger.open() if r.cluster == target.cluster and r.handle}
        handles[handle.key] = handle
        known = {k: v for k, v in seen.get("jobs", {}).items() if k in handles}
        pause = float(seen.get("pause") or POLL[0])
        try:
            found = {k: s.as_dict() for k, s in target.statuses(_unfinished(handles.values(), known)).items()}
        except TargetError as e:
            return {"time": time.time(), "pause": min(pause * _GROWTH, POLL[1]), "jobs": known, "error": str(e)}
        jobs = {**known, **found}
        changed = any(jobs[k].get("state") != known.get(k, {}).get("state") for k in jobs)
        pause = POLL[0] if changed else min(pause * _GROWTH, POLL[1])
        return {"time": time.time(), "pause": pause, "jobs": jobs, "error": ""}

    def _file(self, cluster: str) -> Path:
        name = re.sub(r"[^\w.-]+", "-", cluster).strip("-")[:60]
        return self.root / f"{name}-{hashlib.sha256(cluster.encode()).hexdigest()[:8]}.json"


def board(state: Path, ledger: Ledger) -> Board:
    return Board(state / "board", ledger)


def _unfinished(handles: Iterable[JobHandle], known: dict[str, Any]) -> list[JobHandle]:
    """Those whose end is not known yet: a job that has ended stays so."""
    return [h for h in handles if h.key not in known or not _over(known[h.key])]


def _over(answer: dict[str, Any]) -> bool:
    """Whether nothing can change any more; a job that was lost before it began may be found again."""
    status = status_from(answer)
    return status.state.final and not status.never_began


def _fresh(seen: dict[str, Any], handle: JobHandle, urgent: bool) -> bool:
    if handle.key not in seen.get("jobs", {}):
        return bool(seen.get("error")) and time.time() - seen["time"] < POLL[0]
    if _over(seen["jobs"][handle.key]):
        return True
    return bool(0 <= time.time() - seen["time"] < (POLL[0] if urgent else seen["pause"]))


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and "time" in found else {}
    except (FileNotFoundError, ValueError):
        return {}
