"""A step started with one bad config after the other in one process: the imports cost more than a refusal."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import forks
from interpreters import STEPS, payload_python

BAD_INPUT = 3

#: argv: a step.py, then compiled configs. Runs it with each and prints what it said, and which libraries it needed.
TRIED = """
import contextlib, io, json, os, runpy, sys, traceback
from pathlib import Path

def tried(script, config):
    messages = Path(config + ".messages")
    os.environ["NEMOTRON_MESSAGES"], sys.argv = str(messages), [script, "--config", config]
    status, stderr = 0, io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stderr):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as e:
            status = e.code
        except BaseException:
            status = 1
            traceback.print_exc()
    said = [json.loads(line) for line in messages.read_text().splitlines()] if messages.exists() else []
    heavy = {"torch", "transformers", "megatron", "modelopt", "nemo_automodel", "trl"} & set(sys.modules)
    return [status, [m for m in said if m["type"] == "error"], stderr.getvalue(), sorted(heavy)]

(script, *configs), environment, found = sys.argv[1:], dict(os.environ), []
for config in configs:
    found.append(tried(script, config))
    os.environ.clear()
    os.environ.update(environment)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Refusal:
    """What a person is told; ``imported``: the libraries that were, by then."""

    name: str
    message: str
    recovery: str
    imported: tuple[str, ...]


def refusals(step: Path, configs: Sequence[Path], library: str | None = None) -> list[Refusal]:
    """What a step says to each config, all of which it must refuse without a traceback, with status 3.

    ``library``: what is imported before, as in forks.py; without it nothing is.
    """
    arguments = (step / "step.py", *configs)
    if library is None:
        done = subprocess.run(
            [payload_python("train"), "-c", TRIED, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
            cwd=configs[0].parent,
            env={**os.environ, "NEMOTRON_STEP_DIR": str(step), "PYTHONPATH": str(STEPS), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        printed = done.stdout.strip().splitlines()[-1]
    else:
        printed = forks.python(library, TRIED, *arguments, NEMOTRON_STEP_DIR=str(step))
    said = []
    for status, errors, stderr, imported in json.loads(printed):
        assert status == BAD_INPUT and len(errors) == 1 and "Traceback" not in stderr, (status, errors, stderr[-3000:])
        assert errors[0]["message"] and errors[0]["recovery"], errors
        said.append(Refusal(*(errors[0][k] for k in ("name", "message", "recovery")), tuple(imported)))
    return said
