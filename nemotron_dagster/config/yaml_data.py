"""YAML text as plain data with the position of every key, read as OmegaConf reads it.

``1e-5`` is a float, dates are text, a key that is there twice is refused. The data is built from the parser's events,
so that a document that nests too deep or expands without end is refused where it does, before it is built; PyYAML's
own composer recurses, and would overflow the stack of the process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from nemotron_dagster.files import MAX_DEPTH, printable

MAX_NODES = 100_000

_TAG = "tag:yaml.org,2002:"
_TEXT = (f"{_TAG}str", f"{_TAG}merge", f"{_TAG}value")
#: What YAML forbids in a text, and lone surrogates, which no UTF-8 has.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: Numbers like 1e-5, which YAML 1.1 reads as text.
_FLOAT = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")

At = tuple[int, int]
#: For every mapping and list of the data (by id) the line and column of each key or item.
Marks = dict[int, dict[Any, At]]


class YamlProblem(Exception):
    """Something wrong in a YAML text, at a line and column that count from 1."""

    def __init__(self, at: At, text: str) -> None:
        super().__init__(text)
        self.line, self.column = at


def parse(text: str) -> tuple[Any, Marks]:
    """The data, and where its keys and items stand.

    Raises:
        YamlProblem: malformed, a duplicate key, a tag other than plain data's, or too deep or wide.
    """
    import yaml

    forbidden = _FORBIDDEN.search(text)
    if forbidden:
        at = _line_column(text, forbidden.start())
        raise YamlProblem(at, f"character U+{ord(forbidden[0]):04X} is not allowed; remove it")
    loader = _loader_class()(text)
    try:
        return _Builder(loader).document()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise YamlProblem(at, _explained(text, at, e)) from e
    except yaml.YAMLError as e:
        raise YamlProblem(_line_column(text, getattr(e, "position", 0) or 0), " ".join(str(e).split())) from e
    finally:
        loader.dispose()


@cache
def _loader_class() -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader: Any = type("_Loader", (base,), {})
    loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789"))
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
        for first, resolvers in loader.yaml_implicit_resolvers.items()
    }
    return loader


def _line_column(text: str, offset: int) -> At:
    breaks = list(_LINE_BREAK.finditer(text, 0, offset))
    return len(breaks) + 1, offset - (breaks[-1].end() if breaks else 0) + 1


def _explained(text: str, at: At, error: Any) -> str:
    """The parser's complaint, with what it usually means where that is not plain."""
    lines = _LINE_BREAK.split(text)
    character = lines[at[0] - 1][at[1] - 1 : at[1]] if at[0] <= len(lines) else ""
    problem = str(error.problem or error)
    if "cannot start any token" in problem:
        tab = "a tab cannot indent or start a value; use spaces"
        return tab if character == "\t" else f"{character!r} cannot start a value; quote it"
    if error.context and error.context_mark:
        problem += f" ({error.context} that starts at line {error.context_mark.line + 1})"
    return problem


@dataclass
class _Open:
    """A mapping or list whose end has not come yet."""

    mapping: bool
    at: At
    anchor: str | None
    value: Any
    entries: dict[Any, At] = field(default_factory=dict)
    spelled: set[str] = field(default_factory=set)
    merges: list[Any] = field(default_factory=list)
    key: Any = None
    has_key: bool = False
    is_merge: bool = False
    weight: int = 1
    height: int = 1

    @property
    def wants_key(self) -> bool:
        return self.mapping and not self.has_key


