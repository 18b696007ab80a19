"""A project whose step says when it runs, and its submissions to a Slurm: for tests that kill, and benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster

from nemotron_dagster.jobs.ledger import Ledger, Record, ledger

REPOSITORY = Path(__file__).resolve().parents[2]
MAIN = [sys.executable, "-m", "nemotron_dagster.cli.main"]
JOB_NAME = "tick"

_TOML = """\
[step]
id = "demo/tick"
description = "Writes one row, and notes that it did."
env = "engine"
[[produces]]
type = "raw_jsonl"
bind = "output_dir"
"""

_STEP = '''\
# /// script
# [tool.runspec]
# name = "steps/demo/tick"
# [tool.runspec.run]
# launch = "python"
# [tool.runspec.resources]
# gpus_per_node = 0
# ///
"""Writes one row, and notes that it did."""
import os, sys, time
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]
from _runtime import payload


def note(cfg, what):
    line = f"{what} {cfg['tag']} {os.environ.get('SLURM_JOB_ID', 0)}\\n".encode()
    ticks = os.open(cfg["ticks"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(ticks, line)  # at once: what several jobs append does not mix
    os.close(ticks)


def main(cfg):
    note(cfg, "began")
    time.sleep(cfg["sleep"])
    Path(cfg["output_dir"], "rows.jsonl").write_text(f'{{"text": "{cfg["tag"]}"}}\\n')
    note(cfg, "ended")


payload.run(main, Path(__file__).parent / "config" / "default.yaml")
'''


@dataclass(frozen=True)
class Ticks:
    """A project with the step demo/tick and the profile ``c`` of a cluster."""

    root: Path
    cluster: Cluster

    @property
    def env(self) -> dict[str, str]:
        """What a command needs: a home of its own, and the cluster."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NEMOTRON_", "DAGSTER_", "XDG_", "SLURM_"))}
        home = {"HOME": str(self.root.parent / "home"), "COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)}
        return {**kept, **home, **self.cluster.env, "PATH": f"{self.root.parent}/bin:{self.cluster.env['PATH']}"}

    @property
    def book(self) -> Ledger:
        return ledger(self.root / ".nemotron")

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A command in a session of its own, so that all of it can be killed."""
        with (self.root.parent / "commands.log").open("a") as log:
            return subprocess.Popen(
                [*MAIN, *argv],
                cwd=self.root,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*MAIN, *argv], cwd=self.root, env=self.env, capture_output=True, text=True, check=False, timeout=300
        )

    def program(self, name: str, script: str) -> None:
        """Put a program before Slurm's own of the same name, which is ``$real`` for it."""
        real = next(p for d in self.cluster.env["PATH"].split(":") if (p := Path(d, name)).exists())
        file = self.root.parent / "bin" / name
        file.write_text(f"#!/bin/sh\nreal={real}\n{script}\n")
        file.chmod(0o755)

    def synced(self, seconds: float = 300) -> list[Record]:
        """Sync until no submission is open and none is missing in the history; all of them."""
        deadline = time.monotonic() + seconds
        while True:
            done = self.run("runs", "sync")
            if not self.book.open() and not self.book.owed():
                return self.book.all()
            left = [(r.key, r.phase, r.handles, r.status) for r in self.book.open()]
            assert time.monotonic() < deadline, f"{left}\n{self.book.owed()}\n{done.stdout}\n{done.stderr}"
            time.sleep(1)

    def ran(self, what: str = "began") -> dict[str, Counter[str]]:
        """Tag -> how often which job noted that it began, or ended."""
        found: dict[str, Counter[str]] = {}
        file = self.root.parent / "ticks"
        for line in file.read_text().splitlines() if file.exists() else []:
            word, tag, job = line.split()
            if word == what:
                found.setdefault(tag, Counter())[job] += 1
        return found


def tag_of(record: Record) -> str:
    return str(record.order.settings["tag"])


def new_project(folder: Path, cluster: Cluster, **profile: object) -> Ticks:
    """The project below ``folder``; ``profile`` are more keys of its profile."""
    root = folder / "project"
    step = root / "steps/demo/tick"
    (step / "config").mkdir(parents=True)
    for name in ("bin", "home"):
        (folder / name).mkdir(exist_ok=True)
    (root / "workspace.yaml").write_text((REPOSITORY / "workspace.yaml").read_text())
    (step / "step.toml").write_text(_TOML)
    (step / "step.py").write_text(_STEP)
    (step / "config/default.yaml").write_text(f"tag: none\nsleep: 0.0\nticks: {folder}/ticks\noutput_dir: ./out\n")
    keys = {"executor": "slurm", "tunnel": "local", "partition": "debug", "time": "00:05:00", "job_name": JOB_NAME}
    keys |= {"remote_job_dir": str(folder / "jobs"), "python": sys.executable} | profile
    (root / "env.toml").write_text("[c]\n" + "".join(f"{k} = {_toml(v)}\n" for k, v in keys.items()))
    return Ticks(root, cluster)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
