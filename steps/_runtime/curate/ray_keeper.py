"""Outlives a killed payload by a moment: ends the Ray daemons of its session and removes the session directory.

    python ray_keeper.py SESSION_DIRECTORY

It waits for the end of its standard input, which the payload's end closes, however that comes. Two of Ray's agents
would else stay for good.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time


def holders(folder: str) -> list[int]:
    """Processes with an open file below ``folder``. Ray rewrites its command lines, so those tell nothing."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}").startswith(folder + os.sep):
                        found.append(int(pid))
                        break
    return found


def main(folder: str) -> None:
    payload = os.getppid()  # holds its own log files open, and lives on where it ended Ray in good order
    sys.stdin.buffer.read()
    deadline = time.monotonic() + 10
    while (left := set(holders(folder)) - {payload}) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
