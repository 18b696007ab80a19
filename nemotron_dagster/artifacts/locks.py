"""Locks between processes, as files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(file: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock that ``file`` stands for; yields whether it was had (always, with ``wait``).

    The file is removed at the end. Whoever waited for it meanwhile sees that its name is gone or another's, and asks
    again: two holders of one name are impossible. A killed holder lets go of the lock, not of the file.

    Raises:
        OSError: the file cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(file, wait)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _take(file: Path, wait: bool) -> int | None:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.stat(file).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
