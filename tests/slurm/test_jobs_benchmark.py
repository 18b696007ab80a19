"""The benchmark of jobs runs to its end, over SSH too, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys

from helpers import REPO


def test_the_benchmark_prints_every_figure() -> None:
    argv = [sys.executable, str(REPO / "benchmarks/jobs.py"), "--runs", "1", "--submissions", "4", "--jobs", "20"]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for wanted in ("sbatch --wait", "attached, over SSH", "detached, on the login node", "one poll", "per second"):
        assert any(wanted in line for line in lines), (wanted, done.stdout)
    [poll] = [line for line in lines if line.startswith("one poll")]
    assert poll.split()[-1] == "1", poll
