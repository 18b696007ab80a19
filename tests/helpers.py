"""Quick stdlib-only steps for tests of the engine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).resolve().parent.parent

ROWS = '''\
# /// script
# [tool.runspec]
# name = "steps/demo/rows"
# [tool.runspec.run]
# launch = "python"
# [tool.runspec.resources]
# gpus_per_node = 0
# ///
"""Writes rows one by one, continuing where a killed run stopped."""
import json, os, sys, time
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]
from _runtime import payload


def main(cfg):
    out = Path(cfg["output_dir"])
    state = out / "state.txt"
    done = int(state.read_text()) if state.exists() else 0
    print("starting at", done, "secret is", "set" if os.environ.get("PLANTED_TOKEN") else "unset", flush=True)
    for i in range(done, cfg["n"]):
        with open(out / "rows.jsonl", "a") as f:
            f.write(json.dumps({"messages": [{"role": "user", "content": str(i)}]}) + "\\n")
        state.write_text(str(i + 1))
        payload.progress(i + 1, cfg["n"], loss=1 / (i + 1), lr=0.1)
        time.sleep(cfg["sleep"])
    while cfg["until"] and not Path(cfg["until"]).exists():
        time.sleep(0.05)
    if cfg["fail"]:
        raise payload.PayloadError("told", "row 7 is wrong", "Mend row 7.")
    if cfg["crash"] is not None:
        sys.exit(cfg["crash"])
    if cfg["garbage"]:
        (out / "rows.jsonl").write_text("not json\\n")
    payload.result(first=done)


payload.run(main, Path(__file__).parent / "config" / "default.yaml")
'''

ROWS_TOML = """\
[step]
id = "demo/rows"
name = "Rows"
category = "demo"
description = "Writes rows."
env = "engine"
resumable = true
[[produces]]
type = "raw_jsonl"
bind = "output_dir"
[[parameters]]
name = "sleep"
description = "Seconds per row."
[[parameters]]
name = "mode"
choices = ["a", "b", "null"]
"""

ROWS_YAML = """\
n: 5
sleep: 0.0
output_dir: ./out
until: null
fail: false
crash: null
garbage: false
section:
  inner: 1
mode: a
"""

COUNT = '''\
# /// script
# [tool.runspec]
# name = "steps/demo/count"
# [tool.runspec.run]
# launch = "python"
# [tool.runspec.resources]
# gpus_per_node = 0
# ///
"""Copies chat rows."""
import shutil, sys
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]
from _runtime import payload


def main(cfg):
    for file in sorted(Path(cfg["data"]).rglob("*.jsonl")) if Path(cfg["data"]).is_dir() else [Path(cfg["data"])]:
        shutil.copy(file, Path(cfg["output_dir"]) / file.name)


payload.run(main, Path(__file__).parent / "config" / "default.yaml")
'''

COUNT_TOML = """\
[step]
id = "demo/count"
name = "Count"
category = "demo"
description = "Copies chat rows."
[[consumes]]
type = "training_jsonl"
bind = "data"
from = "demo/rows"
[[produces]]
type = "training_jsonl"
bind = "output_dir"
"""


def add_step(root: Path, step_id: str, toml: str, script: str, **configs: str) -> Path:
    """Write a step folder below ``root/steps``."""
    folder = root / "steps" / step_id
    (folder / "config").mkdir(parents=True)
    (folder / "step.toml").write_text(toml)
    (folder / "step.py").write_text(script)
    for name, text in configs.items():
        (folder / "config" / f"{name}.yaml").write_text(text)
    return folder


def load_module(file: Path) -> ModuleType:
    """A step's payload as a module; what it puts on ``sys.path`` does not stay there."""
    spec = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module
