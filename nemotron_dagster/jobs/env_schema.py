"""The JSON Schema of ``env.toml``, and its keys as Markdown: both from the targets' ``Settings``.

Editors read the schema (taplo, Even Better TOML), so it keeps to draft 7 and to ``anyOf``: they complete and explain
keys below ``properties`` and ``anyOf``, not below ``if``. Whatever is no text may also be an interpolation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemotron_dagster.config.sections import SECTIONS, Key
from nemotron_dagster.project import Project

if TYPE_CHECKING:
    from pydantic import BaseModel

_EXTENDS = {"type": "string", "description": "Profile whose keys this one starts from; tables merge, lists replace."}
#: Also accepted where no text is: an interpolation, and the empty text, which means "not set".
_REFERENCE = {"type": "string", "pattern": r"^$|\$\{.+\}"}
_NUMERAL = {"type": "string", "pattern": r"^$|^\s*[0-9]+\s*$|\$\{.+\}"}
#: pydantic leaves its own words where a validator runs before the constraint.
_CONSTRAINTS = {"ge": "minimum", "le": "maximum", "min_length": "minLength", "max_length": "maxLength"}
_TYPES = {str: "string", list: "array", bool: "boolean", dict: "object"}
_IN_WORDS = {
    "integer": "number", "number": "number", "string": "text", "boolean": "true or false", "object": "table",
    "array": "list",
}  # fmt: skip


def env_schema(project: Project) -> dict[str, Any]:
    """The schema of an env.toml whose profiles may use any target of the project.

    Raises:
        ProfileError: a module of ``resources/`` cannot be loaded.
    """
    models = _models(project)
    keys = {name: _keys(model) for name, model in models.items()}
    union: dict[str, list[Any]] = {}
    for properties in keys.values():
        for key, schema in properties.items():
            if schema not in union.setdefault(key, []):
                union[key].append(schema)
    shared = {k: v[0] if len(v) == 1 else {"anyOf": v, "description": v[0]["description"]} for k, v in union.items()}
    shared["executor"] = {**_REFERENCE, "description": "The target; inherited where a profile does not name it."}
    definitions: dict[str, Any] = {}
    for name, properties in keys.items():
        executor = {"type": "string", "enum": [name], "description": "The target: a module of resources/."}
        definitions[name] = _table({**properties, "executor": executor}, models[name].__doc__, ["executor"])
    definitions["inherited"] = _table(shared, "A profile that takes its executor from the one it extends.", [])
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "env.toml",
        "description": "Profiles (named targets and their settings) and system sections.",
        "type": "object",
        "properties": {name: _section(section) for name, section in SECTIONS.items()},
        "additionalProperties": {"anyOf": [{"$ref": f"#/definitions/{name}"} for name in definitions]},
        "definitions": definitions,
    }


def schema_text(project: Project) -> str:
    """The schema as it is kept in ``env/env.schema.json``."""
    return json.dumps(env_schema(project), indent=2, ensure_ascii=False) + "\n"


def key_tables(project: Project) -> str:
    """Markdown: the keys that every target has, those of each one, and those of the system sections."""
    from nemotron_dagster.jobs.settings import CommonSettings

    models = _models(project)
    common = _keys(CommonSettings)
    parts = ["### Every executor", _rows({"extends": _EXTENDS, **common}, {})]
    for name, model in models.items():
        own = {k: v for k, v in _keys(model).items() if k != "executor" and (k not in common or v != common[k])}
        parts += [f"### {name}", _rows(own, {n: f.default for n, f in model.model_fields.items()})]
    lines = ["### System sections", "| Section | Key | Type | Meaning |\n|---|---|---|---|"]
    lines[1] += "".join(f"\n| {row} |" for name, keys in SECTIONS.items() for row in _section_rows(name, keys))
    return "\n\n".join([*parts, *lines]) + "\n"


def _section_rows(name: str, keys: Mapping[str, Key]) -> list[str]:
    found: list[str] = []
    for key, what in keys.items():
        words = " or ".join(_IN_WORDS[_TYPES[t]] for t in what.types)
        inner = _section_rows(f"{name}.{key}", what.keys) if what.keys else []
        found += inner or [f"`[{name}]` | `{key}` | {words} | {what.description}"]
    return found


def _models(project: Project) -> dict[str, type[BaseModel]]:
    from nemotron_dagster.jobs.target import target_files, target_module

    return {name: target_module(project, name).Settings for name in sorted(target_files(project))}


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    """Key -> schema of a target's settings, in the order of the class."""
    found = model.model_json_schema(by_alias=True)["properties"]
    return {name: _property(found[name], model.model_fields[name]) for name in model.model_fields if name in found}


def _property(schema: Mapping[str, Any], field: Any) -> dict[str, Any]:
    description = str(schema.get("description", "")).strip()
    choices = [_clean(s) for s in schema.get("anyOf", [schema]) if s.get("type") != "null"]
    types = {c.get("type") for c in choices}
    numbers = any(getattr(m, "coerce_numbers_to_str", False) for m in field.metadata)
    if numbers and "string" in types:
        choices.append({"type": "number"})
    if not any(c.get("type") == "string" and "enum" not in c for c in choices):
        choices.append(_NUMERAL if "integer" in types else _REFERENCE)
    return {**(choices[0] if len(choices) == 1 else {"anyOf": choices}), "description": description}


def _clean(schema: Any) -> Any:
    """Without pydantic's titles and defaults, and with ``enum`` for the ``const`` that draft 4 lacks."""
    if isinstance(schema, list):
        return [_clean(s) for s in schema]
    if not isinstance(schema, Mapping):
        return schema
    dropped = ("title", "default", "description")
    kept = {_CONSTRAINTS.get(k, k): _clean(v) for k, v in schema.items() if k not in dropped}
    if "const" in kept:
        kept["enum"] = [kept.pop("const")]
    return kept


def _table(properties: Mapping[str, Any], description: str | None, required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": " ".join((description or "").split()),
        "properties": {"extends": _EXTENDS, **properties},
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _section(keys: Mapping[str, Key]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, key in keys.items():
        choices: list[Any] = [
            _section(key.keys) if key.keys is not None and t is dict else {"type": _TYPES[t]} for t in key.types
        ]
        if str not in key.types:
            choices.append(_REFERENCE)
        one = choices[0] if len(choices) == 1 else {"anyOf": choices}
        properties[name] = {**one, "description": key.description}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _rows(properties: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    lines = ["| Key | Type | Meaning |", "|---|---|---|"]
    for name, schema in properties.items():
        text = schema["description"]
        default = defaults.get(name)
        if default not in (None, "", (), {}) and "default" not in text.lower():
            text = f"{text.rstrip('.')}; default {json.dumps(default)}."
        lines.append(f"| `{name}` | {_in_words(schema)} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _in_words(schema: Mapping[str, Any]) -> str:
    found: list[str] = []
    for choice in schema.get("anyOf", [schema]):
        if choice in (_REFERENCE, _NUMERAL):
            continue
        word = _IN_WORDS[choice.get("type", "object")] if "enum" not in choice else ", ".join(map(str, choice["enum"]))
        if word == "list":
            word = f"list of {_in_words(choice['items']).replace(' or ', 's or ')}s"
        found.append(word)
    return " or ".join(dict.fromkeys(found))
