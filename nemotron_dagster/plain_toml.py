"""Read the TOML that manifests are made of fast: one regular expression per line.

``tomllib`` goes through a file character by character, which is most of the time of listing a large catalog. What
``plain`` does not recognise, be it unusual or wrong, it leaves to ``tomllib`` as a whole.
"""

from __future__ import annotations

import re
from typing import Any

_TEXT = r'[^"\\\x00-\x1f\x7f]*+'
_INT = r"(?:0|[1-9][0-9]{0,17}+)(?![0-9_])"
_LINE = re.compile(
    rf"""
    [ \t]*+
    (?:
        \[\[(?P<array>[A-Za-z0-9_-]++)\]\]
      | \[(?P<table>[A-Za-z0-9_.-]++)\]
      | (?P<key>[A-Za-z0-9_-]++)[ \t]*+=[ \t]*+
        (?:
            "(?P<text>{_TEXT})"(?!")
          | \"""\n?+(?P<lines>(?:[^"\\\x00-\x08\x0b-\x1f\x7f]|"(?!""))*+)\"""(?!")
          | (?P<bool>true|false)
          | (?P<float>{_INT}(?:\.[0-9]++(?:[eE][+-]?+[0-9]++)?+|[eE][+-]?+[0-9]++))
          | (?P<int>{_INT})
          | \[(?P<ints>[ ]*+{_INT}(?:,[ ]*+{_INT})*+)\]
          | \[(?P<list>[ \t\n]*+(?:"{_TEXT}"[ \t\n]*+(?:,[ \t\n]*+"{_TEXT}"[ \t\n]*+)*+,?+[ \t\n]*+)?+)\]
        )
    )?+
    [ \t]*+(?:\#[^\x00-\x08\n-\x1f\x7f]*+)?+(?:\n|\Z)
    """,
    re.VERBOSE,
)
_DEEPEST = 8  # parts of a table's name
_TEXTS = ("text", "lines")
_ITEM = re.compile(r'"([^"]*+)"')


def plain(text: str) -> dict[str, Any] | None:
    """What ``tomllib.loads`` returns, or None where ``text`` is not valid, or is more than plain tables and values."""
    root: dict[str, Any] = {}
    arrays: set[str] = set()
    table, at, end, match = root, 0, len(text), _LINE.match
    while at < end:
        line = match(text, at)
        if line is None:
            return None
        at = line.end()
        kind = line.lastgroup
        if kind is None:  # blank, or a comment
            continue
        key = line["key"]
        if key is not None:
            if key in table:
                return None
            value = line[kind]
            table[key] = value if kind in _TEXTS else _value(kind, value)
        elif kind == "array":
            name = line[kind]
            if name in root and name not in arrays:
                return None
            arrays.add(name)
            table = {}
            root.setdefault(name, []).append(table)
        else:
            opened = _open(root, line[kind].split("."))
            if opened is None:
                return None
            table = opened
    return root


def _value(kind: str, text: str) -> Any:
    if kind == "list":
        return _ITEM.findall(text)
    if kind == "bool":
        return text == "true"
    if kind == "ints":
        return [int(n) for n in text.split(",")]
    return int(text) if kind == "int" else float(text)


def _open(root: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    """A new table at ``path``, or None where something is there already or in the way."""
    if len(path) > _DEEPEST:
        return None
    node: Any = root
    for part in path[:-1]:
        node = node.setdefault(part, {}) if part else None
        if not isinstance(node, dict):
            return None
    if not path[-1] or path[-1] in node:
        return None
    table: dict[str, Any] = {}
    node[path[-1]] = table
    return table
