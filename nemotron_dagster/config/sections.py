"""The system sections of ``env.toml``: what they may hold, and what is wrong with a file's top level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_dagster.errors import did_you_mean


@dataclass(frozen=True)
class Key:
    """One key of a system section."""

    types: tuple[type, ...]
    description: str
    keys: Mapping[str, Key] | None = None


_TEXT = (str,)
SECTIONS: Mapping[str, Mapping[str, Key]] = {
    "wandb": {
        "project": Key(_TEXT, "W&B project; the job gets it as WANDB_PROJECT."),
        "entity": Key(_TEXT, "W&B entity or team (WANDB_ENTITY)."),
        "run_name": Key(_TEXT, "Name of the W&B run (WANDB_NAME); default: the step's."),
        "name": Key(_TEXT, "The same as run_name; run_name wins."),
        "group": Key(_TEXT, "Group of the W&B run (WANDB_RUN_GROUP)."),
        "job_type": Key(_TEXT, "Job type of the W&B run (WANDB_JOB_TYPE); default: the step's."),
        "tags": Key((str, list), "Tags of the W&B run (WANDB_TAGS)."),
        "notes": Key(_TEXT, "Notes of the W&B run."),
    },
    "cli": {"theme": Key(_TEXT, "Accepted and not used: configs are printed as plain text.")},
    "cache": {"git_dir": Key(_TEXT, "Accepted and not used: targets clone ${auto_mount:...} where the job runs.")},
    "artifacts": {
        "root": Key(_TEXT, "Where artifacts are kept; default: artifacts/ in the project's state."),
        "backend": Key(_TEXT, "Accepted and not used: the reference documents it, but never reads it."),
        "wandb": Key((bool, dict), "Whether artifacts are also logged to W&B, or a table with its settings."),
        "manifest": Key((dict,), "The reference's manifest registry.", {"root": Key(_TEXT, "Root of the registry.")}),
    },
}
RESERVED = tuple(SECTIONS)
_TOML_NAMES = {str: "text", list: "a list", dict: "a table", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True)
class Problem:
    """What is wrong, and the key path in the file where it stands."""

    path: tuple[str, ...]
    message: str


def kind(value: Any) -> str:
    """What a TOML value is, in words."""
    return _TOML_NAMES.get(type(value), f"a TOML {type(value).__name__}")


def problems(tables: Mapping[str, Any]) -> Iterator[Problem]:
    """Everything wrong with the top level and the system sections of a parsed env.toml."""
    for name, value in tables.items():
        if not isinstance(value, Mapping):
            what = "a list of tables" if isinstance(value, list) and value else kind(value)
            yield Problem(
                (name,),
                f"{name} is {what}; env.toml holds only tables. Write [{name}] for a profile, "
                "or move the key below the profile that it belongs to.",
            )
        elif name in SECTIONS:
            if {"executor", "extends"} & set(value):
                yield Problem(
                    (name,), f"[{name}] is a system section and cannot be a profile. Give the profile another name."
                )
            else:
                yield from _keys((name,), value, SECTIONS[name])


def _keys(path: tuple[str, ...], table: Mapping[str, Any], known: Mapping[str, Key]) -> Iterator[Problem]:
    section = ".".join(path)
    for name, value in table.items():
        key = known.get(name)
        if key is None:
            hint = did_you_mean(name, known)
            yield Problem(
                (*path, name),
                f"unknown key {name!r} in [{section}].{hint} Keys: {', '.join(known)}. Rename or remove it.",
            )
        elif not isinstance(value, key.types) and not (isinstance(value, str) and value.startswith("${")):
            wanted = " or ".join(_TOML_NAMES[t] for t in key.types)
            yield Problem((*path, name), f"[{section}] {name} is {kind(value)}. Give it {wanted}.")
        elif key.keys is not None and isinstance(value, Mapping):
            yield from _keys((*path, name), value, key.keys)
