"""Runs of the RL steps as they are started for real: a subprocess in the train environment, on the CPU, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
from interpreters import STEPS, payload_python
from omegaconf import OmegaConf

BAD_INPUT = 3
ROOT = STEPS / "rl" / "nemo_rl"


class Run:
    """One start of a step's tiny config in ``folder``; the output is ``folder/out``."""

    def __init__(self, step: str, folder: Path, overrides: dict[str, Any] | None = None, config: str = "tiny") -> None:
        self.step, self.folder, self.out, self.said = ROOT / step, folder, folder / "out", folder / "messages.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        loaded = OmegaConf.load(self.step / "config" / f"{config}.yaml")
        for key, value in {"checkpointing.checkpoint_dir": str(self.out), **(overrides or {})}.items():
            OmegaConf.update(loaded, key, value, force_add=True)
        OmegaConf.save(loaded, folder / "config.yaml")

    def start(self, *words: str, cold: bool = False, **env: str) -> forks.Process:
        """Start it: as a fork, or ``cold``, with imports of its own as for a user."""
        self.said.unlink(missing_ok=True)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "RL_"))},
            "OMP_NUM_THREADS": "1",
            "NEMOTRON_MESSAGES": str(self.said),
            "NEMOTRON_STEP_DIR": str(self.step),
            "HF_HOME": str(self.folder / "hf"),
            **env,
        }
        script, arguments = self.step / "step.py", ("--config", str(self.folder / "config.yaml"), *words)
        if not cold:
            return forks.start("trl", script, *arguments, env=environment, cwd=self.folder, log=self.folder / "log")
        command = [payload_python("train"), str(script), *arguments]
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment, cwd=self.folder)

    def finish(self, cold: bool = False, **env: str) -> Run:
        status = self.start(cold=cold, **env).wait(timeout=900)
        assert status == 0, self.log[-4000:]
        return self

    def refused(self, **env: str) -> dict[str, Any]:
        """The error of a run that a person must mend."""
        assert self.start(**env).wait(timeout=300) == BAD_INPUT, self.log[-4000:]
        assert "Traceback" not in self.log
        [error] = self.messages("error")
        assert error["recovery"]
        return error

    def wait_for(self, process: forks.Process, moment: Callable[[Run], bool]) -> None:
        deadline = time.monotonic() + 600
        while not moment(self):
            assert process.poll() is None and time.monotonic() < deadline, self.log[-4000:]
            time.sleep(0.005)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def messages(self, kind: str) -> list[dict[str, Any]]:
        lines = self.said.read_text().splitlines() if self.said.is_file() else []
        return [m for m in map(json.loads, lines) if m["type"] == kind]

    def facts(self) -> dict[str, Any]:
        return self.messages("result")[0]["facts"]

    def metrics(self, name: str) -> dict[int, float]:
        """A metric of every step, as metrics.parquet has it."""
        import pyarrow.parquet as pq

        rows = pq.read_table(self.out / "metrics.parquet").to_pylist()
        return {row["step"]: row[name] for row in rows}

    def reported(self, name: str) -> dict[int, float]:
        return {m["step"]: m["metrics"][name] for m in self.messages("progress") if name in m["metrics"]}


def refusals(step: str, folder: Path, cases: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(error, message) of each configuration, all tried in one process; every error says what to do next."""
    runs = [Run(step, folder / str(i), overrides) for i, overrides in enumerate(cases)]
    code = """
import json, os, sys
from pathlib import Path
from _runtime import payload
from _runtime.rl import start
os.environ["NEMOTRON_STEP_DIR"], told = sys.argv[1], []
for file in sys.argv[3:]:
    try:
        start.run(payload.load_config(Path(file), ["--config", file]), sys.argv[2])
        told.append(["nothing", "it was accepted", "x"])
    except payload.PayloadError as e:
        told.append([e.name, e.message, e.recovery])
print(json.dumps(told))
"""
    told = python(code, ROOT / step, step, *(run.folder / "config.yaml" for run in runs))
    assert all(recovery for *_, recovery in told), told
    return [(name, message) for name, message, _ in told]


def passed(step: int) -> Callable[[Run], bool]:
    """Has training reported that step?"""
    return lambda run: any((m["step"] or 0) >= step for m in run.messages("progress"))


def python(code: str, *arguments: object) -> Any:
    """Run code in the train environment, with steps/ importable; what the last line it printed holds, as JSON."""
    return json.loads(forks.python("trl", code, *arguments))


def answers(model: Path, numbers: list[int]) -> list[str]:
    """What a policy answers, greedily."""
    code = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
where, numbers = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(where)
turns = [[{"role": "user", "content": f"What is {n} in Roman numerals?"}] for n in numbers]
asked = [tokenizer.apply_chat_template(t, add_generation_prompt=True, tokenize=False) for t in turns]
ids = tokenizer(asked, return_tensors="pt", padding=True)
out = model.generate(**ids, max_new_tokens=10, do_sample=False)[:, ids["input_ids"].shape[1]:]
print(json.dumps(tokenizer.batch_decode(out, skip_special_tokens=True)))
"""
    return python(code, model, json.dumps(numbers))


def rows(path: Path, *given: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in given))
    return path


def prepared(folder: Path, data_python: str, blend: Path) -> Path:
    """The output of data_prep/rl_prep, tiny, for the rows of ``blend``."""
    step = STEPS / "data_prep" / "rl_prep"
    config = OmegaConf.merge(
        OmegaConf.load(step / "config" / "default.yaml"),
        OmegaConf.load(step / "config" / "tiny.yaml"),
        {"blend_path": str(blend), "output_dir": str(folder / "prepared")},
    )
    config.pop("defaults", None)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "rl_prep.yaml")
    done = subprocess.run(
        [data_python, str(step / "step.py"), "--config", str(folder / "rl_prep.yaml")],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, "NEMOTRON_STEP_DIR": str(step), "NEMOTRON_MESSAGES": str(folder / "rl_prep.jsonl")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "prepared"


if str(STEPS) not in sys.path:
    sys.path.insert(0, str(STEPS))
