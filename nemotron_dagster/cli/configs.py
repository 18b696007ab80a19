"""What a step's configs are for and what they need, read without compiling them: for `steps show` and completion."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog import Step
from nemotron_dagster.config.compose import config_path, load_yaml
from nemotron_dagster.errors import NemotronError
from nemotron_dagster.project import Project

_ENV = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)\s*(?:,\s*([^{}]*?)\s*)?\}")


@dataclass(frozen=True)
class ConfigFacts:
    """One named config of a step.

    Attributes:
        purpose: its leading comment.
        nodes, gpus_per_node: what it needs: its own ``run.env``, else the runspec; text where that is not known yet.
        local: where it can run on this machine's target, or why not.
        executors: the targets of ``resources/`` that can run it.
        profiles: the profiles of the present env.toml that can.
        problem: why it cannot be read.
    """

    name: str
    file: str
    purpose: str = ""
    nodes: int | str = 1
    gpus_per_node: int | str = 0
    local: str = ""
    executors: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def config_facts(step: Step, project: Project, profiles: Mapping[str, Mapping[str, Any]]) -> list[ConfigFacts]:
    """The facts of every config of ``step``, its default one first; ``profiles`` are merged, by name."""
    known = sorted({p.stem for f in project.folders("resources") for p in f.glob("[!_]*.py")})
    return [_facts(step, name, known, profiles) for name in step.configs]


def _facts(step: Step, name: str, known: list[str], profiles: Mapping[str, Mapping[str, Any]]) -> ConfigFacts:
    assert step.runspec is not None
    file = step.runspec.config_dir / f"{name}.yaml"
    try:
        file = config_path(step, name).resolve()
        own = _environment(load_yaml(file))
    except NemotronError as e:
        return ConfigFacts(name, str(file), problem=str(e))
    needs = {"nodes": step.runspec.nodes, "gpus_per_node": step.runspec.gpus_per_node}
    nodes, gpus = (_number(own.get(k) if own.get(k) is not None else needs[k]) for k in needs)
    local = "1 node" if gpus == 0 else f"with {gpus} GPU{'' if gpus == 1 else 's'}"
    executors = tuple(e for e in known if e != "local" or nodes == 1)
    fits = (p for p, values in profiles.items() if _fits(values, own, nodes, gpus, executors))
    return ConfigFacts(
        name=name,
        file=str(file),
        purpose=_purpose(file),
        nodes=nodes,
        gpus_per_node=gpus,
        local=("on CPU" if gpus == 0 else local) if nodes == 1 else f"no: needs {nodes} nodes",
        executors=executors,
        profiles=tuple(fits),
    )


def _fits(
    profile: Mapping[str, Any], own: Mapping[str, Any], nodes: int | str, gpus: int | str, executors: tuple[str, ...]
) -> bool:
    """Whether a profile's target can run the config and the profile gives it the nodes and GPUs that it needs."""
    if profile.get("executor") not in executors:
        return False
    for key, need in (("nodes", nodes), ("gpus_per_node", gpus)):
        given = _number(profile[key]) if profile.get(key) is not None else None
        if own.get(key) is None and isinstance(given, int) and isinstance(need, int) and given < need:
            return False
    return True


def _environment(config: Mapping[str, Any]) -> dict[str, Any]:
    run = config.get("run")
    env = run.get("env") if isinstance(run, dict) else None
    return env if isinstance(env, dict) else {}


def _number(value: Any) -> int | str:
    """The number, an interpolated environment variable filled in; as text where it is not known."""
    text = _ENV.sub(lambda m: os.environ.get(m[1]) or (m[2] if m[2] is not None else m[0]), str(value))
    return int(text) if text.isdigit() else text


def _purpose(file: Path) -> str:
    """The comment that the file begins with, in one line."""
    words: list[str] = []
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.startswith("#"):
                break
            words += line.lstrip("#").split()
    return " ".join(words)
