"""A step that ends in whatever way its config says, and the profile of a cluster to run it on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tomli_w
from helpers import add_step
from places import Place

STEP = '''\
# /// script
# [tool.runspec]
# name = "steps/demo/behave"
# [tool.runspec.run]
# launch = "python"
# [tool.runspec.resources]
# gpus_per_node = 0
# ///
"""Ends as it is told."""
import hashlib, json, os, signal, sys, time
from pathlib import Path

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]
from _runtime import payload


def main(cfg):
    out, rank, start = Path(cfg["output_dir"]), int(os.environ["NODE_RANK"]), os.environ.get("SLURM_RESTART_COUNT", "0")
    print("begins: rank", rank, "start", start, flush=True)
    for name, digest in cfg["secrets"].items():
        if hashlib.sha256(os.environ.get(name, "").encode()).hexdigest() != digest:
            raise payload.PayloadError("secret_lost", f"{name}: is not what was given", "Mend the target.")
    how = cfg["how"]
    if how == "code":
        sys.exit(cfg["code"])
    if how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "rank" and rank == 1:
        sys.exit(cfg["code"])
    if how == "memory":
        kept = bytearray(os.urandom(1 << 20)) * 400
    if how in ("hang", "memory", "rank") or (how == "requeue" and start == "0"):
        time.sleep(600)
    (out / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": str(cfg["number"])}]}) + "\\n")


payload.run(main, Path(__file__).parent / "config" / "default.yaml")
'''

TOML = """\
[step]
id = "demo/behave"
name = "Behave"
category = "demo"
description = "Ends as it is told."
env = "engine"
freeform = ["secrets"]
[[produces]]
type = "raw_jsonl"
bind = "output_dir"
"""

CONFIG = """\
how: ok
code: 1
number: 0
secrets: {}
output_dir: ./out
"""


def behaving(project: Path, place: Place, **profile: Any) -> None:
    """Give the project the step ``demo/behave``, and the profile ``cluster``."""
    add_step(project, "demo/behave", TOML, STEP, default=CONFIG)
    settings = {**place.profile, "python": sys.executable, "gpus_per_node": 0, **profile}
    (project / "env.toml").write_text(tomli_w.dumps({"cluster": settings}))
