"""Start-up of the command line, and our own cost per materialized step, beside references measured in the same run.

    python benchmarks/cli.py [--runs 5]

Prints the median CPU seconds (user and system, children included) of each command, and the ratio to its reference.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CLI = ["-m", "nemotron_dagster.cli.main"]
DRY_RUN = ["steps", "run", "sft/automodel", "-c", "tiny", "-d"]

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


def cpu_seconds(argv: list[str], folder: Path) -> float:
    """User and system seconds of one process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "NEMOTRON_HOME": str(folder / "state"), "DAGSTER_HOME": str(folder / "dagster")}
    subprocess.run([sys.executable, *argv], cwd=folder, env=env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dagster").mkdir()
        (folder / "workspace.yaml").write_text("load_from: []\n")
        step = folder / "steps" / "bench" / "nothing"
        (step / "config").mkdir(parents=True)
        (step / "step.toml").write_text(STEP_TOML)
        (step / "step.py").write_text(STEP_PY)
        (step / "config" / "default.yaml").write_text("output_dir: ./out\n")
        rows: list[tuple[str, list[str], str | None]] = [
            ("python -c pass", ["-c", "pass"], None),
            ("import dagster", ["-c", "import dagster"], None),
            ("steps list --json", [*CLI, "steps", "list", "--json"], "import dagster"),
            ("steps show sft/automodel --json", [*CLI, "steps", "show", "sft/automodel", "--json"], "import dagster"),
            (
                "steps run sft/automodel -c tiny -d",
                [*CLI, "steps", "run", "sft/automodel", "-c", "tiny", "-d"],
                "import dagster",
            ),
            ("materialize one plain Dagster asset", ["-c", PLAIN], None),
            ("steps run bench/nothing", [*CLI, "steps", "run", "bench/nothing"], "materialize one plain Dagster asset"),
        ]
        medians: dict[str, float] = {}
        print(f"{'command':<40} {'CPU s':>7}  ratio to reference ({runs} runs, median)")
        for label, argv, reference in rows:
            cpu_seconds(argv, folder)  # warms the file cache, and makes the instance
            medians[label] = statistics.median(cpu_seconds(argv, folder) for _ in range(runs))
            ratio = f"  {medians[label] / medians[reference]:.2f} x {reference}" if reference else ""
            print(f"{label:<40} {medians[label]:>7.3f}{ratio}")


if __name__ == "__main__":
    main()
