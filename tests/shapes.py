"""The shapes that public step configs have, each with its whole compile as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nemotron_dagster.config.compile import Relocation

TOML = """\
[step]
id = "demo/shape"
freeform = ["policy.tokenizer", "a.*"]
literal = ["template"]
[[consumes]]
type = "training_jsonl"
bind = ["data.path", { key = "validation.path", suffix = "/splits/valid" }]
suffix = "/splits/train"
required = false
[[produces]]
type = "training_jsonl"
bind = "output_dir"
"""

SCRIPT = """\
# /// script
# [tool.runspec]
# name = "steps/demo/shape"
# ///
"""

TABLES: dict[str, Any] = {
    "wandb": {"project": "team-project", "entity": "${oc.env:TEAM,team}"},
    "artifacts": {"wandb": False, "manifest": {"root": "/art"}},
    "here": {"executor": "local", "env_vars": {"PACKED": "/profile/packed"}},
    "cluster": {
        "executor": "slurm",
        "remote_job_dir": "/lustre/jobs",
        "container_image": "profile:1",
        "nodes": 8,
        "nprocs_per_node": 4,
        "time": "01:00:00",
        "mounts": ["/lustre:/lustre"],
        "env_vars": {"SHARED": "profile", "ADDED": "2"},
    },
}
PLAIN = {k: v for k, v in TABLES.items() if k not in ("wandb", "artifacts")}
MOVED = Relocation("/nemo_run/code", "/nemo_run")


@dataclass
class Shape:
    """A config, how it is compiled, and what comes out: all of ``train``, and the named values of ``run``."""

    text: str
    train: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    profile: str | None = None
    tables: dict[str, Any] = field(default_factory=lambda: PLAIN)
    moved: bool = False
    written: dict[str, Any] = field(default_factory=dict)


WANDB = """\
logger:
  project: ${oc.select:run.wandb.project,${oc.env:LOG_PROJECT,null}}
  entity: ${oc.select:run.wandb.entity,${oc.env:LOG_ENTITY,null}}
  enabled: ${oc.decode:${oc.env:LOG_ON,false}}
  name: ${oc.env:LOG_NAME,shape}
"""
LAUNCHER = """\
output_dir: ./results
run:
  model: tuned-model:v3
  env: {executor: local, host: "${oc.env:NODE_NAME,localhost}", account: null, remote_job_dir: "${oc.env:PWD}/jobs"}
execution:
  type: ${run.env.executor}
  host: ${run.env.host}
  account: ${run.env.account}
  note: <${run.env.account}>
  nodes: ${oc.select:run.env.nodes,1}
  tasks: ${execution.nodes}
  logs: ${output_dir}/logs
  cache: ${run.env.remote_job_dir}/cache
