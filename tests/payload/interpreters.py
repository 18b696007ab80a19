"""Which interpreter runs a payload in tests. Never skips: where there is none, it is built."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from nemotron_dagster.jobs import payload_env
from nemotron_dagster.project import find_project

ROOT = Path(__file__).resolve().parents[2]
STEPS = ROOT / "steps"


@functools.cache
def payload_python(family: str) -> str:
    """The family's interpreter: ``NEMOTRON_TEST_PYTHON_<FAMILY>``, else what ``nemotron env build`` makes."""
    given = os.environ.get(f"NEMOTRON_TEST_PYTHON_{family.upper()}")
    if given:
        return given
    command = [sys.executable, "-m", "nemotron_dagster.cli.main", "env", "build", family, "--print-python"]
    built = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=1800, cwd=ROOT)
    return built.stdout.strip().splitlines()[-1]


@functools.cache
def extra_packages() -> Path:
    """What tests compare with and no payload needs (extra.txt): a folder for PYTHONPATH of the train environment.

    It lies beside the payload environments and is installed once, like them.
    """
    python, lock = payload_python("train"), Path(__file__).with_name("extra.txt")
    version = "import sys; print(sys.implementation.cache_tag)"
    tag = subprocess.run([python, "-c", version], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    environments = payload_env.find(find_project(ROOT), "train").directory.parent
    folder = environments / f"extra-{tag}-{digest}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".extra-") as made:
            command = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input"]
            # The environment has what the package says it needs and this use of it does need.
            command += ["--no-deps", "--require-hashes", "--target", f"{made}/new", "-r", str(lock)]
            subprocess.run(command, check=True, timeout=600, cwd=made)
            with contextlib.suppress(FileExistsError, OSError):  # another process was first
                os.rename(f"{made}/new", folder)
    assert folder.is_dir()
    return folder