class _Builder:
    """Plain data from the events of one document, without recursion."""

    def __init__(self, loader: Any) -> None:
        from yaml import ScalarNode

        self.loader, self.node = loader, ScalarNode
        self.marks: Marks = {}
        self.stack: list[_Open] = []
        self.root: list[Any] = []
        self.anchors: dict[str, tuple[Any, int, int]] = {}  # value, nodes, levels
        self.total = 0
        self.readers = {
            f"{_TAG}null": lambda node: None,
            f"{_TAG}bool": loader.construct_yaml_bool,
            f"{_TAG}int": loader.construct_yaml_int,
            f"{_TAG}float": loader.construct_yaml_float,
        }

    def document(self) -> tuple[Any, Marks]:
        from yaml import events

        while True:
            event = self.loader.get_event()
            kind = type(event)
            at = (event.start_mark.line + 1, event.start_mark.column + 1)
            if kind is events.ScalarEvent:
                self._scalar(event, at)
            elif kind is events.AliasEvent:
                self._alias(event.anchor, at)
            elif kind is events.MappingStartEvent or kind is events.SequenceStartEvent:
                self._open(event, kind is events.MappingStartEvent, at)
            elif kind is events.MappingEndEvent or kind is events.SequenceEndEvent:
                self._close()
            elif kind is events.DocumentStartEvent and self.root:
                raise YamlProblem(at, "a second document begins (`---`); keep one")
            elif kind is events.StreamEndEvent:
                return (self.root[0] if self.root else None), self.marks

    def _scalar(self, event: Any, at: At) -> None:
        tag, text = event.tag, event.value
        if tag is None or tag == "!":
            tag = self.loader.resolve(self.node, text, event.implicit)
        self._count(1, 0, at)
        value = text if tag in _TEXT else self._read(tag, text, at)
        self._name(event.anchor, at)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, 1, 0)
        merge = tag == f"{_TAG}merge" and bool(self.stack) and self.stack[-1].wants_key
        self._add(value, at, 1, 0, merge)

    def _read(self, tag: str, text: str, at: At) -> Any:
        if tag not in self.readers:
            raise YamlProblem(at, f"tag {_short(tag)} is not supported here; write plain data")
        try:
            return self.readers[tag](self.node(tag, text))
        except (ValueError, KeyError, IndexError, OverflowError) as e:
            raise YamlProblem(at, f"{printable(text, 80)!r} is no {_short(tag)}; quote it if it is text") from e

    def _alias(self, anchor: str, at: At) -> None:
        if anchor not in self.anchors:
            inside = any(o.anchor == anchor for o in self.stack)
            what = "contains itself" if inside else "is used, but not defined before"
            raise YamlProblem(at, f"anchor {printable(anchor, 80)!r} {what}")
        value, weight, height = self.anchors[anchor]
        if isinstance(value, (dict, list)):
            self._no_collection_as_key(at)
        self._count(weight, height, at)
        self._add(value, at, weight, height)

    def _open(self, event: Any, mapping: bool, at: At) -> None:
        self._no_collection_as_key(at)
        if event.tag not in (None, "!", f"{_TAG}{'map' if mapping else 'seq'}"):
            raise YamlProblem(at, f"tag {_short(event.tag)} is not supported here; write plain data")
        self._count(1, 1, at)
        self._name(event.anchor, at)
        self.stack.append(_Open(mapping, at, event.anchor, {} if mapping else []))

    def _close(self) -> None:
        top = self.stack.pop()
        value, entries = top.value, top.entries
        if top.merges:  # what `<<` brings comes first and loses
            whole: dict[Any, Any] = {}
            where: dict[Any, At] = {}
            for source in top.merges:
                whole |= {k: v for k, v in source.items() if k not in value}
                where |= self.marks[id(source)]
            value, entries = whole | value, where | entries
        self.marks[id(value)] = entries
        if top.anchor is not None:
            self.anchors[top.anchor] = (value, top.weight, top.height)
        self._add(value, top.at, top.weight, top.height)

    def _add(self, value: Any, at: At, weight: int, height: int, merge: bool = False) -> None:
        if not self.stack:
            self.root.append(value)
            return
        top = self.stack[-1]
        top.weight, top.height = top.weight + weight, max(top.height, height + 1)
        if not top.mapping:
            top.entries[len(top.value)] = at
            top.value.append(value)
        elif not top.has_key:
            top.key, top.has_key, top.is_merge = value, True, merge
            if not merge:
                _check_key(top, value, at)
                top.entries[value] = at
        else:
            top.has_key = False
            if top.is_merge:
                top.merges += _merged(value, at)
            else:
                top.value[top.key] = value

    def _count(self, weight: int, height: int, at: At) -> None:
        self.total += weight
        if self.total > MAX_NODES:
            raise YamlProblem(at, f"more than {MAX_NODES:,} values (an alias counts as what it stands for)")
        if len(self.stack) + height > MAX_DEPTH:
            raise YamlProblem(at, f"nests deeper than {MAX_DEPTH} levels")

    def _name(self, anchor: str | None, at: At) -> None:
        if anchor is not None and (anchor in self.anchors or any(o.anchor == anchor for o in self.stack)):
            raise YamlProblem(at, f"anchor {printable(anchor, 80)!r} is defined twice")

    def _no_collection_as_key(self, at: At) -> None:
        if self.stack and self.stack[-1].wants_key:
            raise YamlProblem(at, "a mapping or list cannot be a key; quote it if it is text")


def _check_key(top: _Open, key: Any, at: At) -> None:
    if key is None:
        raise YamlProblem(at, "an empty or null key; quote it if it is text")
    if key in top.entries or str(key) in top.spelled:
        raise YamlProblem(at, f"duplicate key {printable(key, 80)!r}; keep one of the two")
    top.spelled.add(str(key))


def _merged(value: Any, at: At) -> list[Any]:
    """The mappings that one ``<<`` names, those that win last."""
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(m, dict) for m in found):
        raise YamlProblem(at, "`<<` takes a mapping or a list of mappings")
    return found[::-1]


def _short(tag: str) -> str:
    return printable(tag.replace(_TAG, "!!"), 80)