"""
CHECKPOINT = """\
run:
  env:
    container_image: yaml:2
    nodes: 2
    nprocs_per_node: 8
    mounts:
      - ${auto_mount:git+https://example.com/org/lib.git@main,/opt/lib}
    env_vars: {SHARED: yaml, OWN: "1"}
save: ${oc.env:OUT,./out}/ckpt
packed: ${oc.env:PACKED,./packed}/train
cache: ${oc.env:CACHE_HOME,${oc.env:NEMO_RUN_DIR,${oc.env:PWD}/output}/hf}
logs: ${oc.env:NEMO_RUN_DIR,./runs}/logs
data: ${oc.env:PWD}/data
lib: ${auto_mount:git+https://example.com/org/lib.git@main,/opt/lib}
"""
MOUNT = "${auto_mount:git+https://example.com/org/lib.git@main,/opt/lib}"
TRAINER = """\
dpo: {average: false, sft_average: "${.average}"}
policy:
  model: base
  tokenizer: {name: "${policy.model}"}
  length: 2048
  kwargs: null
  stages: [{name: warm, steps: 10}, {milestones: [10]}]
data: {length: "${policy.length}", total: "${mul:${policy.length},2}"}
"""

SHAPES = {
    "wandb-without-a-section": Shape(
        WANDB, {"logger": {"project": None, "entity": None, "enabled": False, "name": "shape"}}
    ),
    "wandb-of-env-toml": Shape(
        WANDB,
        {
            "logger": {"project": "team-project", "entity": "team", "enabled": False, "name": "shape"},
            "artifacts": {"wandb": False, "manifest": {"root": "/art"}},
        },
        {"wandb": {"project": "team-project", "entity": "team"}},
        tables=TABLES,
    ),
    "wandb-of-the-command-line": Shape(
        WANDB,
        {
            "logger": {"project": "mine", "entity": "team", "enabled": False, "name": "shape"},
            "artifacts": {"wandb": True, "manifest": {"root": "/art"}},
        },
        {"wandb": {"project": "mine", "entity": "team"}},
        ("run.wandb.project=mine", "artifacts.wandb=true"),
        tables=TABLES,
    ),
    "launcher-without-a-profile": Shape(
        LAUNCHER,
        {
            "output_dir": "./results",
            "execution": {
                "type": "local",
                "host": "localhost",
                "account": None,
                "note": "<>",
                "nodes": 1,
                "tasks": 1,
                "logs": "./results/logs",
                "cache": "{cwd}/jobs/cache",
            },
            "run": {"model": "tuned-model:v3"},
        },
        {"model": "tuned-model:v3", "mode": "local", "profile": None},
    ),
    "launcher-with-a-profile": Shape(
        LAUNCHER,
        {
            "output_dir": "./results",
            "execution": {
                "type": "slurm",
                "host": "localhost",
                "account": "lab",
                "note": "<lab>",
                "nodes": 8,
                "tasks": 8,
                "logs": "./results/logs",
                "cache": "/lustre/jobs/cache",
            },
            "run": {"model": "tuned-model:v3"},
        },
        {"mode": "run", "profile": "cluster"},
        ("run.env.account=lab",),
        "cluster",
        moved=True,
    ),
    "checkpoint-here": Shape(
        CHECKPOINT,
        {
            "save": "./out/ckpt",
            "packed": "./packed/train",
            "cache": "{cwd}/output/hf",
            "logs": "./runs/logs",
            "data": "{cwd}/data",
            "lib": "/opt/lib",
        },
        {
            "env": {
                "container_image": "yaml:2",
                "nodes": 2,
                "nprocs_per_node": 8,
                "mounts": [MOUNT],
                "env_vars": {"SHARED": "yaml", "OWN": "1"},
            }
        },
    ),
    "checkpoint-on-a-local-profile-moves-nothing": Shape(
        CHECKPOINT,
        {
            "save": "./out/ckpt",
            "packed": "/profile/packed/train",
            "cache": "{cwd}/output/hf",
            "logs": "./runs/logs",
            "data": "{cwd}/data",
            "lib": "/opt/lib",
        },
        profile="here",
    ),
    "checkpoint-on-a-cluster": Shape(
        CHECKPOINT,
        {
            "save": "/elsewhere/ckpt",
            "packed": "./packed/train",
            "cache": "/lustre/jobs/hf",
            "logs": "/nemo_run/logs",
            "data": "/nemo_run/code/data",
            "lib": "/opt/lib",
        },
        {
            "env": {
                "executor": "slurm",
                "remote_job_dir": "/lustre/jobs",
                "container_image": "yaml:2",
                "nodes": 3,
                "nprocs_per_node": 4,
                "time": "01:00:00",
                "mounts": [MOUNT, "/lustre:/lustre"],
                "env_vars": {"SHARED": "profile", "OWN": "1", "ADDED": "2", "OUT": "/elsewhere"},
            }
        },
        ("run.env.nodes=3", "run.env.env_vars.OUT=/elsewhere"),
        "cluster",
        moved=True,
    ),
    "trainer": Shape(
        TRAINER,
        {
            "dpo": {"average": False, "sft_average": False},
            "policy": {
                "model": "base",
                "tokenizer": {"name": "base"},
                "length": 2048,
                "kwargs": None,
                "stages": [{"name": "warm", "steps": 10}, {"milestones": [10]}],
            },
            "data": {"length": 2048, "total": "${mul:2048,2}"},
        },
    ),
    "trainer-with-sections-lists-and-items-overridden": Shape(
        TRAINER,
        {
            "dpo": {"average": True, "sft_average": True},
            "policy": {
                "model": "other",
                "tokenizer": {"name": "other", "pad": True},
                "length": 4096,
                "kwargs": {"lr": 1e-5},
                "stages": [{"name": "warm", "steps": 2}, {"milestones": [1, 2]}],
            },
            "data": {"length": 4096, "total": "${mul:4096,2}"},
        },
        overrides=(
            "dpo.average=true",
            "policy={model: other, length: 4096, tokenizer: {pad: true}}",
            "policy.kwargs={lr: 1e-5}",
            "policy.stages[0].steps=2",
            "policy[stages][1].milestones=[1, 2]",
        ),
    ),
    "the-later-override-wins-and-a-later-section-merges": Shape(
        "a: {b: 1, c: {d: 2}}\nl: [1, 2, 3]\n",
        {"a": {"b": 4, "c": {"d": 2, "e": 5}}, "l": [9]},
        overrides=("a.b=3", "a={c: {e: 5}}", "a.b=4", "l=[9]"),
    ),
    "odd-keys": Shape(
        "'a.b': {c: 1}\n'with space': {'é-x': 2}\n1st: {0: zero, '=': eq}\n",
        {"a.b": {"c": 5}, "with space": {"é-x": 6}, "1st": {0: "nil", "=": "is"}},
        overrides=('["a.b"].c=5', "with space.é-x=6", "1st.0=nil", '1st["="]=is'),
    ),
    "literal-sections-and-escapes": Shape(
        "template: {host: '${oc.env:NEVER_SET}', '${x}': y}\ntext: 'a \\${kept} ${n}'\nn: 1\n",
        {"template": {"host": "${oc.env:NEVER_SET}", "${x}": "y"}, "text": "a \\${kept} 1", "n": 1},
    ),
    "defaults-of-somebody-else-stay": Shape(
        "defaults: [{override x: y}, _self_]\nn: 1\n", {"defaults": [{"override x": "y"}, "_self_"], "n": 1}
    ),
}
