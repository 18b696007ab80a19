"""Which Python runs a payload in tests."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = ROOT / "steps"


@functools.cache
def payload_python(family: str) -> str:
    """The interpreter of a payload environment: ``NEMOTRON_TEST_PYTHON_<FAMILY>``, or the one ``env build`` made."""
    named = os.environ.get(f"NEMOTRON_TEST_PYTHON_{family.upper()}")
    if named:
        return named
    if not shutil.which("nemotron"):
        pytest.skip(f"no Python for the {family} environment: set NEMOTRON_TEST_PYTHON_{family.upper()}")
    built = subprocess.run(
        ["nemotron", "env", "build", family, "--print-python"],
        check=False,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if built.returncode != 0:
        pytest.fail(f"nemotron env build {family} failed:\n{built.stdout}\n{built.stderr}")
    return built.stdout.strip().splitlines()[-1]
