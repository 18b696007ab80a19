"""Pipelines: YAML that names nodes (a step, its config, its inputs), and the built-in catalog pipeline.

name: teach_a_skill
description: ...
nodes:
  curated:
    step: curate/nemo_curator
    config: tiny
    inputs: {raw_jsonl: numerals}        # another node, a path, or {asset: own/rows}: an asset of your own
    overrides: {text_field: text}
    profile: cluster_a
"""

from __future__ import annotations

import graphlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemotron_dagster.catalog import Catalog, Port, Step
from nemotron_dagster.config.source import read_yaml, yaml_position
from nemotron_dagster.errors import ConfigError, NemotronError, did_you_mean
from nemotron_dagster.files import printable
from nemotron_dagster.project import Project

CATALOG = "catalog"
_PIPELINE_KEYS = {"name", "description", "nodes"}
_PIPELINE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ASSET_KEY = re.compile(r"[\w.-]+(?:/[\w.-]+)*")
_NODE_KEYS = {"step", "config", "overrides", "profile", "inputs", "description"}


@dataclass(frozen=True)
class Node:
    """One use of a step in a pipeline: one Dagster asset, with asset key ``key``.

    Attributes:
        inputs, paths, assets: where ports are filled from: another node, a path, an asset outside the pipeline.
    """

    name: str
    step: Step
    key: tuple[str, ...]
    config: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    profile: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    assets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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


def load_pipelines(project: Project, catalog: Catalog) -> dict[str, Pipeline]:
    """All pipelines of the project by name.

    Raises:
        ConfigError: as ``load_pipeline``, or two files have one name.
    """
    found: dict[str, Pipeline] = {}
    for file in find_pipelines(project):
        pipeline = load_pipeline(file, catalog)
        if pipeline.name in found:
            where = yaml_position(file, "name") or file
            other = found[pipeline.name].file
            raise ConfigError(f"{where}: {other} has the name {pipeline.name!r} too. Give one of them another `name`.")
        found[pipeline.name] = pipeline
    return found


def load_pipeline(file: Path, catalog: Catalog) -> Pipeline:
    """Read and type-check one pipeline.

    Raises:
        ConfigError: naming the file, node, port, types or key, and the fix.
    """
    doc = read_yaml(file)
    if not isinstance(doc, dict) or not isinstance(doc.get("nodes"), dict) or not doc["nodes"]:
        raise ConfigError(f"{file}: has no `nodes:` mapping. Name at least one node with its step.")
    read = _Reader(file, "the pipeline", (), doc)
    read.known(_PIPELINE_KEYS)
    name = read.text("name") or file.stem
    if not _PIPELINE_NAME.fullmatch(name):
        raise read.wrong("name", f"pipeline name {name!r} is not letters, digits, _, - and . alone. Rename it.")
    if name == CATALOG:
        raise read.wrong("name", f"the name {CATALOG!r} is the built-in pipeline's. Choose another.")
    nodes = {}
    for node_name, table in doc["nodes"].items():
        if not str(node_name).isidentifier() or not str(node_name).isascii():
            shown = printable(node_name, 80)
            problem = f"node name {shown!r} is not letters, digits and _, a letter first. Rename it."
            raise _Reader(file, "", ("nodes",), doc["nodes"]).wrong(str(node_name), problem)
        nodes[node_name] = _node(file, name, node_name, table, catalog, doc["nodes"])
    return _checked(Pipeline(name, nodes, read.text("description") or "", file), catalog, file)


@dataclass(frozen=True)
class _Reader:
    """Typed access to one mapping of a pipeline file."""

    file: Path
    where: str
    path: tuple[str, ...]
    table: Mapping[Any, Any]

    def wrong(self, key: str, problem: str) -> ConfigError:
        at = yaml_position(self.file, ".".join((*self.path, key))) or self.file
        return ConfigError(f"{at}: {problem}")

    def known(self, known: set[str]) -> None:
        for key in self.table:
            if key not in known:
                hint = did_you_mean(str(key), known)
                problem = f"unknown key {key!r} in {self.where}.{hint} Keys: {', '.join(sorted(known))}."
                raise self.wrong(str(key), problem)

    def text(self, key: str) -> str | None:
        value = self.table.get(key)
        if value is not None and not isinstance(value, str):
            shown = printable(repr(value), 80)
            raise self.wrong(key, f"`{key}` of {self.where} is {shown}, not text. Write text, in quotes if need be.")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.table.get(key)
        if value is not None and not isinstance(value, dict):
            shown = printable(repr(value), 80)
            raise self.wrong(key, f"`{key}` of {self.where} is {shown}, not a mapping. Write `{key}: {{name: value}}`.")
        return {str(k): v for k, v in (value or {}).items()}


def _node(file: Path, pipeline: str, name: str, table: Any, catalog: Catalog, siblings: Mapping[str, Any]) -> Node:
    where = f"{file}: node {name!r}"
    if not isinstance(table, dict) or table.get("step") is None:
        raise ConfigError(f"{where}: names no step. Write `step: <id>`; `nemotron steps list` prints the ids.")
    read = _Reader(file, f"node {name!r}", ("nodes", name), table)
    read.known(_NODE_KEYS)
    try:
        step = catalog.find(read.text("step") or "")
    except NemotronError as e:
        raise read.wrong("step", f"node {name!r}: {' '.join(str(e).split())}") from e
    ports = {p.name: p for p in step.consumes}
    inputs: dict[str, str] = {}
    paths: dict[str, str] = {}
    assets: dict[str, tuple[str, ...]] = {}
    for port, source in read.mapping("inputs").items():
        below = replace(read, path=(*read.path, "inputs"))
        if port not in ports:
            hint = f"{did_you_mean(port, ports)} Inputs: {', '.join(ports) or 'none'}."
            raise below.wrong(port, f"node {name!r}: {step.id} has no input {port!r}.{hint}")
        if isinstance(source, dict) and set(source) == {"asset"} and _ASSET_KEY.fullmatch(str(source["asset"])):
            assets[port] = tuple(str(source["asset"]).split("/"))
            continue
        if not isinstance(source, str):
            shown = printable(repr(source), 80)
            fix = "Name a node, a path with a /, or {asset: KEY}."
            raise below.wrong(port, f"node {name!r}: input {port} is {shown}. {fix}")
        if source in siblings:
            inputs[port] = source
        elif "/" in source or "." in source:
            paths[port] = source if "://" in source else os.path.normpath(file.parent.absolute() / source)
        else:
            hint = did_you_mean(source, map(str, siblings))
            raise below.wrong(port, f"node {name!r}: input {port}: no node {source!r}.{hint} A path has a /.")
    return Node(
        name=name,
        step=step,
        key=(pipeline, name),
        config=read.text("config"),
        overrides=read.mapping("overrides"),
        profile=read.text("profile"),
        inputs=inputs,
        paths=paths,
        assets=assets,
        description=read.text("description") or "",
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
