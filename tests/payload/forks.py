"""Starts programs in the train environment as forks of a process that has imported their library already.

A fork is a process of its own: it is killed, and ends, as one that was started. What a step does when it is started
for real, imports included, is what the first run of its test module shows; the others take this way.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from interpreters import STEPS, payload_python

SERVER = Path(__file__).with_name("fork_server.py")


class Fork:
    """A running program, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, server: Server, pid: int) -> None:
        self.server, self.pid, self.returncode = server, pid, None

    returncode: int | None

    def poll(self) -> int | None:
        if self.returncode is None and self.server.answered(0):
            self.returncode = int(self.server.answer())
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        if self.returncode is None and not self.server.answered(timeout):
            self.kill()
            raise subprocess.TimeoutExpired("a fork", timeout)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[str] | Fork


class Server:
    """A process that has imported a library; one fork at a time."""

    def __init__(self, library: str) -> None:
        self.library, self.last = library, None
        self.home = tempfile.mkdtemp(prefix="fork-server-")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "RL_", "RANK", "WORLD_SIZE"))}
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": self.home, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.log = Path(self.home, "log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [payload_python("train"), str(SERVER), library],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                env={**kept, **quiet, "PYTHONPATH": str(STEPS), "NEMOTRON_STEP_DIR": str(STEPS)},
            )
        assert self.answer() == "ready"

    last: Fork | None

    def answered(self, timeout: float) -> bool:
        """Is there an answer now, or before the time is over?"""
        return bool(select.select([self.process.stdout], [], [], timeout)[0])

    def answer(self) -> str:
        assert self.process.stdout is not None
        said = ""
        while not said.endswith("\n"):  # byte by byte: what is read ahead would be hidden from select
            byte = os.read(self.process.stdout.fileno(), 1).decode()
            assert byte, f"the server of {self.library} has ended:\n{self.log.read_text()[-3000:]}"
            said += byte
        return said.strip()

    def run(
        self, argv: Sequence[str], code: str | None, env: Mapping[str, str], cwd: Path, out: Path, err: Path
    ) -> Fork:
        if self.last is not None:  # what a failed test left running
            self.last.kill()
            self.last.wait()
        task = {"argv": list(argv), "code": code, "env": dict(env), "cwd": str(cwd), "out": str(out), "err": str(err)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.last = Fork(self, int(self.answer()))
        return self.last

    def close(self) -> None:
        if self.last is not None:
            with contextlib.suppress(ProcessLookupError):
                self.last.kill()
        self.process.communicate()
        shutil.rmtree(self.home, ignore_errors=True)


_server: Server | None = None


def of(library: str) -> Server:
    """The server of a library; only one is kept, for the memory that each takes."""
    global _server
    if _server is None or _server.library != library or _server.process.poll() is not None:
        close()
        _server = Server(library)
    return _server


@atexit.register
def close() -> None:
    global _server
    if _server is not None:
        _server.close()
        _server = None


def start(library: str, script: Path, *arguments: str, env: Mapping[str, str], cwd: Path, log: Path) -> Fork:
    """``python script arguments`` with what it prints appended to ``log``."""
    return of(library).run([str(script), *arguments], None, env, cwd, log, log)


def python(library: str, code: str, *arguments: object, **variables: str) -> str:
    """Run code with steps/ importable; returns the last line it printed, or nothing."""
    server = of(library)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        env = {
            **os.environ,
            "PYTHONPATH": str(STEPS),
            "NEMOTRON_STEP_DIR": str(STEPS),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        status = server.run(["-c", *map(str, arguments)], code, env, Path(folder), out, err).wait(900)
        assert status == 0, err.read_text()[-3000:]
        printed = out.read_text().strip().splitlines()
    return printed[-1] if printed else ""
