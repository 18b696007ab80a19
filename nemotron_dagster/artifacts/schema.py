"""The JSON Schema of ``artifact.json``, made from the dataclass: ``python -m nemotron_dagster.artifacts.schema``."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import MISSING, fields
from typing import Any

from nemotron_dagster.artifacts.manifest import SCHEMA, Manifest

_NAMES = {str: "string", int: "integer", dict: "object", list: "array", float: "number", bool: "boolean"}
#: What a Python type cannot say.
_ROW = {
    "type": "array",
    "prefixItems": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^([0-9a-f]{16}|-> .*)$"}],
    "minItems": 2,
    "maxItems": 2,
}
_DIGEST = {"pattern": "^([0-9a-f]{64})?$"}
_MORE: dict[str, dict[str, Any]] = {
    "files": {"additionalProperties": _ROW},
    "content": _DIGEST,
    "config_digest": _DIGEST,
    "code_digest": _DIGEST,
    "bytes": {"minimum": 0},
    "schema": {"minimum": 1, "maximum": SCHEMA},
    "inputs": {"items": {"type": "object", "required": ["port", "uri"]}},
}


def json_schema() -> dict[str, Any]:
    """The schema; keys that it does not name are allowed, as readers ignore them."""
    hints = typing.get_type_hints(Manifest)
    properties = {
        f.name: {"description": f.metadata["doc"], **_kind(hints[f.name]), **_MORE.get(f.name, {})}
        for f in fields(Manifest)
    }
    required = [f.name for f in fields(Manifest) if f.default is MISSING and f.default_factory is MISSING]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "artifact.json",
        "description": "Commit marker and description of an artifact.",
        "type": "object",
        "required": [*required, "files", "content", "bytes", "schema"],
        "properties": properties,
    }


def schema_text() -> str:
    return json.dumps(json_schema(), indent=2) + "\n"


def _kind(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return {"type": ["null" if a is type(None) else _NAMES[a] for a in arguments]}
    if origin is list:
        return {"type": "array", **({"items": _kind(arguments[0])} if arguments[0] is str else {})}
    if origin is dict:
        return {"type": "object", **({"additionalProperties": _kind(int)} if arguments[1] is int else {})}
    return {"type": _NAMES[hint]}


if __name__ == "__main__":
    print(schema_text(), end="")
