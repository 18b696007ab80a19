"""Payload environments: virtual environments built from exact locks, cached by the lock's digest.

A family has ``<family>.txt`` in ``steps/_runtime/envs/`` (every package pinned, with hashes) and, where it needs
PyTorch, ``<family>.torch.txt``. Both are installed with ``pip --no-deps --require-hashes``, so that pip's resolver,
which cannot satisfy the NeMo stack's metadata on CPU, is never asked. pip's own configuration (index, find-links)
applies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nemotron_dagster.errors import PreflightError, UsageError, did_you_mean
from nemotron_dagster.project import Project

_DONE = ".complete"


@dataclass(frozen=True)
class PayloadEnv:
    family: str
    locks: tuple[Path, ...]
    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def built(self) -> bool:
        return (self.directory / _DONE).is_file()

    @property
    def digest(self) -> str:
        return self.directory.name.rpartition("-")[2]


def families(project: Project) -> dict[str, PayloadEnv]:
    """The families that the project and the bundle lock, by name."""
    found: dict[str, PayloadEnv] = {}
    for folder in project.folders("steps"):
        for lock in sorted((folder / "_runtime" / "envs").glob("*.txt")):
            family = lock.name.split(".")[0]
            if family not in found:
                locks = tuple(
                    p for p in (lock.with_name(f"{family}.torch.txt"), lock.with_name(f"{family}.txt")) if p.is_file()
                )
                found[family] = PayloadEnv(family, locks, _home() / f"{family}-{_digest(locks)}")
    return found


def find(project: Project, family: str) -> PayloadEnv:
    """The environment of a family.

    Raises:
        UsageError: no lock of that name.
    """
    known = families(project)
    if family not in known:
        raise UsageError(f"no payload environment {family!r}.{did_you_mean(family, known)} Known: {', '.join(known)}.")
    return known[family]


def build(env: PayloadEnv, say: Callable[[str], None]) -> Path:
    """Build the environment unless it is there; the path of its interpreter.

    One process builds, others wait. A build that was killed is started afresh. ``say`` gets a line of progress at a
    time.

    Raises:
        PreflightError: pip failed, with its last lines and the log.
    """
    if env.built:
        return env.python
    env.directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(env.directory.with_suffix(".lock")):
        if env.built:
            return env.python
        shutil.rmtree(env.directory, ignore_errors=True)
        packages = sum(_pins(lock) for lock in env.locks)
        say(f"building the {env.family} environment once ({packages} packages, into {env.directory})")
        log = env.directory.with_suffix(".log")
        with open(log, "wb") as out:
            _run([sys.executable, "-m", "venv", str(env.directory)], out, log, env)
            for lock in env.locks:
                say(f"installing {_pins(lock)} packages of {lock.name}")
                pip = [str(env.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
                if lock.name.endswith(".torch.txt"):
                    _install_torch(pip, lock, out, log, env, say)
                else:
                    _run(
                        [*pip, "--no-deps", "--require-hashes", "--ignore-requires-python", "-r", str(lock)],
                        out,
                        log,
                        env,
                    )
        (env.directory / _DONE).write_text(env.digest, encoding="utf-8")
        say(f"the {env.family} environment is ready")
    return env.python


def _install_torch(
    pip: list[str], lock: Path, out: BinaryIO, log: Path, env: PayloadEnv, say: Callable[[str], None]
) -> None:
    """The locked CPU build; where pip's index has none of this release, the index's own build with its libraries."""
    try:
        _run([*pip, "--no-deps", "--require-hashes", "-r", str(lock)], out, log, env)
    except PreflightError:
        say("pip knows no CPU build of this PyTorch: installing the index's own, with its libraries (several GB)")
        _run([*pip, _requirement(lock)], out, log, env)


def _requirement(lock: Path) -> str:
    return next(line.split()[0] for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line)


def _pins(lock: Path) -> int:
    return sum("==" in line and not line.lstrip().startswith("#") for line in lock.read_text("utf-8").splitlines())


def _run(argv: list[str], out: BinaryIO, log: Path, env: PayloadEnv) -> None:
    process = subprocess.run(argv, check=False, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if process.returncode:
        tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-8:])
        raise PreflightError(
            f"building the {env.family} environment failed:\n{tail}\nThe whole log: {log}. Check the network or pip's "
            "configuration and run again; nothing was submitted."
        )


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with open(file, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _home() -> Path:
    named = os.environ.get("NEMOTRON_ENVS")
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else Path(cache or Path.home() / ".cache") / "nemotron" / "envs"


def _digest(locks: tuple[Path, ...]) -> str:
    state = hashlib.sha256(f"{sys.version_info[0]}.{sys.version_info[1]}".encode())
    for lock in locks:
        state.update(lock.read_bytes())
    return state.hexdigest()[:12]
