"""``env/guardrails.toml``: read, checked, and what it says of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from nemotron_dagster.errors import ConfigError, did_you_mean
from nemotron_dagster.project import Project
from nemotron_dagster.sizing.families import FAMILIES

_NUMBER, _TEXTS = (int, float), (list,)
_RULE_KEYS: Mapping[str, tuple[type, ...]] = {
    "steps": _TEXTS, "images": _TEXTS, "gpus": (str,), "nodes": _NUMBER, "recommended_nodes": _NUMBER,
    "max_nodes": _NUMBER, "nodes_of": _TEXTS, "gpus_of": _TEXTS, "parallel": _TEXTS, "cpus": _NUMBER,
    "recommended_cpus": _NUMBER, "cpus_of": _TEXTS, "memory_gb": _NUMBER, "shared_memory_mib": _NUMBER,
    "variables": _TEXTS, "memory": (str,),
}  # fmt: skip
_EXECUTOR_KEYS: Mapping[str, tuple[type, ...]] = {
    "required": _TEXTS, "recommended": _TEXTS, "ray_recommended": _TEXTS, "container": (str,), "storage": (dict,),
    "doubtful_minutes": _NUMBER, "one_node": (bool,),
}  # fmt: skip
_CHOICES = {
    "gpus": ("required", "none", "any"),
    "container": ("required", "recommended", "none"),
    "memory": tuple(FAMILIES),
}
#: Of a table that is no mapping of keys: what each of its entries is.
_TABLES: Mapping[str, Mapping[str, tuple[type, ...]] | type | tuple[type, ...]] = {
    "rule": _RULE_KEYS, "executor": _EXECUTOR_KEYS, "shapes": {"cpus": _NUMBER, "memory_gb": _NUMBER},
    "images": list, "placeholders": list, "gpus": (int, float),
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """The guardrails of a project, its own over the bundled ones."""

    data: Mapping[str, Any]

    def of_step(self, step_id: str) -> dict[str, Any]:
        """Every rule whose globs match, the later key by key over the earlier."""
        merged: dict[str, Any] = {}
        for rule in self.data.get("rule", {}).values():
            if any(fnmatchcase(step_id, glob) for glob in rule.get("steps", ())):
                merged |= {k: v for k, v in rule.items() if k != "steps"}
        return merged

    def of_executor(self, name: str) -> dict[str, Any]:
        return dict(self.data.get("executor", {}).get(name, {}))

    def table(self, name: str) -> dict[str, Any]:
        return dict(self.data.get(name, {}))


def load_rules(project: Project) -> Rules:
    """The bundled guardrails with those of the project's own ``env/guardrails.toml`` merged over them.

    Raises:
        ConfigError: a file is no valid TOML, or has a key or value that is none of a guardrail's.
    """
    from nemotron_dagster.config.profiles import merge_tables
    from nemotron_dagster.config.source import read_toml

    merged: dict[str, Any] = {}
    for folder in reversed(project.folders("env")):
        file = folder / "guardrails.toml"
        if file.exists():
            data = read_toml(file)
            _check(str(file), data)
            merged = merge_tables(merged, data)
    return Rules(merged)


def _check(file: str, data: Mapping[str, Any]) -> None:
    for table, content in data.items():
        if table not in _TABLES or not isinstance(content, Mapping):
            hint = did_you_mean(table, _TABLES)
            raise ConfigError(f"{file}: unknown [{table}].{hint} Tables: {', '.join(_TABLES)}.")
        keys = _TABLES[table]
        for name, entry in content.items():
            if not isinstance(keys, Mapping):
                if not isinstance(entry, keys) or isinstance(entry, bool):
                    what = "list. Write [...]" if keys is list else "number. Write GB"
                    raise ConfigError(f"{file}: [{table}] {name} is no {what}.")
                continue
            where = f"{file}: [{table}.{name}]"
            if not isinstance(entry, Mapping):
                raise ConfigError(f"{where} is no table. Write keys below it.")
            for key, value in entry.items():
                if key not in keys:
                    raise ConfigError(
                        f"{where}: unknown key {key!r}.{did_you_mean(key, keys)} Keys: {', '.join(keys)}."
                    )
                if not isinstance(value, keys[key]) or (isinstance(value, bool) and bool not in keys[key]):
                    wanted = " or ".join(t.__name__ for t in keys[key])
                    raise ConfigError(f"{where}: {key} = {value!r} is no {wanted}. Mend it.")
                if key in _CHOICES and value not in _CHOICES[key]:
                    raise ConfigError(f"{where}: {key} = {value!r}. Write one of {', '.join(_CHOICES[key])}.")
