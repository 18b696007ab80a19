"""A step of Megatron-Bridge as it is started for real: a process in the train environment, on the CPU, offline."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pyarrow.parquet as pq
import refusals as refused
from interpreters import STEPS, payload_python
from omegaconf import OmegaConf
from refusals import Refusal

BAD_INPUT = 3


class Run:
    """One start of ``<kind>/megatron_bridge`` in ``folder`` with its tiny config; the output is ``folder/out``."""

    def __init__(self, kind: str, folder: Path, overrides: dict[str, Any] | None = None) -> None:
        self.step = STEPS / kind / "megatron_bridge"
        self.folder, self.out, self.said = folder, folder / "out", folder / "messages.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        config = OmegaConf.load(self.step / "config" / "tiny.yaml")
        for key, value in {"checkpoint.save": str(self.out), **(overrides or {})}.items():
            OmegaConf.update(config, key, value, force_add=True)
        OmegaConf.save(config, folder / "config.yaml")

    def start(self, cold: bool = False) -> forks.Process:
        """Start it; ``cold`` with its own imports, as a user does, and else as a fork."""
        self.said.unlink(missing_ok=True)
        environment = {
            **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_PORT")},
            "OMP_NUM_THREADS": "1",
            "NEMOTRON_MESSAGES": str(self.said),
            "NEMOTRON_STEP_DIR": str(self.step),
            "HF_HOME": str(self.folder / "hf"),
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
        assert status == 0, self.log()
        return self

    def refused(self) -> dict[str, Any]:
        """Start it, expect that it refuses its input, and return what it says."""
        assert self.start(cold=True).wait(timeout=600) == BAD_INPUT, self.log()
        assert "Traceback" not in self.log() or self.out.is_dir()
        [error] = self.messages("error")
        return error

    def log(self) -> str:
        return (self.folder / "log").read_text()[-4000:]

    def until(self, process: forks.Process, reached: Callable[[Run], bool]) -> None:
        """Wait until the running process has come as far as ``reached`` says."""
        deadline = time.monotonic() + 300
        while not reached(self):
            assert process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def past(self, iteration: int) -> bool:
        return any((m["step"] or 0) >= iteration for m in self.messages("progress"))

    def messages(self, kind: str) -> list[dict[str, Any]]:
        lines = self.said.read_text().splitlines() if self.said.is_file() else []
        return [m for m in map(json.loads, (line for line in lines if line.endswith("}"))) if m["type"] == kind]

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.messages("result")[0]["facts"]
        return facts

    def losses(self) -> dict[int, float]:
        table = pq.read_table(self.out / "metrics.parquet").to_pydict()
        return dict(zip(table["step"], table["loss"], strict=True))

    def iterations(self) -> list[str]:
        return sorted(p.name for p in self.out.glob("iter_*"))

    def tracked(self) -> str:
        return (self.out / "latest_checkpointed_iteration.txt").read_text()


def refusals(kind: str, folder: Path, cases: list[dict[str, Any]], cold: bool = False) -> list[Refusal]:
    """What the runner says to each set of overrides; ``cold``: no library is imported when it starts."""
    files = [Run(kind, folder / str(n), overrides).folder / "config.yaml" for n, overrides in enumerate(cases)]
    return refused.refusals(STEPS / kind / "megatron_bridge", files, None if cold else "megatron")


def train_python(code: str, *arguments: object, **variables: str) -> Any:
    """Run code in the train environment, Megatron-Bridge imported; returns the JSON of the last line it printed."""
    return json.loads(forks.python("megatron", code, *arguments, **variables))


#: argv: an iteration, the base, an empty directory, token ids and the mask of a pack as JSON. Exports the checkpoint,
#: or the adapter merged into its base, by the libraries' own functions.
EXPORT = """
import json, sys
from pathlib import Path
from _runtime import cpu_megatron
cpu_megatron.enable(lambda text: None)
import torch
from megatron.bridge import AutoBridge
from megatron.core import dist_checkpointing
from transformers import AutoModelForCausalLM, AutoTokenizer

iteration, base, out, data = sys.argv[1:]
tensors = dist_checkpointing.load_tensors_metadata(iteration)
bridge = AutoBridge.from_hf_pretrained(base, torch_dtype=torch.float32)
load = AutoModelForCausalLM.from_pretrained
if any("adapter" in name for name in tensors):
    from peft import PeftModel
    bridge.export_adapter_ckpt(iteration, out + "/adapter", show_progress=False)
    trained = PeftModel.from_pretrained(load(base), out + "/adapter").merge_and_unload()
else:
    bridge.export_ckpt(iteration, out, show_progress=False, strict=True)
    trained = load(out)
ids, mask = (torch.tensor(x) for x in json.loads(data))
loss = lambda model: float(
    (torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none") * mask[:-1]).sum()
    / mask[:-1].sum())
tokenizer = AutoTokenizer.from_pretrained(iteration + "/tokenizer")
turns = [{"role": "user", "content": "What is 12 in Roman numerals?"}]
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
with torch.no_grad():
    answer = trained.eval().generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1]:]
    print(json.dumps({"before": loss(load(base).eval()), "after": loss(trained), "tensors": len(tensors),
                      "answer": tokenizer.decode(answer, skip_special_tokens=True),
                      "stopped": bool(answer[-1] == tokenizer.eos_token_id)}))
"""


def exported(run: Run, folder: Path, ids: list[int], mask: list[int] | None = None) -> dict[str, Any]:
    """The loss on ``ids`` before and after training, and an answer of the exported model."""
    data = json.dumps([ids, mask or [1] * len(ids)])
    latest = run.out / f"iter_{int(run.tracked()):07d}"
    found: dict[str, Any] = train_python(EXPORT, latest, run.out / "base", folder, data)
    return found
