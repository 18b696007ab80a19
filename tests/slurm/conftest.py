"""One Slurm for all workers of a test run, and a login node of each test's own.

Who uses the cluster holds a shared lock on a file. The kernel gives it back when the holder ends, however it ends, and
``keeper.py`` then gets the file for itself and stops the cluster.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import places
import processes
import pytest
from cluster import Cluster
from places import Place
from sshd import Sshd

_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def slurm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of four nodes, shared by all tests and workers: expect jobs of others in it, and leave it as it was."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if hasattr(request.config, "workerinput") else base
    root, ready = base / "slurm", base / "slurm.ready"
    with (base / "slurm.users").open("w") as users, (base / "slurm.start").open("w") as start:
        fcntl.flock(start, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while the keeper stops an earlier one
        cluster = Cluster(root)
        if not ready.exists():
            _keep(root, ready, Path(users.name))
            cluster.start()
            ready.touch()
        fcntl.flock(start, fcntl.LOCK_UN)
        yield cluster


def _keep(root: Path, ready: Path, users: Path) -> None:
    """Start the keeper before the cluster, so that it also ends one whose start was killed."""
    argv = [sys.executable, str(_HERE / "keeper.py"), str(root), str(ready), str(users)]
    subprocess.run(["setsid", "--fork", *argv], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A server for one test; its sessions know nothing of Slurm."""
    server = Sshd(tmp_path / "sshd")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def login(slurm: Cluster, tmp_path: Path) -> Iterator[Sshd]:
    """The login node of the cluster: a server whose sessions have Slurm's commands."""
    server = Sshd(tmp_path / "sshd", slurm.env)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def on_cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, with this process and those that it starts talking to it, as on a login node."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    return slurm


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for control sockets of the test alone, short enough for them; connections that are left are ended."""
    with tempfile.TemporaryDirectory(prefix="nemo", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)
        processes.end(processes.that_name(folder))


@pytest.fixture(params=["local", "ssh"])
def place(request: pytest.FixtureRequest, slurm: Cluster, sockets: Path, tmp_path: Path) -> Place:
    """The shared cluster, from its login node and over SSH."""
    if request.param == "local":
        return places.here(slurm, tmp_path, request.getfixturevalue("monkeypatch"))
    return places.over_ssh(slurm, tmp_path, request.getfixturevalue("login"))


@pytest.fixture
def local_place(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return places.here(slurm, tmp_path, monkeypatch)
