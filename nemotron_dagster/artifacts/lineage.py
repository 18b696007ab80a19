"""What artifacts were made from, and what was made from them: found by digest over all manifests of a root."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nemotron_dagster.artifacts.inventory import Inventory, Version


@dataclass(frozen=True)
class Edge:
    """``source`` is the id of what ``target`` (a version) read through ``port``."""

    source: str
    target: str
    port: str


@dataclass(frozen=True)
class Node:
    """A version, or an input that is none of the root's: given by the user, or gone."""

    id: str
    label: str
    type: str = ""
    kind: str = "artifact"  # artifact | external | gone
    created: str = ""
    current: bool = False


@dataclass(frozen=True)
class Graph:
    """``start`` and what is up or down from it; every version once."""

    start: str
    nodes: dict[str, Node]
    edges: tuple[Edge, ...]

    def sources(self, node: str) -> list[Edge]:
        return [e for e in self.edges if e.target == node]

    def consumers(self, node: str) -> list[Edge]:
        return [e for e in self.edges if e.source == node]


def graph(inventory: Inventory, start: Version, up: bool = True, down: bool = True) -> Graph:
    """The lineage of ``start``; ``start`` need not lie below the inventory's root."""
    nodes = {start.uri: _node(start)}
    edges: dict[Edge, None] = {}
    if up:
        pending, seen = [start], {start.uri}
        while pending:
            version = pending.pop()
            for edge, node, source in _inputs(inventory, version):
                nodes.setdefault(node.id, node)
                edges[edge] = None
                if source is not None and source.uri not in seen:
                    seen.add(source.uri)
                    pending.append(source)
    if down:
        readers: dict[str, list[tuple[Edge, Version]]] = {}
        for version in inventory.versions:
            for edge, _, source in _inputs(inventory, version):
                if source is not None:
                    readers.setdefault(source.uri, []).append((edge, version))
        pending, seen = [start], {start.uri}
        while pending:
            for edge, reader in readers.get(pending.pop().uri, ()):
                nodes.setdefault(reader.uri, _node(reader))
                edges[edge] = None
                if reader.uri not in seen:
                    seen.add(reader.uri)
                    pending.append(reader)
    return Graph(start.uri, nodes, tuple(edges))


def _inputs(inventory: Inventory, version: Version) -> Iterator[tuple[Edge, Node, Version | None]]:
    for entry in version.ref.manifest.inputs if version.ref else ():
        uri, port = str(entry.get("uri", "")), str(entry.get("port", ""))
        source = None if entry.get("external") else inventory.source(entry)
        if source is not None:
            node = _node(source)
        elif entry.get("external"):
            node = Node(uri, uri, "", "external")
        else:
            label = f"{'/'.join(entry.get('asset') or [])}@{uri.rpartition('/')[2]}"
            node = Node(str(entry.get("manifest") or uri), label, str(entry.get("type", "")), "gone")
        yield Edge(node.id, version.uri, port), node, source


def _node(version: Version) -> Node:
    kind = version.ref.type if version.ref else "?"
    return Node(version.uri, version.label, kind, "artifact", version.created, version.current)


def as_data(found: Graph) -> dict[str, Any]:
    """For JSON."""
    return {
        "start": found.start,
        "nodes": [vars(n) for n in found.nodes.values()],
        "edges": [{"from": e.source, "to": e.target, "port": e.port} for e in found.edges],
    }


def as_mermaid(found: Graph) -> str:
    """A flow chart, inputs at the top, that a Markdown page can show."""
    ids = {node: f"n{i}" for i, node in enumerate(found.nodes)}
    lines = ["flowchart TD"]
    for node in found.nodes.values():
        text = _quoted(node.label + (f"<br/>{node.type}" if node.type else "") + _remark(node))
        left, right = ("[/", "/]") if node.kind == "external" else ("[", "]")
        lines.append(f'    {ids[node.id]}{left}"{text}"{right}')
    lines += [f'    {ids[e.source]} -->|"{_quoted(e.port)}"| {ids[e.target]}' for e in found.edges]
    lines.append(f"    style {ids[found.start]} stroke-width:3px")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("\n", " ")


def _remark(node: Node) -> str:
    return {"gone": " (gone)", "external": " (given)"}.get(node.kind, "")


def as_tree(found: Graph, up: bool, down: bool) -> list[str]:
    """Text: inputs as one tree, consumers as another; what came before in the tree is not unfolded again."""
    start = found.nodes[found.start]
    lines = [_line(start, "")]
    for wanted, title, next_ in ((up, "made from", found.sources), (down, "used by", found.consumers)):
        if wanted:
            below = list(_branches(found, found.start, next_, "  ", {found.start}))
            lines += [f"{title}:", *(below or ["  nothing in this root" if title == "used by" else "  no inputs"])]
    return lines


def _branches(found: Graph, node: str, next_: Any, indent: str, seen: set[str]) -> Iterator[str]:
    edges = next_(node)
    for i, edge in enumerate(edges):
        other = edge.source if edge.target == node else edge.target
        last = i == len(edges) - 1
        again = other in seen and bool(next_(other))
        line = _line(found.nodes[other], edge.port) + (" (see above)" if again else "")
        yield f"{indent}{'└─ ' if last else '├─ '}{line}"
        if other not in seen:
            seen.add(other)
            yield from _branches(found, other, next_, indent + ("   " if last else "│  "), seen)


def _line(node: Node, port: str) -> str:
    more = "  ".join(filter(None, [node.type, node.created, "current" if node.current else ""]))
    return f"{f'{port}: ' if port else ''}{node.label}{_remark(node)}{f'  {more}' if more else ''}"
