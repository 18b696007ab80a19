"""``nemotron steps run --plan``: what data preparation would take is told, and no trace of it is left."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interpreters import payload_python
from payload_run import REPOSITORY

Run = Callable[..., subprocess.CompletedProcess[str]]
TOKENIZER = REPOSITORY / "steps/_runtime/tiny_llama"
STEPS: dict[str, tuple[Callable[[int], dict[str, Any]], list[str]]] = {
    "pretrain_prep": (lambda i: {"text": f"{i} is a number"}, [f"tokenizer.model={TOKENIZER}", "num_shards=4"]),
    "sft_packing": (
        lambda i: {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}."}]},
        [f"tokenizer.model={TOKENIZER}", "num_shards=4"],
    ),
    "rl_prep": (lambda i: {"prompt": f"{i}?", "chosen": f"{i}", "rejected": "0"}, []),
}


@pytest.fixture
def planned(nemotron: Run, project: Path, tmp_path: Path) -> Run:
    """The command line in a project of the user's, with the payload environments that the tests have."""
    env = {"NEMOTRON_ENVS": os.path.dirname(os.path.dirname(os.path.dirname(payload_python("data"))))}
    (project / "env.toml").write_text('[here]\nexecutor = "local"\n')

    def run(step: str, *args: str) -> subprocess.CompletedProcess[str]:
        return nemotron("steps", "run", step, "--plan", *args, cwd=project, TMPDIR=str(tmp_path), **env)

    return run


@pytest.mark.parametrize("name", STEPS)
def test_a_plan_tells_rows_and_hours_and_leaves_no_file_and_no_run(
    planned: Run, project: Path, tmp_path: Path, name: str
) -> None:
    row, settings = STEPS[name]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row(i)) + "\n" for i in range(200)))
    before = sorted(tmp_path.rglob("*"))
    command = (f"data_prep/{name}", f"blend_path={rows}", f"output_dir={tmp_path}/out", *settings)
    done = planned(*command, "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["rows"] == pytest.approx(200, rel=0.01) and plan["shards"] == (1 if name == "rl_prep" else 4)
    assert plan["bytes"] == pytest.approx(rows.stat().st_size, rel=0.01) and plan["hours"] > 0
    assert (plan["tokens"] > 0) == (name != "rl_prep")
    told = planned(*command)
    assert told.returncode == 0, told.stderr
    table, summary = told.stdout.split("\n\n")
    assert table.splitlines()[1].split()[0] == "rows" and summary.startswith(f"{plan['rows']} rows, ")
    assert sorted(tmp_path.rglob("*")) == before
    assert not (project / ".nemotron").exists()


def test_a_plan_of_bad_input_says_what_the_run_would_say(planned: Run, tmp_path: Path) -> None:
    done = planned("data_prep/rl_prep", f"blend_path={tmp_path}/none.jsonl")
    assert done.returncode == 1 and f"{tmp_path}/none.jsonl: no such file" in done.stderr
    assert not done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "part"),
    [(("demo/rows",), "makes no plans; these do: data_prep/pretrain_prep"),
     (("data_prep/rl_prep", "-r", "here"), "drop -r and -b")],
)  # fmt: skip
def test_a_plan_that_cannot_be_made_here_is_refused(planned: Run, args: tuple[str, ...], part: str) -> None:
    done = planned(*args)
    assert done.returncode == 2 and part in done.stderr
