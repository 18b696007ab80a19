# /// script
# [tool.runspec]
# schema = "1"
# name = "steps/env/env_toml"
#
# [tool.runspec.run]
# launch = "python"
#
# [tool.runspec.config]
# dir = "./config"
# default = "lepton"
# format = "omegaconf"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
# ///
"""Render a set of execution profiles as an env TOML file and check it."""

from __future__ import annotations

import difflib
import math
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path[:0] = [str(p) for p in Path(__file__).resolve().parents if (p / "_runtime").is_dir()]

import tomli_w  # noqa: E402
from _runtime import payload  # noqa: E402

RESERVED = ("wandb", "cli", "cache", "artifacts")  # system sections: no profiles
LITERAL = ("sections", "preamble")  # their ${...} are resolved by whoever reads the file
_CHECKS = ("required_profiles", "recommended_min_nodes")


def main(cfg: dict[str, Any]) -> None:
    """Write ``cfg["sections"]`` to ``cfg["output_path"]``.

    Raises:
        PayloadError: a section, a value, an ``extends`` or a check is wrong, or the file is there already.
    """
    text = render(cfg.get("sections"), cfg.get("preamble"))
    tables = tomllib.loads(text)
    profiles = {name: table for name, table in tables.items() if name not in RESERVED and isinstance(table, dict)}
    check_parents(profiles)
    warnings = check_wanted(profiles, cfg.get("checks") or {})
    path = Path(str(cfg.get("output_path") or "env.lepton.toml")).expanduser()
    write(path, text, force=cfg.get("force") is True)
    if not os.environ.get("NEMOTRON_MESSAGES"):  # else the engine tells, when it has put the file where it belongs
        for warning in warnings:
            print(f"Warning: {warning}", file=sys.stderr)
        print(f"Wrote {path} with {len(profiles)} profile section(s)", flush=True)
    payload.result(profiles=len(profiles), warnings=warnings)


def render(sections: Any, preamble: Any = None) -> str:
    """The file's text: ``preamble`` as it stands, then one table per section, in order; null values are left out.

    Raises:
        PayloadError: naming the section and key that TOML cannot hold.
    """
    if not isinstance(sections, dict) or not sections:
        raise _wrong("sections", "must be a mapping of at least one section", "Name a profile and its keys.")
    tables = {}
    for name, table in sections.items():
        if table is None:
            continue
        if not isinstance(table, dict):
            raise _wrong(f"sections.{name}", f"is {table!r}, no mapping", "Write `key: value` lines below it.")
        tables[_name(name, "sections")] = _plain(table, f"sections.{name}")
    if not isinstance(preamble, str | None):
        raise _wrong("preamble", f"is {preamble!r}, no text", "Write comment lines.")
    head = (preamble or "").rstrip()
    text = f"{head}\n\n" * bool(head) + tomli_w.dumps(tables)
    _encoded(text, "preamble")
    try:
        if {k: v for k, v in tomllib.loads(text).items() if k in tables} == tables or _not_a_number(tables):
            return text
        problem = "it changes a section"
    except tomllib.TOMLDecodeError as e:
        problem = str(e)
    raise _wrong("preamble", f"is no TOML ahead of the sections: {problem}", "Begin its lines with #.")


def _plain(value: Any, where: str) -> Any:
    """``value`` without nulls, all of it of types that TOML has."""
    if isinstance(value, dict):
        return {_name(k, where): _plain(v, f"{where}.{k}") for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, str):
        _encoded(value, where)
    elif isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            raise _wrong(where, f"{value} is beyond the 64 bits of TOML", "Write it as text, in quotes.")
    elif not isinstance(value, bool | float):
        kind = "null in a list" if value is None else f"of type {type(value).__name__}"
        raise _wrong(where, f"is {kind}, which TOML does not have", "Write text, a number, true or false.")
    return value


