"""One POSIX shell script as one process: the script comes over stdin, and what came back is told apart from noise.

Nothing of the script stands in a process list, here or there. Marks around its output show whether it was started at
all, what a chatty login shell wrote before it, and its own exit code, which may be ssh's 255 as well.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

Feed = Callable[[BinaryIO], None]
#: Of the script, once it has been read to its last line: half of one must not run. The login shell may be any: no
#: ``!``, no backslash, no newline in it.
_BOOTSTRAP = (
    "exec /bin/sh -c 'm={mark}; echo $m; echo $m >&2; __s=$(head -c {size}); "
    'case $__s in *"#$m") ;; *) exit 255 ;; esac; (eval "$__s"); __c=$?; echo "$m $__c" >&2; exit $__c\''
)


@dataclass(frozen=True)
class Ended:
    """How the process ended. ``code`` is the script's, or None where it did not get to its end."""

    started: bool
    code: int | None
    out: bytes
    err: bytes


class TimedOut(Exception):
    """The script did not end in time; ``started`` says whether it is known to have begun."""

    def __init__(self, started: bool) -> None:
        super().__init__()
        self.started = started


def run_script(
    argv: Callable[[str], Sequence[str]],
    script: str,
    feed: Feed | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Run ``script`` by the command that ``argv`` makes of a line for the login shell.

    ``feed`` writes what the script reads from its stdin. In a session of its own: Ctrl-C does not end it half-way.

    Raises:
        TimedOut: it was ended after ``timeout`` seconds.
        OSError: the command cannot be started, or ``feed`` could not read what it was to write.
    """
    mark = f"nemotron-{secrets.token_hex(12)}"
    text = f"{script}\n#{mark}".encode()
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            argv(_BOOTSTRAP.format(mark=mark, size=len(text))),
            stdin=reader,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
    except BaseException:
        os.close(writer)
        raise
    finally:
        os.close(reader)
    feeder = _Feeder(writer, text, feed)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as e:
        raise TimedOut(mark.encode() in bytes(e.stderr or b"")) from None
    finally:
        _end(process)
        feeder.join()
    if feeder.failed:
        raise feeder.failed
    return _taken_apart(mark.encode(), out, err)


class _Feeder(threading.Thread):
    """Writes stdin beside the reading of stdout, so that neither side waits for the other."""

    def __init__(self, writer: int, head: bytes, feed: Feed | None) -> None:
        super().__init__(daemon=True)
        self.failed: Exception | None = None
        self._writer, self._head, self._feed = writer, head, feed
        self.start()

    def run(self) -> None:
        try:
            with os.fdopen(self._writer, "wb") as pipe:
                pipe.write(self._head)
                if self._feed:
                    self._feed(pipe)
        except BrokenPipeError:
            pass  # the script did not want it all
        except Exception as e:
            self.failed = e


def _end(process: subprocess.Popen[bytes]) -> None:
    """Not by reading to the end: a background connection holds the pipes of its clients until theirs is over."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def _taken_apart(mark: bytes, out: bytes, err: bytes) -> Ended:
    began = err.find(mark + b"\n")
    if began < 0:
        return Ended(False, None, b"", err)
    out = out.partition(mark + b"\n")[2]
    err = err[began + len(mark) + 1 :]
    at = err.rfind(mark + b" ")
    if at < 0:
        return Ended(True, None, out, err)
    code, _, rest = err[at + len(mark) + 1 :].partition(b"\n")
    return Ended(True, int(code), out, err[:at] + rest)
