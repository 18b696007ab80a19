"""`python fork_server.py LIBRARY`: imports a library once, then runs Python programs in forks of itself, one at a time.

Importing Megatron-Bridge takes longer than training a tiny model with it. Reads lines of JSON ``{"argv", "code",
"env", "cwd", "out", "err"}`` and answers each with the fork's process id, and with its exit status when it has ended. A
program is what the interpreter would run for ``argv``: a script, or ``code``; ``out`` and ``err`` are files to append
to. See forks.py.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import importlib
import json
import os
import runpy
import sys
import tempfile
import threading
import traceback
import types
from typing import Any

#: What is imported before the first fork; none of it starts a thread, opens a file or changes anything.
LIBRARIES = {
    "automodel": ["nemo_automodel.recipes.llm.train_ft", "nemo_automodel.components.datasets.llm", "pyarrow.parquet"],
    "megatron": [
        "megatron.bridge.training.pretrain",
        "megatron.bridge.training.finetune",
        "megatron.bridge.training.gpt_step",
        "megatron.bridge.training.model_load_save",
        "megatron.bridge.training.post_training.checkpointing",
        "megatron.bridge.recipes.nemotronh.nemotron_3_nano",
        "megatron.bridge.peft.lora",
        "modelopt.torch.export",
        "modelopt.torch.quantization",
        "peft",
        "pyarrow.parquet",
    ],
    "trl": ["trl.trainer.dpo_trainer", "trl.trainer.grpo_trainer", "peft", "pyarrow.parquet"],
}
MODELS = ["transformers.models.llama.modeling_llama", "transformers.models.qwen3.modeling_qwen3"]


def prepare(library: str) -> None:
    if library == "megatron":  # which cannot be imported on the CPU before this
        from _runtime import cpu_megatron

        cpu_megatron.enable(lambda text: None)
    for name in [*LIBRARIES[library], *MODELS, "transformers.generation.utils"]:
        importlib.import_module(name)


def become(task: dict[str, Any]) -> None:
    """Be the program: its environment, its arguments, its output, its exit status."""
    for number, path in ((0, os.devnull), (1, task["out"]), (2, task["err"])):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(task["env"])
    tempfile.tempdir = None  # TMPDIR may be another one now
    os.chdir(task["cwd"])
    sys.argv = list(task["argv"])
    sys.path[0] = os.path.dirname(sys.argv[0])
    status: Any = 0
    try:
        if task["code"] is None:
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            module = sys.modules["__main__"] = types.ModuleType("__main__")
            module.__dict__["__builtins__"] = builtins
            exec(compile(task["code"], "<string>", "exec"), module.__dict__)
    except SystemExit as e:
        status = e.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter does at its end,
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))  # without taking its modules apart


def main(library: str) -> dict[str, Any] | None:
    """Answer requests; in a fork, return what it is to be."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    prepare(library)
    gc.freeze()  # what a fork's collector does not look at stays shared
    print("ready", file=answers)
    while line := sys.stdin.readline():
        task: dict[str, Any] = json.loads(line)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            answers.close()
            return task
        print(pid, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)
    return None


if __name__ == "__main__":
    given = main(sys.argv[1])
    if given is not None:
        become(given)
