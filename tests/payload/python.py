"""The interpreter of a payload environment, for tests that run payloads for real."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest


@functools.lru_cache
def payload_python(family: str) -> Path:
    """The family's interpreter: ``NEMOTRON_TEST_PYTHON_<FAMILY>``, else what ``nemotron env build`` makes.

    Skips the calling test where neither exists.
    """
    named = os.environ.get(f"NEMOTRON_TEST_PYTHON_{family.upper()}")
    if named:
        if not Path(named).is_file():
            pytest.fail(f"NEMOTRON_TEST_PYTHON_{family.upper()}={named}: no such file")
        return Path(named)
    command = ["nemotron", "env", "build", family, "--print-python"]
    try:
        built = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    except FileNotFoundError:
        pytest.skip(f"no {family} environment: set NEMOTRON_TEST_PYTHON_{family.upper()} or install nemotron")
    except subprocess.CalledProcessError as e:
        pytest.fail(f"{' '.join(command)}: exit {e.returncode}: {e.stderr[-2000:]}")
    return Path(built.stdout.strip().splitlines()[-1])
