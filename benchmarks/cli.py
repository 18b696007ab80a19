"""Start-up of the command line, and our own cost per materialized step, beside references measured in the same run.

    python benchmarks/cli.py [--runs 5] [--steps 10000] [--reference COMMAND]

Prints the median CPU seconds (user and system, children included) of each command, its budget, and the ratio to what
it is compared with.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CLI = ["-m", "nemotron_dagster.cli.main"]
TAB = [
    "_NEMOTRON_COMPLETE=bash_complete",
    "COMP_WORDS=nemotron steps run sft/automodel -c tiny opt",
    "COMP_CWORD=6",
]

#: One trivial asset on a SQLite instance: what Dagster itself takes for a materialized step.
PLAIN = """
import dagster as dg
@dg.asset
def nothing(): ...
with dg.DagsterInstance.get() as instance:
    assert dg.materialize([nothing], instance=instance).success
"""

STEP_TOML = """
[step]
id = "bench/nothing"
description = "Writes one row."
[[produces]]
type = "raw_jsonl"
bind = "output_dir"
"""

STEP_PY = '''
# /// script
# [tool.runspec]
# name = "steps/bench/nothing"
# [tool.runspec.run]
# launch = "python"
# [tool.runspec.resources]
# gpus_per_node = 0
# ///
"""Writes one row, with nothing imported that costs."""
import re, sys
from pathlib import Path
config = Path(sys.argv[2]).read_text()
Path(re.search("output_dir: (.+)", config)[1], "rows.jsonl").write_text('{"text": "x"}\\n')
'''


LARGE_TOML = """
[step]
id = "{id}"
name = "Step {n}"
category = "{category}"
description = "Generated step number {n}."
tags = ["generated", "t{tag}"]

[[consumes]]
type = "training_jsonl"
description = "Chat rows."
bind = "data"

[[produces]]
type = "checkpoint_hf"
description = "A model."
bind = "output_dir"

[[parameters]]
name = "seed"
description = "Seed of everything."
default = 1
"""


def cpu_seconds(argv: list[str], folder: Path) -> float:
    """User and system seconds of one process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "NEMOTRON_HOME": str(folder / "state"), "DAGSTER_HOME": str(folder / "dagster")}
    subprocess.run(argv, cwd=folder, env=env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def small_project(folder: Path) -> None:
    """One step that does nothing."""
    (folder / "dagster").mkdir(parents=True)
    (folder / "workspace.yaml").write_text("load_from: []\n")
    step = folder / "steps" / "bench" / "nothing"
    (step / "config").mkdir(parents=True)
    (step / "step.toml").write_text(STEP_TOML)
    (step / "step.py").write_text(STEP_PY)
    (step / "config" / "default.yaml").write_text("output_dir: ./out\n")


def large_project(folder: Path, steps: int) -> None:
    """``steps`` generated steps in 50 categories."""
    (folder / "dagster").mkdir(parents=True)
    (folder / "workspace.yaml").write_text("load_from: []\n")
    for n in range(steps):
        step_id = f"c{n % 50}/step_{n}"
        step = folder / "steps" / step_id
        (step / "config").mkdir(parents=True)
        toml = LARGE_TOML.format(id=step_id, n=n, category=f"c{n % 50}", tag=n % 7)
        (step / "step.toml").write_text(toml)
        (step / "step.py").write_text(STEP_PY)
        (step / "config" / "default.yaml").write_text("# Generated.\nseed: 1\noutput_dir: ./out\ndata: null\n")


def measure(rows: list[Row], folder: Path, runs: int, medians: dict[str, float]) -> None:
    """Print a line per row."""
    for row in rows:
        cpu_seconds(row.argv, folder)  # warms the file cache, and makes the instance
        medians[row.label] = statistics.median(cpu_seconds(row.argv, folder) for _ in range(runs))
        budget = f"{row.budget:.2f}" if row.budget else ""
        ratio = f"{medians[row.label] / medians[row.of]:.2f} x {row.of}" if row.of else ""
        print(f"{row.label:<48} {medians[row.label]:>7.3f} {budget:>7}  {ratio}")


@dataclass(frozen=True)
class Row:
    """One command, its budget in CPU seconds, and the label of what it is compared with."""

    label: str
    argv: list[str]
    budget: float | None = None
    of: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10_000, help="size of the large catalog; 0 leaves it out")
    parser.add_argument(
        "--reference", metavar="COMMAND", help='another `nemotron`: "/path/to/nemotron", "env A=B python -m nemotron"'
    )
    args = parser.parse_args()
    python, reference = sys.executable, shlex.split(args.reference or "")
    dagster, plain = "import dagster", "materialize one plain Dagster asset"
    cases = {
        "steps list --json": (["steps", "list", "--json"], 0.15),
        "steps show sft/automodel --json": (["steps", "show", "sft/automodel", "--json"], 0.15),
        "steps run sft/automodel -c tiny -d": (["steps", "run", "sft/automodel", "-c", "tiny", "-d"], 0.6),
    }
    rows = [Row("python -c pass", [python, "-c", "pass"]), Row(dagster, [python, "-c", dagster])]
    for label, (words, budget) in cases.items():
        if reference:
            rows.append(Row(f"reference: {label}", [*reference, *words]))
        compared = f"reference: {label}" if reference else dagster
        rows.append(Row(label, [python, *CLI, *words], budget, compared))
    rows += [
        Row("steps list", [python, *CLI, "steps", "list"], 0.15, dagster),
        Row("steps show sft/automodel", [python, *CLI, "steps", "show", "sft/automodel"], 0.15, dagster),
        Row("TAB after an override", ["env", *TAB, python, *CLI], 0.25, dagster),
        Row(plain, [python, "-c", PLAIN]),
        Row("steps run bench/nothing", [python, *CLI, "steps", "run", "bench/nothing"], None, plain),
    ]
    medians: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        small_project(Path(name) / "small")
        print(f"{'command':<48} {'CPU s':>7} {'budget':>7}  ratio ({args.runs} runs, median)")
        measure(rows, Path(name) / "small", args.runs, medians)
        if args.steps:
            large_project(Path(name) / "large", args.steps)
            large = [
                Row(f"{args.steps:,} steps: list --json", [python, *CLI, "steps", "list", "--json"], 2.0),
                Row(f"{args.steps:,} steps: list", [python, *CLI, "steps", "list"], 2.0),
                Row(f"{args.steps:,} steps: show one", [python, *CLI, "steps", "show", "step_1"], 2.0),
            ]
            measure(large, Path(name) / "large", args.runs, medians)


if __name__ == "__main__":
    main()
