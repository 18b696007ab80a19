"""The ledger: one JSON file per submission, so that any process finds every job again.

``<state>/ledger/open/<key>.json`` is written before anything is submitted, and moved to ``done/`` when the job has
ended and its artifact is published, or its failure recorded. No secret is ever in it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nemotron_dagster.artifacts.locks import held
from nemotron_dagster.artifacts.manifest import write_json
from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs.target import JobHandle, Status, status_from

Phase = Literal["submitting", "submitted", "published", "failed", "cancelled"]
OPEN = ("submitting", "submitted")


@dataclass(frozen=True)
class Order:
    """What publishing a job's output takes, so that any process can finish what another has submitted.

    Attributes:
        digest: of the compiled spec.
        code: digest of the code that runs.
        output: the output directory that the user named, or None for a managed one.
        staging: where the output is put together on this machine.
        inputs: lineage rows of the manifest.
        known: of each input's manifest, what fingerprints are handed on from.
        settings: the compiled config, its secrets redacted.
        delivery: ``path``, ``key`` and ``force`` of a file that the published output is copied to.
        git: state of the project's repository.
        locks: what the step's locks said when it was submitted.
    """

    step: str
    config: str
    digest: str
    code: str
    asset: tuple[str, ...]
    type: str
    path: str
    root: str
    staging: str
    partition: str | None = None
    output: str | None = None
    inputs: tuple[dict[str, Any], ...] = ()
    known: tuple[dict[str, Any], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    delivery: Mapping[str, Any] | None = None
    resumable: bool = False
    git: Mapping[str, Any] | None = None
    locks: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Record:
    """One submission.

    Attributes:
        key: names the submission; of a walltime chain, its first job.
        settings: the target's own settings, to make it again; without what only the job's process is given.
        job: the Submission, without secrets, for a follow-up job; ``references`` are the secrets' references.
        handles: its jobs; more than one in a walltime chain. Empty: nothing is known to be submitted yet.
        lost: how many of them the scheduler lost before they began.
        runs: ids of the Dagster runs that have watched it.
        error: why it failed, for people.
        uri: of the published artifact.
        memory: what the job was estimated to need on each GPU, in one line.
    """

    key: str
    profile: str | None
    executor: str
    cluster: str
    settings: Mapping[str, Any]
    order: Order
    detached: bool
    job: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    phase: Phase = "submitting"
    handles: tuple[JobHandle, ...] = ()
    max_chain: int = 1
    lost: int = 0
    status: Status | None = None
    runs: tuple[str, ...] = ()
    created: float = field(default_factory=time.time)
    closed: float | None = None
    error: str = ""
    uri: str = ""
    memory: str = ""

    @property
    def handle(self) -> JobHandle | None:
        return self.handles[-1] if self.handles else None

    @property
    def may_continue(self) -> bool:
        """Whether a job that the scheduler has interrupted is followed by another."""
        return self.order.resumable and len(self.handles) - self.lost < self.max_chain

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "status": self.status.as_dict() if self.status else None}


def record_from(data: Mapping[str, Any]) -> Record:
    """The inverse of ``Record.as_dict``.

    Raises:
        KeyError, TypeError, ValueError: it is not what ``as_dict`` gives.
    """
    order = dict(data["order"])
    for name in ("asset", "inputs", "known", "locks"):
        order[name] = tuple(order[name])
    status = status_from(data["status"]) if data.get("status") else None
    handles = tuple(JobHandle(**h) for h in data["handles"])
    own = {"order": Order(**order), "handles": handles, "runs": tuple(data["runs"]), "status": status}
    return Record(**{**data, **own})


@dataclass(frozen=True)
class Ledger:
    """The records below ``<state>/ledger``."""

    root: Path

    def put(self, record: Record) -> Record:
        """Write the record down, durably, before anything else happens; the record."""
        folder = self.root / ("open" if record.phase in OPEN else "done")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{record.key}.json", record.as_dict())
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if record.phase not in OPEN:
            (self.root / "open" / f"{record.key}.json").unlink(missing_ok=True)
            if record.phase != "published":  # then it is watched until it is `recorded`
                (self.locks / f"{record.key}.watched").unlink(missing_ok=True)
        return record

    def change(self, key: str, **changes: Any) -> Record:
        """``put`` the record with some fields changed; ``handle`` and ``run`` are added to its handles and runs.

        Raises:
            KeyError: no such record.
        """
        with held(self.locks / f"{key}.change"):
            record = self.get(key)
            if record is None:
                raise KeyError(key)
            handle, run = changes.pop("handle", None), changes.pop("run", None)
            if handle is not None and handle not in record.handles:
                changes["handles"] = (*record.handles, handle)
            if run is not None and run not in record.runs:
                changes["runs"] = (*record.runs, run)
            if changes.get("phase", record.phase) not in OPEN:
                changes.setdefault("closed", record.closed or time.time())
            return self.put(replace(record, **changes)) if changes else record

    def get(self, key: str) -> Record | None:
        for folder in ("done", "open"):  # in this order: a record that is being closed is in both
            found = _read(self.root / folder / f"{key}.json")
            if found is not None:
                return found
        return _read(self.root / "done" / f"{key}.json")  # it was closed between the two looks

    def find(self, prefix: str) -> list[Record]:
        """The records whose key, or a job id of which, starts with or is ``prefix``."""
        return [r for r in self.all() if r.key.startswith(prefix) or any(h.id == prefix for h in r.handles)]

    def open(self) -> list[Record]:
        """Submissions that are not closed yet, oldest first."""
        return sorted(self._folder("open"), key=lambda r: r.created)

    def all(self, limit: int | None = None, problems: list[str] | None = None) -> list[Record]:
        """Every submission, the newest ``limit`` closed ones among them, oldest first.

        What is wrong with files that are no records is added to ``problems``.
        """
        found = {r.key: r for r in self._folder("open", None, problems)}
        found |= {r.key: r for r in self._folder("done", limit, problems)}
        return sorted(found.values(), key=lambda r: r.created)

    def keys(self) -> list[str]:
        """The keys of all submissions, by their files' names alone."""
        names: set[str] = set()
        for folder in ("open", "done"):
            with suppress(FileNotFoundError):
                names |= {n.removesuffix(".json") for n in os.listdir(self.root / folder) if n.endswith(".json")}
        return sorted(n for n in names if not n.startswith("."))

    def owe(self, key: str) -> None:
        """Note that the artifact of a submission is published, or is about to be, and not yet in Dagster's history."""
        file = self.root / "unrecorded" / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def owed(self) -> list[str]:
        """The keys noted by ``owe`` that nobody has ``recorded`` yet: who was about to may have been killed."""
        try:
            return sorted(os.listdir(self.root / "unrecorded"))
        except FileNotFoundError:
            return []

    def recorded(self, key: str) -> None:
        """The artifact is in Dagster's history."""
        (self.root / "unrecorded" / key).unlink(missing_ok=True)
        (self.locks / f"{key}.watched").unlink(missing_ok=True)

    @contextmanager
    def watched(self, key: str) -> Iterator[None]:
        """Be one of those who watch a submission, so that it is no orphan meanwhile; a killed watcher is none."""
        self.locks.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.locks / f"{key}.watched", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield
        finally:
            os.close(lock)

    def orphaned(self, key: str) -> bool:
        """Whether nobody watches the submission now."""
        try:
            with open(self.locks / f"{key}.watched") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    def _folder(self, name: str, limit: int | None = None, problems: list[str] | None = None) -> Iterator[Record]:
        files = []
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.root / name):
                with suppress(FileNotFoundError):  # closed since it was listed
                    if entry.name.endswith(".json"):
                        files.append((entry.stat().st_mtime, entry.path))
        for _, path in sorted(files, reverse=True)[:limit]:
            try:
                record = _read(Path(path))
            except TargetError as e:  # the others are as good as before
                if problems is not None:
                    problems.append(str(e))
                continue
            if record is not None:
                yield record


def ledger(state: Path) -> Ledger:
    """The ledger of a project's state directory."""
    return Ledger(state / "ledger")


def _read(file: Path) -> Record | None:
    try:
        return record_from(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise TargetError(
            f"{file}: is no record of a submission ({e}). Move it away; `nemotron runs list` shows the others."
        ) from e
