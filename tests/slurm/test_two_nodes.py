"""sft/automodel on two nodes of a real Slurm: torchrun on each, gloo between them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import tomli_w
from interpreters import payload_python
from places import Place

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_model_is_trained_by_two_nodes_together(local_place: Place, project: Path, nemotron: Run) -> None:
    profile = {**local_place.profile, "python": payload_python("train"), "mem": "3000", "time": "00:20:00"}
    (project / "env.toml").write_text(tomli_w.dumps({"twonodes": profile}))
    asked = ("run.env.nodes=2", "step_scheduler.max_steps=20", "step_scheduler.local_batch_size=24", "--json")
    done = nemotron("steps", "run", "sft/automodel", "-c", "tiny", "-r", "twonodes", *asked, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    [told] = json.loads(done.stdout)
    assert told["artifact"]["type"] == "checkpoint_hf"
    [manifest] = [
        json.loads(f.read_text()) for f in (project / ".nemotron/artifacts/sft/automodel").glob("*/artifact.json")
    ]
    facts = manifest["reported"]
    assert facts["processes"] == 2 and facts["steps"] == 20
    assert facts["final_loss"] < 0.7 * facts["first_loss"], "it learns"
    [listed] = json.loads(nemotron("runs", "list", "--json", cwd=project).stdout)
    [page] = json.loads(nemotron("runs", "status", listed["key"], "--json", cwd=project).stdout)
    assert re.fullmatch(r"n\[\d[-,]\d\]", page["job"]["nodes"]), page["job"]
    log = nemotron("runs", "logs", listed["key"], cwd=project).stdout
    assert log.count("CPU compatibility") == 2, "a process on each node took part"
    assert local_place.cluster.submitted(f"{local_place.profile['job_name']}.{listed['key']}") == 1
