"""What is made of a job's end while Slurm's accounts say half of it: answers of squeue and sacct as they were seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from nemotron_dagster.jobs.slurm_states import statuses
from nemotron_dagster.jobs.target import JobHandle, State
from nemotron_dagster.jobs.transport import Done, LocalTransport

KEY = "cd5fde3db34c4ff22ced"
HANDLE = JobHandle("slurm", KEY, "/jobs/10", "10")


@dataclass(frozen=True)
class Seen(LocalTransport):
    """Answers what a login node once said."""

    said: str = ""

    def run(self, script: str, stdin: bytes = b"", timeout: float = 60, check: bool = True) -> Done:
        return Done(0, self.said.encode(), b"")


def _account(state: str, code: str, end: str) -> str:
    return f"A|10|t.{KEY}|{state}|{code}||1000|1001|{end}|cpu=1|00:00.1|3|1M|n1|None"


def _queue(state: str, code: str) -> str:
    return f"Q|10|t.{KEY}|{state}|{code}|0|1000|1001|1003|cpu=1|n1|None"


@pytest.mark.parametrize(
    ("line", "mark", "state", "code"),
    [
        (_account("FAILED", "0:0", "Unknown"), "139 0 1002", State.FAILED, -11),
        (_account("FAILED", "0:0", "Unknown"), "7 0 1002", State.FAILED, 7),
        (_account("FAILED", "0:11", "1002"), "139 0 1002", State.FAILED, -11),
        (_account("TIMEOUT", "0:0", "1002"), "143 0 1002", State.TIMEOUT, None),
        (_queue("FAILED", "0"), "139 0 1002", State.FAILED, -11),
        (_queue("FAILED", str(7 << 8)), "7 0 1002", State.FAILED, 7),
    ],
    ids=["no-code-signal", "no-code", "signal", "timeout", "queue-no-code", "queue"],
)
def test_an_exit_code_that_slurm_does_not_tell_yet_is_the_one_that_the_job_left(
    line: str, mark: str, state: State, code: int | None, tmp_path: Path
) -> None:
    said = f"N|1010\n{line}\nM|{KEY}|10|{mark}|5||\n"
    status = statuses(Seen(said=said), [HANDLE], 60)[KEY]
    assert (status.state, status.exit_code) == (state, code)
    assert status.ended in (1002, 1003)
