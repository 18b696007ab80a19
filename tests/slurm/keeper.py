"""Stops a cluster when nobody uses it any more: ``keeper.py ROOT READY USERS``."""

from __future__ import annotations

import fcntl
import signal
import sys
from pathlib import Path

from cluster import Cluster


def main(root: Path, ready: Path, users: Path) -> None:
    """Wait for the last user, then end the cluster and take back the word that it is there."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with users.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ready.unlink(missing_ok=True)
        Cluster(root).stop()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
