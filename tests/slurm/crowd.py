"""Hundreds of jobs that wait, in the queue and in the ledger, and a count of what is asked of Slurm."""

from __future__ import annotations

from processes import wait_until
from ticks import Ticks

from nemotron_dagster.jobs.ledger import Order, Record
from nemotron_dagster.jobs.target import JobHandle, make_target
from nemotron_dagster.project import Project

_ASKS = ("squeue", "sacct")


def hold(ticks: Ticks, count: int) -> list[JobHandle]:
    """Submit so many jobs that are held, and write them down as open submissions."""
    settings = {"executor": "slurm", "tunnel": "local", "partition": "debug", "remote_job_dir": f"{ticks.root}/jobs"}
    target = make_target(Project(ticks.root, ticks.root / ".nemotron"), "c", settings)
    keys = [f"{n:020x}" for n in range(count)]
    script = 'for key in "$@"; do sbatch --parsable --hold --output=/dev/null --job-name="tick.$key" --wrap true; done'
    ids = ticks.cluster.command("sh", "-c", script, "sh", *keys, timeout=300).split()
    handles = [JobHandle("slurm", k, target.job_directory(k), i) for k, i in zip(keys, ids, strict=True)]
    order = Order("demo/tick", "default", "d", "c", ("demo", "tick"), "raw_jsonl", ".", "/none", "/none")
    for handle in handles:
        record = Record(handle.key, "c", "slurm", target.cluster, settings, order, True, phase="submitted")
        ticks.book.put(Record(**{**vars(record), "handles": (handle,)}))
    return handles


def count_questions(ticks: Ticks) -> None:
    """Let every squeue and sacct that is started from now on leave a line."""
    for name in _ASKS:
        ticks.program(name, f'echo {name} >>{ticks.root}/questions\nexec "$real" "$@"')


def questions(ticks: Ticks) -> list[str]:
    file = ticks.root / "questions"
    return file.read_text().split() if file.exists() else []


def cancel_all(ticks: Ticks) -> None:
    ticks.cluster.command("scancel", "--state=PENDING", "--partition=debug")
    wait_until(lambda: not ticks.cluster.command("squeue", "-h"), "all have gone", 60)
