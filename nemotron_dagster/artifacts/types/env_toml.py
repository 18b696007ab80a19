"""``env_toml``: a TOML file of profiles, each of them valid for the executor that it names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.config.sections import RESERVED, problems
from nemotron_dagster.errors import ArtifactError, NemotronError

LAYOUT = (
    "One TOML file: a table per profile, which names an executor or extends a profile that does, and the system "
    f"sections {', '.join(RESERVED)}."
)
_SHOWN = 20  # problems listed in one message
_NEEDED = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)\s*\}")  # a variable without a default


def validate(path: Path) -> dict[str, Any]:
    """Check every profile as ``nemotron env check`` does: its parents, its keys and values, the guardrails.

    Returns:
        Facts: profiles (how many), executors (name -> profiles), table (one mapping per profile: profile, extends,
        executor, nodes, gpus, image), warnings.

    Raises:
        ArtifactError: not a TOML file of profiles, or naming each profile and key that is refused.
    """
    from nemotron_dagster.config.guardrails import check_profile
    from nemotron_dagster.project import find_project

    file = path / "env.toml" if path.is_dir() else path
    environment = Environment(file, read(file))
    if not environment.profiles:
        raise ArtifactError(f"{file}: holds no profile. Add a table that names an executor.")
    refused = [f"{environment.where(*p.path)}: {p.message}" for p in problems(environment.tables)]
    warnings: list[str] = []
    rows = []
    told = set()  # a profile inherits its parent's mistakes: each is told once, where it is made
    unset: dict[str, None] = {}
    for name in environment.profiles:
        for finding in check_profile(find_project(), environment, name):
            if (finding.where, finding.key, finding.message) in told:
                continue
            if finding.level == "warning" and (variables := _unset(environment, name, finding.key)):
                unset |= dict.fromkeys(variables)  # of this machine, not of the file: one line for all of them
                continue
            told.add((finding.where, finding.key, finding.message))
            if finding.level == "error":
                refused.append(f"{finding.where}: profile {name!r}: {finding.message}")
            else:
                warnings.append(f"profile {name!r}: {finding.message}")
        rows.append(_row(environment, name))
    if refused:
        more = f"\n... and {len(refused) - _SHOWN} more." if len(refused) > _SHOWN else ""
        raise ArtifactError("\n".join(refused[:_SHOWN]) + more)
    if unset:
        warnings.append(
            f"variables that the profiles read are not set here: {', '.join(unset)}. Export them before use."
        )
    executors = Counter(str(row["executor"]) for row in rows if row["executor"])
    return {"profiles": len(rows), "executors": dict(executors), "table": rows, "warnings": warnings}


def figures(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Profiles, and what they run on."""
    return {"profiles": facts["profiles"], "executors": ", ".join(facts["executors"])}


def tables(facts: Mapping[str, Any]) -> dict[str, str]:
    """The profiles with their resources."""
    from nemotron_dagster.artifacts.markdown import table

    columns = ("profile", "extends", "executor", "nodes", "gpus", "image")
    head = ("profile", "extends", "executor", "nodes", "GPUs per node", "image")
    return {"profiles": table(head, ([row[c] for c in columns] for row in facts["table"]))}


def read(path: Path) -> dict[str, Any]:
    """The file's tables, placeholders as they are written."""
    from nemotron_dagster.config.source import read_toml

    return read_toml(path / "env.toml" if path.is_dir() else path, ArtifactError)


def _unset(environment: Environment, name: str, key: str) -> list[str]:
    """Variables without a default that a value hangs on and that are not set here."""
    value: Any = environment.written(name)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return [v for v in _NEEDED.findall(value) if v not in os.environ] if isinstance(value, str) else []


def _row(environment: Environment, name: str) -> dict[str, Any]:
    try:
        values = environment.written(name)
    except NemotronError:  # a finding tells
        values = {}
    return {
        "profile": name,
        "extends": environment.tables[name].get("extends"),
        "executor": values.get("executor"),
        "nodes": values.get("nodes"),
        "gpus": values.get("gpus_per_node", values.get("gpus")),
        "image": values.get("container_image") or values.get("container") or values.get("image"),
    }
