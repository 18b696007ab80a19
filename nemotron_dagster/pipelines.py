"""Pipelines: YAML that names nodes (a step, its config, its inputs), and the built-in catalog pipeline.

name: teach_a_skill
description: ...
nodes:
  curated:
    step: curate/nemo_curator
    config: tiny
    inputs: {raw_jsonl: numerals}        # another node, or a path
    overrides: {text_field: text}
    profile: cluster_a
"""

from __future__ import annotations

import graphlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog import Catalog, Port, Step
from nemotron_dagster.config.source import read_yaml
from nemotron_dagster.errors import ConfigError, NemotronError, did_you_mean
from nemotron_dagster.project import Project

CATALOG = "catalog"
_PIPELINE_KEYS = {"name", "description", "nodes"}
_NODE_KEYS = {"step", "config", "overrides", "profile", "inputs", "description"}


@dataclass(frozen=True)
class Node:
    """One use of a step in a pipeline: one Dagster asset, with asset key ``key``."""

    name: str
    step: Step
    key: tuple[str, ...]
    config: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    profile: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True)
class Pipeline:
    """Nodes by name, producers before their consumers."""

    name: str
    nodes: dict[str, Node]
    description: str = ""
    file: Path | None = None


def catalog_pipeline(catalog: Catalog) -> Pipeline:
    """One node per step, wired by the manifests' default producers; asset key = step id.

    An edge to a step that is broken or not there is left out, so that the others still load.
    """
    nodes = {}
    for step in catalog.steps.values():
        inputs = {p.name: p.source for p in step.consumes if p.source in catalog.steps}
        nodes[step.id] = Node(step.id, step, tuple(step.id.split("/")), inputs=inputs)
    return _checked(Pipeline(CATALOG, nodes, "One node per step of the catalog."), catalog, None)


def find_pipelines(project: Project) -> list[Path]:
    """The YAML files of the project's ``pipelines/`` folder."""
    if project.root is None:
        return []
    return sorted(p for p in (project.root / "pipelines").glob("*.y*ml") if p.suffix in (".yaml", ".yml"))


def load_pipeline(file: Path, catalog: Catalog) -> Pipeline:
    """Read and type-check one pipeline.

    Raises:
        ConfigError: naming the file, node, port, types or key, and the fix.
    """
    doc = read_yaml(file)
    if not isinstance(doc, dict) or not isinstance(doc.get("nodes"), dict) or not doc["nodes"]:
        raise ConfigError(f"{file}: has no `nodes:` mapping. Name at least one node with its step.")
    _known(file, "the pipeline", doc, _PIPELINE_KEYS)
    name = str(doc.get("name", file.stem))
    nodes = {}
    for node_name, table in doc["nodes"].items():
        if not str(node_name).isidentifier():
            raise ConfigError(f"{file}: node name {node_name!r} is not letters, digits and _. Rename it.")
        nodes[node_name] = _node(file, name, node_name, table, catalog, doc["nodes"])
    return _checked(Pipeline(name, nodes, str(doc.get("description", "")), file), catalog, file)


def _node(file: Path, pipeline: str, name: str, table: Any, catalog: Catalog, siblings: Mapping[str, Any]) -> Node:
    where = f"{file}: node {name!r}"
    if not isinstance(table, dict) or "step" not in table:
        raise ConfigError(f"{where}: names no step. Write `step: <id>`; `nemotron steps list` prints the ids.")
    _known(file, f"node {name!r}", table, _NODE_KEYS)
    try:
        step = catalog.find(str(table["step"]))
    except NemotronError as e:
        raise ConfigError(f"{where}: {e}") from e
    ports = {p.name: p for p in step.consumes}
    inputs: dict[str, str] = {}
    paths: dict[str, str] = {}
    for port, source in (table.get("inputs") or {}).items():
        if port not in ports:
            raise ConfigError(
                f"{where}: {step.id} has no input {port!r}.{did_you_mean(port, ports)} "
                f"Inputs: {', '.join(ports) or 'none'}."
            )
        if source in siblings:
            inputs[port] = source
        elif "/" in str(source) or "." in str(source):
            paths[port] = str(source) if "://" in str(source) else str((file.parent / str(source)).resolve())
        else:
            raise ConfigError(
                f"{where}: input {port}: no node {source!r}.{did_you_mean(str(source), siblings)} A path has a /."
            )
    return Node(
        name=name,
        step=step,
        key=(pipeline, name),
        config=table.get("config"),
        overrides=table.get("overrides") or {},
        profile=table.get("profile"),
        inputs=inputs,
        paths=paths,
        description=str(table.get("description", "")),
    )


def _checked(pipeline: Pipeline, catalog: Catalog, file: Path | None) -> Pipeline:
    """Check types and order the nodes; every problem of the pipeline in one error."""
    problems = []
    for node in pipeline.nodes.values():
        for port_name, source in node.inputs.items():
            port = next(p for p in node.step.consumes if p.name == port_name)
            producer = pipeline.nodes.get(source)
            if producer is None:
                problems.append(f"node {node.name!r}: input {port_name}: no step {source!r}")
            elif (problem := _mismatch(catalog, node, port, producer)) is not None:
                problems.append(problem)
    prefix = f"{file or pipeline.name}: "
    if problems:
        raise ConfigError("\n".join(prefix + p for p in problems))
    try:
        order = list(
            graphlib.TopologicalSorter({n.name: n.inputs.values() for n in pipeline.nodes.values()}).static_order()
        )
    except graphlib.CycleError as e:
        raise ConfigError(f"{prefix}nodes feed each other in a circle: {' -> '.join(e.args[1])}. Cut one input.") from e
    nodes = {name: pipeline.nodes[name] for name in order}
    return Pipeline(pipeline.name, nodes, pipeline.description, pipeline.file)


def _mismatch(catalog: Catalog, node: Node, port: Port, producer: Node) -> str | None:
    if not producer.step.produces:
        return f"node {node.name!r}: input {port.name}: {producer.name!r} produces nothing"
    offered = producer.step.produces[0].type
    if catalog.types.accepts(port.type, offered):
        return None
    bridge = catalog.types.converter(port.type, offered)
    fix = f"Put {bridge} between them." if bridge else "Choose a producer of that type."
    return f"node {node.name!r}: input {port.name} accepts {port.type}, but {producer.name!r} makes {offered}. {fix}"


def _known(file: Path, where: str, table: Mapping[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{file}: unknown key {key!r} in {where}.{did_you_mean(str(key), known)} "
                f"Keys: {', '.join(sorted(known))}."
            )
