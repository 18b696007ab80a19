"""``nemotron ui``: the Dagster UI of this project."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click

from nemotron_dagster.errors import JobFailed, UsageError
from nemotron_dagster.project import Project, find_project

_HOST = "127.0.0.1"
_LOG = "ui.log"  # in DAGSTER_HOME
_START_LIMIT = 120.0  # seconds until the webserver must answer
_GRACE = 15.0  # seconds that Dagster's processes have to stop before they are killed


@click.command("ui", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-p", "--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port on 127.0.0.1.")
@click.pass_context
def cli(ctx: click.Context, port: int) -> None:
    """Start Dagster's webserver and daemon on loopback for this project; Ctrl-C stops them.

    Jobs that a run has started outlive them.
    """
    from nemotron_dagster.dagster.definitions import dagster_home, open_instance

    _refuse_taken(port)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupt)
    project = find_project()
    home = dagster_home(project)
    with open_instance(project):
        pass  # its tables are there before Dagster's three processes and a run of the command line look for them
    dagster = _start(project, home, port, verbose=bool((ctx.obj or {}).get("verbose")))
    try:
        _wait_until_it_answers(dagster, port, home)
        click.echo(f"Dagster UI: http://{_HOST}:{port}  (Ctrl-C stops it)")
        sys.stdout.flush()
        dagster.wait()
    except KeyboardInterrupt:
        return
    finally:
        _stop(dagster)
    raise JobFailed(f"Dagster ended by itself (exit code {dagster.returncode}). Its log: {home / _LOG}.")


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the webserver does: TIME_WAIT is no owner
        try:
            probe.bind((_HOST, port))
        except OSError as e:
            raise UsageError(
                f"port {port} on {_HOST} cannot be used ({e.strerror}). Choose another: nemotron ui -p {port + 1}"
            ) from e


def _start(project: Project, home: Path, port: int, verbose: bool) -> subprocess.Popen[bytes]:
    """``dagster dev`` in a session of its own, so that stopping it reaches whatever it started.

    What it and its runs print goes to a file: every event of every run would scroll by otherwise.
    """
    environment = os.environ | {"DAGSTER_HOME": str(home)}
    if project.root:
        environment["NEMOTRON_PROJECT"] = str(project.root)
    level = "info" if verbose else "warning"
    with open(home / _LOG, "wb") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "dagster", "dev", "-m", "nemotron_dagster.definitions"),
                *("-h", _HOST, "-p", str(port), "--log-level", level, "--code-server-log-level", level),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=None if verbose else log,
            stderr=None if verbose else log,
            start_new_session=True,
        )


def _wait_until_it_answers(dagster: subprocess.Popen[bytes], port: int, home: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while dagster.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
            return
        time.sleep(0.2)
    raise JobFailed(f"Dagster did not start. Its log: {home / _LOG}. `nemotron -v ui` prints it.")


def _stop(dagster: subprocess.Popen[bytes]) -> None:
    """Ask all its processes to stop, then kill what is left."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with suppress(ProcessLookupError):
        dagster.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        dagster.wait(_GRACE)
    with suppress(ProcessLookupError):
        os.killpg(dagster.pid, signal.SIGKILL)
    dagster.wait()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
