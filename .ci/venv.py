"""Make ``.venv``: ``python .ci/venv.py [--dev]``. Standard library only.

Everything comes from a lock with hashes; the project itself is installed editable, by the build backend of the same
lock. What is there already is kept. uv installs where it is on PATH, else pip. uv does not read pip's
configuration, so where that names package sources of its own, pip installs. INSTALLER=pip or =uv decides it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCKS = {"runtime": ROOT / "requirements.lock", "dev": ROOT / "requirements-dev.lock"}
#: pip's settings that say where packages come from or how the host is reached.
SOURCES = {"index-url", "extra-index-url", "find-links", "no-index", "proxy", "cert", "client-cert", "trusted-host"}


def stop(text: str) -> NoReturn:
    sys.exit(f"Error: {text}")


def run(*argv: str | Path) -> None:
    if subprocess.run([str(a) for a in argv], cwd=ROOT, check=False, stdin=subprocess.DEVNULL).returncode:
        stop("the installation failed; see the lines above. Mend the cause and run make again: it continues here.")


def own_sources() -> list[str]:
    """The keys of ``SOURCES`` that pip's configuration files and variables set."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=False, capture_output=True, text=True
    ).stdout
    keys = {line.partition("=")[0].rpartition(".")[2] for line in listed.splitlines()}
    return sorted(keys & SOURCES)


def installer() -> list[str]:
    """The command that installs, to which ``install`` arguments are appended."""
    chosen = os.environ.get("INSTALLER", "")
    if chosen not in ("", "pip", "uv"):
        stop(f"INSTALLER={chosen}: write pip or uv.")
    uv = shutil.which("uv")
    if chosen == "uv" and uv is None:
        stop("INSTALLER=uv, but uv is not on PATH. Install it, or leave INSTALLER out.")
    pip = [str(PYTHON), "-m", "pip", "install", "-qq", "--no-compile", "--disable-pip-version-check", "--no-input"]
    if chosen == "pip" or uv is None:
        return pip
    if chosen != "uv" and (keys := own_sources()):
        print(f"pip installs: its configuration sets {', '.join(keys)}, which uv does not read", flush=True)
        return pip
    return [uv, "pip", "install", "--quiet", "--python", str(PYTHON)]


def works() -> bool:
    """Whether ``.venv`` has an interpreter that runs, with pip (the payload environments and a test use it)."""
    return (
        PYTHON.is_file()
        and not subprocess.run(
            [PYTHON, "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"], check=False, capture_output=True
        ).returncode
    )


def digest(*files: Path) -> str:
    state = hashlib.sha256(str(ROOT).encode())  # scripts in .venv name their interpreter by its path
    for file in files:
        state.update(file.read_bytes())
    return state.hexdigest()


def main(kind: str) -> None:
    began = time.monotonic()
    if not works():
        print(f"making {VENV.name} with Python {sys.version.split()[0]}", flush=True)
        try:
            import ensurepip  # noqa: F401
        except ImportError:
            stop(f"{sys.executable} cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv.")
        run(sys.executable, "-m", "venv", "--clear", VENV)
    # The dev lock holds all of the runtime lock, so either stamp will do for the runtime.
    stamps = {name: VENV / f".{name}.stamp" for name in LOCKS}
    wanted = {name: digest(lock) for name, lock in LOCKS.items()}
    fits = [n for n in LOCKS if stamps[n].is_file() and stamps[n].read_text() == wanted[n]]
    command: list[str] = []
    if not (kind in fits or "dev" in fits):
        command = installer()
        lock = LOCKS[kind]
        pins = sum("==" in line for line in lock.read_text(encoding="utf-8").splitlines())
        tool = "pip" if command[0] == str(PYTHON) else "uv"
        print(f"installing the {pins} packages of {lock.name} with {tool}", flush=True)
        for stamp in stamps.values():
            stamp.unlink(missing_ok=True)
        run(*command, "--no-deps", "--require-hashes", "-r", lock)  # the lock is whole: there is nothing to resolve
        stamps[kind].write_text(wanted[kind])
    project = VENV / ".project.stamp"
    if command or not project.is_file() or project.read_text() != digest(ROOT / "pyproject.toml"):
        run(*(command or installer()), "--no-deps", "--no-build-isolation", "-e", ROOT)
        project.write_text(digest(ROOT / "pyproject.toml"))
        print(f"{VENV.name} is ready ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main("dev" if "--dev" in sys.argv[1:] else "runtime")
