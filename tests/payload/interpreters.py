"""Which interpreter runs a payload in tests. Never skips: where there is none, it is built."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

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