def _name(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise _wrong(where, f"key {key!r} is of type {type(key).__name__}, not text", "Put it in quotes.")
    _encoded(key, where)
    return key


def _encoded(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise _wrong(where, f"holds half a character at {e.start}, which UTF-8 cannot hold", "Remove it.") from e


def _not_a_number(value: Any) -> bool:
    """Whether there is a nan in it: it is not equal to itself, however well it was written."""
    if isinstance(value, dict | list):
        return any(_not_a_number(v) for v in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and math.isnan(value)


def check_parents(profiles: Mapping[str, Mapping[str, Any]]) -> None:
    """Follow every ``extends`` to its end.

    Raises:
        PayloadError: one names no profile, is no name, or leads back to its own profile.
    """
    for name in profiles:
        chain = [name]
        while (parent := profiles[chain[-1]].get("extends")) is not None:
            at = f"profile {chain[-1]!r}"
            if not isinstance(parent, str):
                raise _parent(f"{at}: extends is {parent!r}, not the name of one profile")
            if parent not in profiles:
                raise _parent(f"{at} extends missing profile {parent!r}.{_close(parent, profiles)}")
            if parent in chain:
                circle = " -> ".join([*chain[chain.index(parent) :], parent])
                raise _parent(f"profiles extend each other in a circle: {circle}")
            chain.append(parent)


def check_wanted(profiles: Mapping[str, Mapping[str, Any]], checks: Any) -> list[str]:
    """Hold the profiles against the config's ``checks``; the warnings.

    Raises:
        PayloadError: a required profile is missing, or a check is malformed.
    """
    if not isinstance(checks, dict):
        raise _wrong("checks", f"is {checks!r}, no mapping", f"Its keys are {', '.join(_CHECKS)}.")
    for key in checks:
        if key not in _CHECKS:
            raise _wrong(f"checks.{key}", f"is no check.{_close(str(key), _CHECKS)}", f"Checks: {', '.join(_CHECKS)}.")
    required = checks.get("required_profiles") or []
    if not isinstance(required, list):
        raise _wrong("checks.required_profiles", f"is {required!r}, no list", "List names of profiles.")
    missing = [f"{name}{_close(str(name), profiles)}" for name in required if name not in profiles]
    if missing:
        raise payload.PayloadError(
            "missing_required_profile",
            f"missing required profile(s): {', '.join(missing)}",
            "Add them below `sections`, or take their names from checks.required_profiles.",
        )
    least = checks.get("recommended_min_nodes") or {}
    if not isinstance(least, dict):
        raise _wrong("checks.recommended_min_nodes", f"is {least!r}, no mapping", "Write `profile: nodes` lines.")
    warnings = []
    for name, count in least.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise _wrong(f"checks.recommended_min_nodes.{name}", f"is {count!r}, no number", "Write a number of nodes.")
        if name not in profiles:
            warnings.append(f"checks.recommended_min_nodes names {name}, which is no profile.{_close(name, profiles)}")
            continue
        nodes = _inherited(profiles, name, "nodes")
        if isinstance(nodes, int) and nodes < count:  # a placeholder is anybody's guess
            warnings.append(f"{name} uses nodes={nodes}; recommended minimum is {count}")
    return warnings


def _inherited(profiles: Mapping[str, Mapping[str, Any]], name: str | None, key: str) -> Any:
    while name is not None:
        if key in profiles[name]:
            return profiles[name][key]
        name = profiles[name].get("extends")
    return None


def write(path: Path, text: str, force: bool) -> None:
    """Write the file; one that is there only with ``force``, and then in one step.

    Raises:
        PayloadError: the file is there, or cannot be written.
    """
    try:
        real = path.resolve() if force else path
        real.parent.mkdir(parents=True, exist_ok=True)
        target = real.with_name(f".{real.name[:200]}.{os.getpid()}.tmp") if force else real
        with open(target, "xb") as out:
            out.write(text.encode())
        if force:
            os.replace(target, real)
    except FileExistsError as e:
        raise _wrong("output_path", f"{path} already exists", "Set force=true to overwrite it.") from e
    except (OSError, RuntimeError) as e:
        raise _wrong("output_path", f"{path} cannot be written: {e}", "Name another file.") from e


def _close(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""


def _wrong(key: str, problem: str, recovery: str) -> payload.PayloadError:
    return payload.PayloadError("config_invalid", f"{key}: {problem}", recovery)


def _parent(message: str) -> payload.PayloadError:
    return payload.PayloadError("missing_parent_profile", message)


if __name__ == "__main__":
    payload.run(main, Path(__file__).parent / "config" / "lepton.yaml", literal=LITERAL)
