"""Many ``nemotron`` commands at once, each a process of its own.

They are forked from one that has imported what all of them need: thirty imports of NeMo-Run would take a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

_FORK = """
import json, os, sys
from nemotron_dagster.cli.main import main
import nemo_run.core.execution.slurm, nemo_run.run.ray.slurm
children = {}
for name, argv in json.load(sys.stdin).items():
    child = os.fork()
    if not child:
        for stream, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{sys.argv[1]}/{name}.{stream}", os.O_WRONLY | os.O_CREAT, 0o600), number)
        main(argv)
    children[child] = name
codes = {}
while children:
    child, status = os.wait()
    codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
json.dump(codes, sys.stdout)
"""


class Commands:
    """They begin at once when this is made."""

    def __init__(
        self, commands: Mapping[str, Sequence[str]], folder: Path, cwd: Path, environ: Mapping[str, str]
    ) -> None:
        self._folder = folder
        folder.mkdir()
        argv = [sys.executable, "-W", "ignore", "-c", _FORK, str(folder)]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd, env={**os.environ, **environ}
        )
        assert self._process.stdin
        self._process.stdin.write(json.dumps({k: list(v) for k, v in commands.items()}))
        self._process.stdin.close()

    def ended(self) -> dict[str, CompletedProcess[str]]:
        """How each of them ended, when all have."""
        assert self._process.stdout
        with self._process:
            codes = json.load(self._process.stdout)
        return {name: self._one(name, code) for name, code in codes.items()}

    def _one(self, name: str, code: int) -> CompletedProcess[str]:
        out, err = ((self._folder / f"{name}.{s}").read_text() for s in ("out", "err"))
        return CompletedProcess(name, code, out, err)
