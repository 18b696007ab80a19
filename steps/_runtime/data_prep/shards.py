"""Make the shards of a plan, each once: what a killed run finished is kept, everything else is made again.

A shard's files are written under temporary names, hashed, renamed, and only then is its receipt written, whole or not
at all: ``receipts/shard_NNNNNN.json``. A shard is done where its receipt has the shard's digest and every file that it
lists has the size and the xxh3-64 that it says. Only the process that was started writes receipts; its workers end
with it, however it ends.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _runtime.data_prep import rejects as rejected
from _runtime.data_prep.plan import Shard
from _runtime.payload import PayloadError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BLOCK = 4 << 20
Tell = Callable[[int, int, int], None]  # rows, tokens and bytes since the last call
Receipt = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Task:
    """A shard, the folder that it belongs to, and what its making depends on: the plan's settings, paths, context."""

    folder: str
    dataset: str
    plan: str
    shard: Shard
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"shard_{self.shard.index:06d}"

    @property
    def receipt(self) -> Path:
        return Path(self.folder, "receipts", f"{self.name}.json")


@dataclass
class Job:
    """What the function that makes a shard is given.

    Attributes:
        settings: what the output depends on beside the rows, as in the plan, plus paths and other context.
        rejects: counts the rows that are left out.
        tell: reports rows, tokens and bytes done since the last call; cheap, call it per batch.
    """

    shard: Shard
    folder: str
    settings: Mapping[str, Any]
    rejects: rejected.Rejects
    tell: Tell

    def temporary(self, name: str) -> str:
        """Where to write the shard's file ``name`` (``shard_000000.bin``, ``receipts/shard_000000.xxh3``)."""
        return os.path.join(self.folder, f"{name}.tmp-{os.getpid()}")


@dataclass(frozen=True)
class Made:
    """What a shard became: ``files`` maps a kind to the file's name, which lies at ``Job.temporary(name)`` now.

    ``stats`` are counts (``rows``, ``tokens``, ...), which are added up. A shard without rows has no files.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    stats: Mapping[str, int] = field(default_factory=dict)


Work = Callable[[Job], Made]


def make(task: Task, work: Work, tell: Tell) -> Receipt:
    """Make one shard in this process and bring its files into place; the receipt is returned, not yet written.

    Raises:
        PayloadError: bad input, or a full disk.
    """
    rejects = rejected.Rejects(task.settings.get("on_bad_row", "skip"))
    job = Job(task.shard, task.folder, task.settings, rejects, tell)
    try:
        os.makedirs(os.path.join(task.folder, "receipts"), exist_ok=True)
        made = work(job)
        files = {}
        for kind, name in made.files.items():
            size, checksum = hashed(job.temporary(name))
            files[kind] = {"path": name, "bytes": size, "checksum": checksum}
        for name in made.files.values():
            os.replace(job.temporary(name), os.path.join(task.folder, name))
    except rejected.BadRow as e:
        raise rejected.error(e.reason, e.example) from None
    except OSError as e:
        if e.errno in FULL:
            raise disk_full(task.folder, e) from None
        raise
    return {
        "status": "completed",
        "plan_hash": task.plan,
        "dataset_name": task.dataset,
        "shard_index": task.shard.index,
        "digest": task.shard.digest,
        "stats": dict(made.stats),
        "rejects": job.rejects.to_json(),
        "files": files,
    }


def run(
    found: Mapping[Task, Receipt | None],
    work: Work,
    launch: Callable[[Sequence[Task], Work, Tell], Iterator[tuple[Task, Receipt]]],
    tell: Tell,
    done: Callable[[Task, Receipt, bool], None],
) -> dict[tuple[str, int], Receipt]:
    """Make every shard that is not done.

    Args:
        found: what ``pending`` says of the shards.
        work: a module's function; it runs in other processes, perhaps on other machines.
        launch: ``launch.here``, ``launch.processes(n)`` or ``launch.ray(...)``.
        done: called with each receipt as it comes, and whether the shard was found done already.

    Returns:
        (folder, shard index) -> receipt.

    Raises:
        PayloadError: bad input in any shard, a full disk, a worker that died. Shards that were done stay done.
    """
    receipts: dict[tuple[str, int], Receipt] = {}
    waiting = []
    for task, kept in found.items():
        if kept is None:
            waiting.append(task)
        else:
            receipts[task.folder, task.shard.index] = kept
            done(task, kept, True)
    for task, receipt in launch(waiting, work, tell) if waiting else ():
        write_receipt(task, receipt)
        receipts[task.folder, task.shard.index] = receipt
        done(task, receipt, False)
    return receipts


def pending(tasks: Sequence[Task]) -> dict[Task, Receipt | None]:
    """Task -> its receipt where it is done already; what a killed run left half written is removed."""
    for folder in {t.folder for t in tasks}:
        _sweep(folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return dict(zip(tasks, threads.map(completed, tasks), strict=True))


def completed(task: Task, hashing: bool = True) -> Receipt | None:
    """The receipt of a shard that is done; None where it must be made (again).

    Args:
        hashing: read the files; else only their sizes are looked at.
    """
    try:
        receipt = json.loads(task.receipt.read_text(encoding="utf-8"))
        if receipt["status"] != "completed" or receipt["digest"] != task.shard.digest:
            return None
        for about in receipt["files"].values():
            file = os.path.join(task.folder, about["path"])
            if os.path.getsize(file) != about["bytes"] or (hashing and hashed(file)[1] != about["checksum"]):
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(receipt)


def write_receipt(task: Task, receipt: Receipt) -> None:
    """Write a receipt whole or not at all.

    Raises:
        PayloadError: the disk is full.
    """
    text = json.dumps(receipt, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(task.receipt, text)


def write_whole(file: Path, text: str) -> None:
    """Write a small file under another name first, so that it is never seen in part.

    Raises:
        PayloadError: the disk is full.
    """
    temporary = file.with_name(f"{file.name}.tmp-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        os.replace(temporary, file)
    except OSError as e:
        if e.errno in FULL:
            raise disk_full(str(file.parent), e) from None
        raise


def hashed(file: str) -> tuple[int, str]:
    """Size and ``xxh3:<16 hex digits>`` of a file."""
    import xxhash

    state, size = xxhash.xxh3_64(), 0
    with open(file, "rb", buffering=0) as data:
        while block := data.read(_BLOCK):
            state.update(block)
            size += len(block)
    return size, f"xxh3:{state.hexdigest()}"


def disk_full(folder: str, e: OSError) -> PayloadError:
    """The error for a disk (or quota) that has no room left."""
    return PayloadError(
        "disk_full",
        f"{e.filename or folder}: {e.strerror}",
        "Free space, or set output_dir to a larger disk, and run it again: finished shards are kept.",
    )


def _sweep(folder: str) -> None:
    """Remove what a killed run left half written, here and among the receipts."""
    for place in (Path(folder), Path(folder, "receipts")):
        if place.is_dir():
            for file in place.iterdir():
                if ".tmp-" in file.name:
                    file.unlink(missing_ok=True)
