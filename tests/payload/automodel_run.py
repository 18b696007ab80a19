"""Starts an AutoModel step as it is started for real: a process in the train environment, on the CPU, offline."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
from interpreters import STEPS, payload_python
from omegaconf import OmegaConf

BAD_INPUT = 3


class Run:
    """One start of a step's payload in ``folder``, with its tiny config; the output is ``folder/out``."""

    def __init__(self, folder: Path, overrides: dict[str, Any] | None = None, step: str = "sft/automodel") -> None:
        self.folder, self.out, self.said = folder, folder / "out", folder / "messages.jsonl"
        self.step = STEPS / step
        folder.mkdir(parents=True, exist_ok=True)
        config = OmegaConf.load(self.step / "config" / "tiny.yaml")
        for key, value in {"checkpoint.checkpoint_dir": str(self.out), **(overrides or {})}.items():
            OmegaConf.update(config, key, value, force_add=True)
        OmegaConf.save(config, folder / "config.yaml")

    def start(self, launcher: tuple[str, ...] = (), cold: bool = False, **environment: str) -> forks.Process:
        """Start it; ``launcher`` stands between the interpreter and step.py, as ``-m torch.distributed.run`` does.

        As a fork, unless it is to be ``cold``, with imports of its own as for a user, or has a launcher or variables.
        """
        cold = bool(cold or launcher or environment)
        self.said.unlink(missing_ok=True)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("WANDB")},
            "OMP_NUM_THREADS": "1",
            "NEMOTRON_MESSAGES": str(self.said),
            "NEMOTRON_STEP_DIR": str(self.step),
            "HF_HOME": str(self.folder / "hf"),
            **environment,
        }
        script, arguments = self.step / "step.py", ("--config", str(self.folder / "config.yaml"))
        if not cold:
            return forks.start(
                "automodel", script, *arguments, env=environment, cwd=self.folder, log=self.folder / "log"
            )
        command = [payload_python("train"), *launcher, str(script), *arguments]
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment, cwd=self.folder)

    def finish(self, launcher: tuple[str, ...] = (), cold: bool = False) -> Run:
        status = self.start(launcher, cold).wait(timeout=600)
        assert status == 0, self.log()[-4000:]
        return self

    def refused(self, **environment: str) -> dict[str, Any]:
        """Run it to the error that a person can mend; returns that."""
        status = self.start(**environment).wait(timeout=600)
        assert status == BAD_INPUT, self.log()[-4000:]
        assert "Traceback" not in self.log()
        [error] = self.messages("error")
        assert error["recovery"]
        return error

    def kill_when(self, moment: Callable[[Run], bool]) -> None:
        """Start it, and kill it at that moment."""
        process = self.start()
        deadline = time.monotonic() + 600
        while not moment(self):
            assert process.poll() is None and time.monotonic() < deadline, self.log()[-3000:]
            time.sleep(0.001)
        process.kill()
        process.wait()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def messages(self, kind: str) -> list[dict[str, Any]]:
        lines = self.said.read_text().splitlines() if self.said.is_file() else []
        return [m for m in map(json.loads, lines) if m["type"] == kind]

    def facts(self) -> dict[str, Any]:
        return self.messages("result")[0]["facts"]

    def losses(self) -> dict[int, float]:
        records = map(json.loads, (self.out / "training.jsonl").read_text().splitlines())
        return {r["step"]: r["loss"] for r in records}

    @property
    def artifact(self) -> Path:
        return self.out / "LATEST" / "model" / "consolidated"


def training_past(step: int) -> Callable[[Run], bool]:
    return lambda run: any((m["step"] or 0) >= step for m in run.messages("progress"))


def python(code: str, *arguments: object) -> str:
    """Run code in the train environment, with steps/ importable; returns the last line it printed."""
    return forks.python("automodel", code, *arguments)
