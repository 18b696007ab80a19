"""What differs between two versions, by their manifests alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_dagster.artifacts.manifest import ArtifactRef

_ABSENT = None
_PLAIN = ("type", "producer", "config", "partition", "path", "tokenizer", "chat_template", "sequence_length")


def difference(a: ArtifactRef, b: ArtifactRef) -> dict[str, Any]:
    """Section -> what differs there; a section without differences is left out.

    ``about``, ``config``, ``inputs`` and ``figures`` map a name to its two values, ``code`` holds the two digests,
    ``files`` lists names that were added, removed or changed.
    """
    from nemotron_dagster.artifacts.describe import summary

    m, n = a.manifest, b.manifest
    found: dict[str, Any] = {
        "about": _pairs({k: getattr(m, k) for k in _PLAIN}, {k: getattr(n, k) for k in _PLAIN}),
        "config": _pairs(flat(m.settings), flat(n.settings)),
        "code": [m.code_digest, n.code_digest] if m.code_digest != n.code_digest else [],
        "inputs": _pairs(_inputs(m.inputs), _inputs(n.inputs)),
        "figures": _pairs(summary(a), summary(b)),
        "files": {
            "added": [f for f in n.files if f not in m.files],
            "removed": [f for f in m.files if f not in n.files],
            "changed": [f for f, row in m.files.items() if f in n.files and n.files[f] != row],
        },
    }
    if not found["config"] and m.config_digest != n.config_digest and not (m.settings and n.settings):
        found["config"] = {"(digest; one of them does not tell its settings)": [m.config_digest, n.config_digest]}
    if not any(found["files"].values()):
        found["files"] = {}
    return {section: value for section, value in found.items() if value}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested config as dotted keys; lists count as one value."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        out |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return out


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = list(dict.fromkeys([*a, *b]))
    return {k: [a.get(k, _ABSENT), b.get(k, _ABSENT)] for k in names if (k in a) != (k in b) or a.get(k) != b.get(k)}


def _inputs(entries: list[dict[str, Any]]) -> dict[str, str]:
    """Port -> what it read: the content decides, so an input that was only published anew is none that differs."""
    found = {}
    for entry in entries:
        named = "/".join(entry.get("asset") or []) or str(entry.get("uri"))
        found[str(entry.get("port"))] = f"{named} {str(entry.get('content') or '')[:12]}".strip()
    return found
