"""``env_toml``: a TOML file of profiles, each of them valid for the executor that it names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemotron_dagster.config.profiles import RESERVED, Environment
from nemotron_dagster.config.secrets import is_secret
from nemotron_dagster.errors import ArtifactError, ProfileError

LAYOUT = (
    "One TOML file: a table per profile, which names an executor or extends a profile that does, and the system "
    f"sections {', '.join(RESERVED)}."
)
_SHOWN = 20  # problems listed in one message
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:")


def validate(path: Path) -> dict[str, Any]:
    """Check every profile: its parents, its keys, its resources.

    Variables of the environment count as unset: a file is as valid on the next machine as on this one.

    Returns:
        Facts: profiles (how many), executors (name -> profiles), table (one mapping per profile: profile, extends,
        executor, nodes, gpus, image), warnings.

    Raises:
        ArtifactError: not a TOML file of profiles, or naming each profile and key that its executor or a guardrail
            refuses.
    """
    file = path / "env.toml" if path.is_dir() else path
    tables = read(file)
    environment = Environment(file, _as_declared(tables))
    if not environment.profiles:
        raise ArtifactError(f"{file}: holds no profile. Add a table with an executor.")
    problems: list[str] = []
    warnings = [f"{k}: is no table, so nothing reads it" for k, v in tables.items() if not isinstance(v, dict)]
    warnings += [f"{where} holds a secret in clear; write ${{oc.env:NAME}}" for where in _secrets(tables)]
    rows = []
    parents = {str(t.get("extends")) for t in tables.values() if isinstance(t, dict)}
    for name in environment.profiles:
        try:
            values = environment.profile(name)
        except ProfileError as e:
            problems.append(str(e).removeprefix(f"{file}: "))
            continue
        extends, image = tables[name].get("extends"), values.get("container_image") or values.get("container")
        gpus = values.get("gpus_per_node", values.get("gpus"))
        row = {"profile": name, "extends": extends, "executor": values.get("executor"), "nodes": values.get("nodes")}
        rows.append({**row, "gpus": gpus, "image": image})
        if "executor" not in values:
            if name not in parents:
                warnings.append(f"{name}: names no executor, so nothing can run on it")
            continue
        refused, warned = _check(environment, name, values)
        problems += refused
        warnings += warned
    if problems:
        more = f"\n... and {len(problems) - _SHOWN} more." if len(problems) > _SHOWN else ""
        raise ArtifactError("\n".join(f"{file}: {p}" for p in problems[:_SHOWN]) + more)
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

    tables: dict[str, Any] = read_toml(path / "env.toml" if path.is_dir() else path, error=ArtifactError)
    return tables


def _check(environment: Environment, name: str, values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Problems and warnings of one profile: what its target says of the keys, then the guardrails."""
    from nemotron_dagster.config.guardrails import check_profile
    from nemotron_dagster.jobs.target import settings_of
    from nemotron_dagster.project import find_project

    project = find_project()
    try:
        settings_of(project, str(values["executor"]), values, f"profile {name!r}")
    except ProfileError as e:
        return [str(e)], []
    findings = check_profile(project, environment, name)
    told = {level: [f"{f.profile}: {f.key}: {f.message}" for f in findings if f.level == level] for level in _LEVELS}
    return told["error"], told["warning"]


_LEVELS = ("error", "warning")


def _as_declared(value: Any) -> Any:
    """The tables with ``${oc.env:NAME,default}`` reading as ``default``, and as 1 where there is none.

    1 is text, a number and a truth value, so it passes wherever something must be said.
    """
    from omegaconf import OmegaConf

    if isinstance(value, dict):
        return {k: _as_declared(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_as_declared(v) for v in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    OmegaConf.register_new_resolver("nemotron.declared", _declared, replace=True)
    return _VARIABLE.sub("${nemotron.declared:", value)


def _declared(name: str, default: Any = "1") -> str | None:
    return None if default is None else str(default)


def _secrets(value: Any, where: str = "") -> Iterator[str]:
    """Dotted keys that hold a secret as it is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            at = f"{where}.{key}" if where else str(key)
            if isinstance(inner, str) and is_secret(str(key)) and inner and not inner.startswith("${"):
                yield at
            elif key != "secret_vars":  # names of secrets
                yield from _secrets(inner, at)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _secrets(inner, f"{where}[{i}]")
