"""The processes of a cluster: found by what they carry, ended without touching any other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

#: In the environment of every daemon and job of a cluster: its directory.
MARK = "SLURM_TEST_CLUSTER"


def wait_until(true: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Returns as soon as ``true()``; raises AssertionError, naming ``what``, after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def from_file(pid_file: Path) -> int | None:
    """The process that a pid file names, if it runs."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if alive(pid) else None


def end(pids: Iterable[int], grace: float = 10) -> None:
    """Ask them to end; kill those that are still there after ``grace`` seconds. Returns when all have gone."""
    left = list(pids)
    for kind, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        for pid in left:
            try:
                os.kill(pid, kind)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + seconds
        while (left := [p for p in left if alive(p)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        if not left:
            return
    raise AssertionError(f"processes {left} do not end")


def descendants(pid: int) -> list[int]:
    """Its children, theirs, and so on; a connection of sshd is one of them."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found = parents.get(pid, [])
    return found + [d for child in found for d in descendants(child)]


def of_cluster(root: Path) -> list[int]:
    """Every process that carries the cluster's mark, and its slurmstepd, which overwrite their environment."""
    mark = f"{MARK}={root}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        pid = int(entry.name) if entry.name.isdigit() else os.getpid()
        if pid == os.getpid() or not alive(pid):
            continue
        try:
            ours = mark in (entry / "environ").read_bytes() + b"\0"
            if not ours and (entry / "comm").read_text().startswith("slurm"):
                ours = any(os.readlink(fd).startswith(f"{root}/") for fd in (entry / "fd").iterdir())
        except OSError:
            continue
        if ours:
            found.append(pid)
    return found


def that_name(text: str) -> list[int]:
    """Every process with ``text`` in its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and alive(int(entry.name)):
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in line:
                found.append(int(entry.name))
    return found
