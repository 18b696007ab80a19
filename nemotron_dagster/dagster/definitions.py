"""All of a project as Dagster definitions, and the instance that its runs are recorded in."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import dagster as dg

from nemotron_dagster.artifacts.store import artifact_root
from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.config.profiles import load_environment
from nemotron_dagster.dagster.assets import EnvProfile, broken_steps, pipeline_assets
from nemotron_dagster.dagster.io_managers import io_managers
from nemotron_dagster.dagster.profile_resources import profile_resources
from nemotron_dagster.dagster.sensors import detached_jobs
from nemotron_dagster.errors import ConfigError, NemotronError, PreflightError, did_you_mean
from nemotron_dagster.pipelines import CATALOG, Pipeline, catalog_pipeline, load_pipelines
from nemotron_dagster.project import Project


def build_definitions(
    project: Project, partitions: Mapping[str, dg.PartitionsDefinition] | None = None
) -> dg.Definitions:
    """The catalog pipeline, the pipelines of ``<project>/pipelines/``, IO managers per type, a job per pipeline.

    ``partitions`` gives steps and nodes partitions, by asset key: ``{"my_pipeline/cleaned": DAYS}``.

    Raises:
        ConfigError: a pipeline does not load or does not type-check, or ``partitions`` names no asset of ours.
    """
    return _build(project, tuple((partitions or {}).items()))


@cache
def _build(project: Project, partitions: tuple[tuple[str, dg.PartitionsDefinition], ...]) -> dg.Definitions:
    catalog = load_catalog(project)
    root = artifact_root(project)
    pipelines = [catalog_pipeline(catalog), *load_pipelines(project, catalog).values()]
    for name, error in catalog.broken.items():
        dg.get_dagster_logger("nemotron").warning("step %s is left out: %s", name, error)
    keys = {"/".join(n.key) for p in pipelines for n in p.nodes.values()}
    for key, _ in partitions:
        if key not in keys:
            raise ConfigError(f"partitions of {key!r}: no step or pipeline node has that key.{did_you_mean(key, keys)}")
    assets = [a for p in pipelines for a in pipeline_assets(project, p, root, dict(partitions))]
    jobs = [
        dg.define_asset_job(p.name, selection=_selection(p), description=p.description or None)
        for p in pipelines
        if p.name != CATALOG
    ]
    ours = frozenset(n.key for p in pipelines for n in p.nodes.values())
    return dg.Definitions(
        assets=[*assets, *broken_steps(catalog)],
        jobs=jobs,
        sensors=[detached_jobs(project, ours)],
        resources={
            **io_managers(catalog.types, root),
            **profile_resources(project, load_environment(project.root)),
            "profile": EnvProfile(),
        },
        executor=dg.in_process_executor,
    )


def project_definitions(project: Project) -> dg.Definitions:
    """``defs`` of the project's own ``definitions.py`` where it has one, else ``build_definitions(project)``.

    Raises:
        ConfigError: that file raises, or has no ``defs``; a pipeline names an asset that is not there; or as
            ``build_definitions``.
    """
    file = project.root / "definitions.py" if project.root else None
    own = file is not None and file.is_file()
    defs = _own_definitions(file) if file is not None and own else build_definitions(project)
    catalog, keys = load_catalog(project), _keys(defs)
    if lacking := [i for i in catalog.steps if tuple(i.split("/")) not in keys]:
        raise ConfigError(
            f"{file}: its `defs` lacks the steps ({lacking[0]} and {len(lacking) - 1} more). Merge them in: "
            "dg.Definitions.merge(build_definitions(project), ...); see docs/projects.md."
        )
    for pipeline in load_pipelines(project, catalog).values():
        for node in pipeline.nodes.values():
            for port, key in node.assets.items():
                if key not in keys:
                    raise ConfigError(
                        f"{pipeline.file}: node {node.name!r}: input {port}: no asset {'/'.join(key)!r} in "
                        f"{file}{'' if own else ', which is not there'}. Define it, and merge it with ours."
                    )
    return defs


def _keys(defs: dg.Definitions) -> set[tuple[str, ...]]:
    found: set[dg.AssetKey] = set()
    for asset in defs.assets or ():
        if isinstance(asset, dg.AssetsDefinition):
            found |= set(asset.keys)
        elif isinstance(asset, dg.AssetSpec | dg.SourceAsset):
            found.add(asset.key)
    return {tuple(key.path) for key in found}


@cache
def _own_definitions(file: Path) -> dg.Definitions:
    spec = importlib.util.spec_from_file_location("nemotron_project_definitions", file)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dagster resolves annotations by the module's name
    try:
        spec.loader.exec_module(module)
    except NemotronError:
        raise
    except Exception as e:
        raise ConfigError(f"{file}: raises {type(e).__name__} when it is loaded: {e}\nMend it.") from e
    defs = getattr(module, "defs", None)
    if not isinstance(defs, dg.Definitions):
        raise ConfigError(
            f"{file}: has no `defs` that is a dagster.Definitions. Write "
            "`defs = dg.Definitions.merge(build_definitions(project), dg.Definitions(...))`; see docs/projects.md."
        )
    return defs


def _selection(pipeline: Pipeline) -> dg.AssetSelection:
    """The pipeline's nodes, and the assets of one's own that feed them."""
    nodes = dg.AssetSelection.assets(*(dg.AssetKey(list(n.key)) for n in pipeline.nodes.values()))
    return nodes.upstream() if any(n.assets for n in pipeline.nodes.values()) else nodes


def dagster_home(project: Project) -> Path:
    """``DAGSTER_HOME`` where it is set, else a directory in the project's state, made with our instance settings.

    Raises:
        ConfigError: ``DAGSTER_HOME`` is no absolute path of a directory.
        PreflightError: the project's state cannot be written.
    """
    named = os.environ.get("DAGSTER_HOME")
    if named:
        if not Path(named).is_absolute() or not Path(named).is_dir():
            raise ConfigError(f"DAGSTER_HOME={named}: is no absolute path of a directory. Make it or unset it.")
        return Path(named)
    home = project.state / "dagster"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise PreflightError(
            f"{home}: cannot be made ({e.strerror}). Set NEMOTRON_HOME to a place you can write."
        ) from e
    settings = home / "dagster.yaml"
    if not settings.exists():
        for folder in project.folders("env"):
            if (folder / "dagster.yaml").is_file():
                temporary = home / f".dagster.yaml.{os.getpid()}"
                shutil.copyfile(folder / "dagster.yaml", temporary)
                os.replace(temporary, settings)  # another process may be reading it
                break
    return home


@contextmanager
def open_instance(project: Project) -> Iterator[dg.DagsterInstance]:
    """The project's instance. One process at a time opens it: two that both make its SQLite tables break each other."""
    home = dagster_home(project)
    os.environ["DAGSTER_HOME"] = str(home)
    with open(home / ".opening", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        instance = dg.DagsterInstance.get()
    with instance:
        yield instance
