"""What our jobs cost beside plain ``sbatch``, on a Slurm of four nodes that this starts and stops, in the same run.

    python benchmarks/jobs.py [--runs 5] [--submissions 40] [--jobs 500] [--no-ssh]

Prints the median seconds of each command and what it takes longer than plain Slurm, submissions per second, one poll of
many jobs, and the time from a job's end to its artifact in the asset's history.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS / "slurm"), str(TESTS)]

import crowd  # noqa: E402  (these lie beside the tests that they are made for)
import processes  # noqa: E402
from cluster import Cluster  # noqa: E402
from sshd import Sshd  # noqa: E402
from submissions import history  # noqa: E402
from ticks import Ticks, new_project  # noqa: E402

from nemotron_dagster.jobs.board import board  # noqa: E402
from nemotron_dagster.jobs.sync import target_of  # noqa: E402
from nemotron_dagster.jobs.target import Submission, make_target  # noqa: E402
from nemotron_dagster.project import Project  # noqa: E402

_SUBMITTERS = 4


def seconds(what: Callable[[], Any]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def row(label: str, value: str, beside: str = "") -> None:
    print(f"{label:<52} {value:>12}  {beside}", flush=True)


def table(title: str, value: str, beside: str) -> None:
    print()
    row(title, value, beside)


def command(ticks: Ticks, *argv: str) -> None:
    done = ticks.run("steps", "run", "demo/tick", *argv)
    if done.returncode:
        sys.exit(f"nemotron steps run {' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def sbatch(ticks: Ticks, *options: str) -> None:
    """The same payload, without us."""
    step, folder = ticks.root / "steps/demo/tick/step.py", ticks.root.parent
    config = folder / "plain.yaml"
    config.write_text(f"tag: plain\nsleep: 0.0\nticks: {folder}/ticks\noutput_dir: {folder}\n")
    script = f'export PYTHONPATH={TESTS.parent}/steps; exec "{sys.executable}" "{step}" --config "{config}"'
    ticks.cluster.submit(script, *options)


def overhead(places: dict[str, Ticks], runs: int) -> None:
    """One job, waited for and not."""
    table(f"one job ({runs} runs, median)", "seconds", "longer than plain")
    plain = next(iter(places.values()))
    medians: dict[str, float] = {}
    for label, options in {"sbatch --wait": ["--wait"], "sbatch": []}.items():
        medians[label] = statistics.median(seconds(partial(sbatch, plain, *options)) for _ in range(runs))
        row(label, f"{medians[label]:.2f}")
    for name, ticks in places.items():
        for option, beside in {"-r": "sbatch --wait", "-b": "sbatch"}.items():
            command(ticks, option, "c", f"tag=warm{option}")  # makes the instance, the connection and the archive
            found = [seconds(partial(command, ticks, option, "c", f"tag={option}{n}")) for n in range(runs)]
            middle = statistics.median(found)
            waits = "attached" if option == "-r" else "detached"
            row(f"steps run {option}: {waits}, {name}", f"{middle:.2f}", f"{middle - medians[beside]:+.2f} {beside}")


def latency(places: dict[str, Ticks]) -> None:
    """From the last line of the batch script to the materialization, of the attached jobs that ran before."""
    table("from the job's end to its materialization", "seconds", "the slowest")
    for name, ticks in places.items():
        found = []
        for event in history(ticks.root, "demo/tick"):
            assert event.asset_materialization is not None
            key = str(event.asset_materialization.metadata["nemotron/job/key"].value)
            record = ticks.book.get(key)
            if record is not None and record.handle is not None and not record.detached:
                found.append(event.timestamp - os.stat(f"{record.handle.directory}/ended").st_mtime)
        row(f"attached, {name} ({len(found)} jobs)", f"{statistics.median(found):.2f}", f"{max(found):.2f}")


def throughput(places: dict[str, Ticks], count: int) -> None:
    """Submissions of several threads at once; all are held, and cancelled in the end."""
    table(f"{count} submissions of {_SUBMITTERS} threads", "per second", "of plain sbatch")
    plain = next(iter(places.values()))
    took = _all(range(count), lambda n: plain.cluster.submit("true", "--hold"))
    row("sbatch", f"{count / took:.1f}")
    for name, ticks in places.items():
        record = ticks.book.all()[0]
        settings = {**record.settings, "additional_parameters": {"hold": True}}
        target = make_target(Project(ticks.root, ticks.root / ".nemotron"), "c", settings)

        def submit(n: int, target: Any = target, label: str = name.replace(" ", "")) -> None:
            key = f"{label}{n}"
            target.submit(Submission(key, "demo/tick", ("true",), cwd=target.job_directory(key)))

        submit(-1)
        ours = _all(range(count), submit)
        row(name, f"{count / ours:.1f}", f"{took / ours:.0%}")
    crowd.cancel_all(plain)


def _all(items: Iterable[int], what: Callable[[int], Any]) -> float:
    with ThreadPoolExecutor(_SUBMITTERS) as pool:
        return seconds(lambda: list(pool.map(what, items)))


def polls(ticks: Ticks, count: int, runs: int) -> None:
    """One question for all jobs, and what it takes to read its answer."""
    handles = crowd.hold(ticks, count)
    record = ticks.book.get(handles[0].key)
    assert record is not None
    target = target_of(Project(ticks.root, ticks.root / ".nemotron"), record)
    answers = board(ticks.root / ".nemotron", ticks.book)
    crowd.count_questions(ticks)
    table(f"{count} jobs", "seconds", "calls of squeue and sacct")
    found = [seconds(lambda: target.statuses(handles)) for _ in range(runs)]
    row("one poll", f"{statistics.median(found):.3f}", f"{len(crowd.questions(ticks)) / runs:g}")
    answers.status(target, handles[0])
    before = len(crowd.questions(ticks))
    took = seconds(lambda: [answers.last(target.cluster, handles[n : n + 1]) for n in range(count)])
    row("the answer, read by a watcher of each job", f"{took:.3f}", f"{len(crowd.questions(ticks)) - before}")
    squeue = [seconds(lambda: ticks.cluster.command("squeue", "-h", "-t", "all")) for _ in range(runs)]
    row("plain squeue", f"{statistics.median(squeue):.3f}", "1")
    crowd.cancel_all(ticks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--submissions", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=500, help="how many one poll asks for")
    parser.add_argument("--ssh", action=argparse.BooleanOptionalAction, default=True, help="over SSH, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nemo", dir="/tmp") as name:  # short, as sockets want it
        folder = Path(name)
        cluster = Cluster(folder / "s")
        login = Sshd(folder / "sshd", cluster.env)
        os.environ.update(cluster.env, XDG_RUNTIME_DIR=name)
        try:
            cluster.start()
            places = {"on the login node": new_project(_made(folder / "here"), cluster)}
            if args.ssh:
                login.start()
                keys = {"identity": str(login.identity), "known_hosts": str(login.known_hosts), "port": login.port}
                there = {"tunnel": "ssh", "host": login.host, "user": login.user, **keys}
                places["over SSH"] = new_project(_made(folder / "there"), cluster, **there)
            overhead(places, args.runs)
            latency(places)
            throughput(places, args.submissions)
            many = new_project(_made(folder / "many"), cluster)
            os.environ["PATH"] = many.env["PATH"]
            polls(many, args.jobs, args.runs)
        finally:
            login.stop()
            cluster.stop()
            processes.end(processes.that_name(name))  # the shared connection


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
