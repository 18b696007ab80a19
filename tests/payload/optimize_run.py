"""Runs a step of optimize/modelopt as it is started for real, and code in its environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import forks
import refusals as refused
from interpreters import STEPS, payload_python
from omegaconf import OmegaConf
from refusals import Refusal

BAD_INPUT = 3
OUTPUT = {"prune": "args.output_hf_path", "quantize": "args.megatron_save_path", "distill": "args.output_dir"}

TRAIN = """
import sys, torch
from pathlib import Path
from _runtime import tiny_model
from _runtime.optimize import models

torch.set_num_threads(1)
folder, rows = Path(sys.argv[1]), sys.argv[2]
loaded = models.load("tiny_llama", "model", folder, 7)
batches = models.blocks(models.rows(rows, "rows", 480), loaded, 96)
data, model = torch.cat(batches), loaded.model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
order = torch.Generator().manual_seed(0)
for _ in range(100):
    batch = data[torch.randint(len(data), (12,), generator=order)]
    loss = model(input_ids=batch, labels=batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.save_pretrained(folder)
"""


def python(code: str, *arguments: object) -> str:
    """Run code in the train environment, with steps/ importable; returns the last line it printed."""
    return forks.python("megatron", code, *arguments)


def refusals(step: str, folder: Path, cases: list[dict[str, Any]], cold: bool = False) -> list[Refusal]:
    """What a step says to each set of overrides; ``cold``: no library is imported when it starts."""
    files = [Run(step, folder / str(n), overrides).folder / "config.yaml" for n, overrides in enumerate(cases)]
    return refused.refusals(STEPS / "optimize" / "modelopt" / step, files, None if cold else "megatron")


class Run:
    """One start of a step's tiny config in ``folder``; the output is ``folder/out``."""

    def __init__(self, step: str, folder: Path, overrides: dict[str, Any] | None = None) -> None:
        self.step = STEPS / "optimize" / "modelopt" / step
        self.folder, self.out, self.said = folder, folder / "out", folder / "messages.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        config = OmegaConf.load(self.step / "config" / "tiny.yaml")
        for key, value in {OUTPUT[step]: str(self.out), **(overrides or {})}.items():
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        OmegaConf.save(config, folder / "config.yaml")

    def start(self, cold: bool = False) -> forks.Process:
        """Start it: as a fork, or ``cold``, with imports of its own as for a user."""
        self.said.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NEMOTRON_MESSAGES": str(self.said),
            "NEMOTRON_STEP_DIR": str(self.step),
            "HF_HOME": str(self.folder / "hf_home"),
            "HF_HUB_OFFLINE": "1",
        }
        script, arguments = self.step / "step.py", ("--config", str(self.folder / "config.yaml"))
        if not cold:
            return forks.start(
                "megatron", script, *arguments, env=environment, cwd=self.folder, log=self.folder / "log"
            )
        command = [payload_python("train"), str(script), *arguments]
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment, cwd=self.folder)

    def finish(self, cold: bool = False) -> Run:
        status = self.start(cold).wait(timeout=600)
        assert status == 0, self.log()[-4000:]
        return self

    def refused(self, cold: bool = False) -> dict[str, Any]:
        """The error that a run ends with; what it said to a person is no traceback."""
        status = self.start(cold).wait(timeout=300)
        assert status == BAD_INPUT and 'step.py", line' not in self.log(), self.log()[-4000:]
        [error] = self.messages("error")
        assert error["message"] and error["recovery"]
        return error

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def messages(self, kind: str) -> list[dict[str, Any]]:
        lines = self.said.read_text().splitlines() if self.said.is_file() else []
        return [m for m in map(json.loads, lines) if m["type"] == kind]

    def facts(self) -> dict[str, Any]:
        [message] = self.messages("result")
        found: dict[str, Any] = message["facts"]
        return found
