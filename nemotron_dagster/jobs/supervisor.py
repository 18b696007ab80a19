"""Runs one local job and outlives whoever submitted it. Standard library only.

    python supervisor.py JOB_DIRECTORY

Reads ``job.json``; holds an exclusive lock on ``lock`` while the job or anything it started lives (children inherit
the descriptor), so "is it alive" is never a guess about process ids; writes output to ``log`` and, last, ``exit.json``.
A second supervisor on the same directory leaves at once, so starting one twice starts one job.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

GRACE = 10.0  # seconds between asking the job to stop and killing it


def _write(file: Path, data: dict[str, object]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(data), encoding="utf-8")
    os.replace(temporary, file)


def main(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    if not _acquire(lock):
        return 0
    if (directory / "pid.json").exists():
        return 0  # ran once already
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    cancelled = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal cancelled
        cancelled = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with open(directory / "log", "ab") as log:
        try:
            child = subprocess.Popen(
                job["argv"],
                cwd=job["cwd"],
                env={**os.environ, **job["env"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )
        except OSError as e:
            log.write(f"cannot start {job['argv'][0]}: {e}\n".encode())
            _write(directory / "exit.json", {"exit_code": 127, "cancelled": False, "time": time.time()})
            return 0
    _write(directory / "pid.json", {"supervisor": os.getpid(), "child": child.pid, "time": time.time()})
    code: int | None = None
    asked: float | None = None
    while code is None:
        if cancelled and asked is None:
            asked = time.monotonic()
            _signal(child.pid, signal.SIGTERM)
        if asked is not None and time.monotonic() - asked > GRACE:
            _signal(child.pid, signal.SIGKILL)
        try:
            code = child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    if cancelled:
        _signal(child.pid, signal.SIGKILL)  # what the job left behind
    _write(directory / "exit.json", {"exit_code": code, "cancelled": cancelled, "time": time.time()})
    return 0


def _acquire(lock: int) -> bool:
    """Take the lock; whoever only asks whether the job lives holds it for an instant, so try for a second."""
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(0.05)
    return False


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
