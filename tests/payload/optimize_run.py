"""Runs a step of optimize/modelopt as it is started for real, and code in its environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from interpreters import STEPS, payload_python
from omegaconf import OmegaConf

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
    done = subprocess.run(
        [payload_python("train"), "-c", code, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": str(STEPS), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


REFUSALS = """
import sys, json, importlib
from _runtime.payload import PayloadError
step = importlib.import_module("_runtime.optimize." + sys.argv[1])
said = []
for cfg in json.loads(sys.argv[2]):
    try:
        step.check(cfg)
        step.run(cfg)
        said.append(["", "done"])
    except PayloadError as e:
        said.append([e.name, e.message])
print(json.dumps(said))
"""


def refusals(step: str, folder: Path, cases: list[dict[str, Any]]) -> list[list[str]]:
    """Name and message of the error of each case, all in one process: for what only shows once a model is loaded."""
    home = STEPS / "optimize" / "modelopt" / step
    configs = []
    for n, case in enumerate(cases):
        text = (home / "config" / "tiny.yaml").read_text("utf-8").replace("${oc.env:NEMOTRON_STEP_DIR}", str(home))
        config = OmegaConf.create(text)
        for key, value in {OUTPUT[step]: str(folder / f"out{n}"), **case}.items():
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        args = OmegaConf.to_container(config.args, resolve=True)
        configs.append({"backend": "inprocess", "seed": 1, "args": args})
    found: list[list[str]] = json.loads(python(REFUSALS, step, json.dumps(configs)))
    return found


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

    def start(self) -> subprocess.Popen[str]:
        self.said.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NEMOTRON_MESSAGES": str(self.said),
            "NEMOTRON_STEP_DIR": str(self.step),
            "HF_HOME": str(self.folder / "hf_home"),
            "HF_HUB_OFFLINE": "1",
        }
        command = [payload_python("train"), str(self.step / "step.py"), "--config", str(self.folder / "config.yaml")]
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment, cwd=self.folder)

    def finish(self) -> Run:
        status = self.start().wait(timeout=600)
        assert status == 0, self.log()[-4000:]
        return self

    def refused(self) -> dict[str, Any]:
        """The error that a run ends with; what it said to a person is no traceback."""
        status = self.start().wait(timeout=300)
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
