"""Runs the payload of eval/model_eval as whoever starts it does: a process, a config file, a message file."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from interpreters import payload_python

STEP = Path(__file__).resolve().parents[2] / "steps" / "eval" / "model_eval"
TINY_LLAMA = STEP.parents[1] / "_runtime" / "tiny_llama"


@dataclass
class Run:
    code: int
    printed: str
    messages: list[dict[str, Any]]
    output: Path
    seconds: float = 0.0

    @property
    def error(self) -> dict[str, Any]:
        """The one error message; a run that fails says so once."""
        errors = [m for m in self.messages if m["type"] == "error"]
        assert len(errors) == 1, self.printed
        return errors[0]

    @property
    def facts(self) -> dict[str, Any]:
        return next(m["facts"] for m in self.messages if m["type"] == "result")

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.output / "summary.json").read_text())

    def score(self, task: str) -> dict[str, Any]:
        return next(s for s in self.summary["scores"] if s["task"] == task)

    def everything(self) -> str:
        """All that the run printed, said and wrote."""
        files = [p.read_text(errors="replace") for p in self.output.rglob("*") if p.is_file()]
        return "\n".join([self.printed, json.dumps(self.messages), *files])


def config(name: str = "tiny", **overrides: Any) -> dict[str, Any]:
    """A named config with dotted keys replaced; ``__`` stands for the dot."""
    made = yaml.safe_load((STEP / "config" / f"{name}.yaml").read_text())
    for dotted, value in overrides.items():
        *parents, last = dotted.split("__")
        inner = made
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return made


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """An environment without the caller's Hugging Face settings, keys or home."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "NEMOTRON_", "OPENAI_", "NVIDIA_API"))}
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | extra


def run(folder: Path, cfg: dict[str, Any], cwd: Path | None = None, python: str | None = None, **env: str) -> Run:
    """Start the payload and wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    messages, output = folder / "messages.jsonl", folder / "out"
    (folder / "config.yaml").write_text(json.dumps(cfg | {"output_dir": str(output)}))
    done = subprocess.run(
        [python or payload_python("eval"), STEP / "step.py", "--config", folder / "config.yaml"],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd or folder,
        env=environment(folder, NEMOTRON_MESSAGES=str(messages), **env),
        timeout=300,
    )
    lines = messages.read_text().splitlines() if messages.is_file() else []
    return Run(done.returncode, done.stdout + done.stderr, [json.loads(line) for line in lines], output)


def make_checkpoint(folder: Path, steps: int = 0) -> Path:
    """A Hugging Face checkpoint of the bundled tiny model, trained for a few steps where asked."""
    done = subprocess.run(
        [payload_python("eval"), Path(__file__).parent / "make_checkpoint.py", TINY_LLAMA, folder, str(steps)],
        check=False,
        capture_output=True,
        text=True,
        env=environment(folder.parent, HF_HUB_OFFLINE="1"),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


_READER = """
import json, sys, yaml
from pathlib import Path
from nemo_evaluator.api.api_dataclasses import EvaluationConfig, EvaluationResult, EvaluationTarget
from nemo_evaluator_launcher.exporters.utils import extract_accuracy_metrics
folder = Path(sys.argv[1])
data = yaml.safe_load((folder / "results.yml").read_text())
EvaluationConfig.model_validate(data["config"])
print(json.dumps({
    "exported": extract_accuracy_metrics(folder),
    "result": EvaluationResult.model_validate(data["results"]).model_dump(exclude_none=True),
    "model": EvaluationTarget.model_validate(data["target"]).api_endpoint.model_id,
}))
"""


def read_by_nemo_evaluator(folder: Path) -> dict[str, Any]:
    """What NeMo Evaluator's own model and its exporters' reader find in a directory's results.yml."""
    command = [payload_python("eval"), "-c", _READER, folder]
    env = environment(folder.parent)
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
