"""The one factory that makes assets: a pipeline's nodes become Dagster assets."""

# No `from __future__ import annotations`: Dagster reads the config class from the annotation itself.
import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
import pydantic

from nemotron_dagster.artifacts.localize import bound_path
from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.artifacts.port_locks import Result
from nemotron_dagster.catalog import Catalog, Step
from nemotron_dagster.config.overrides import to_dotlist
from nemotron_dagster.config.profiles import load_environment
from nemotron_dagster.dagster.adopt import adopted, inputs_of, noted, publish_adopted
from nemotron_dagster.dagster.checks import check_specs, lock_results, publication_results, unpublished_results
from nemotron_dagster.dagster.handover import Bond
from nemotron_dagster.dagster.internals import DagsterExecutionInterruptedError
from nemotron_dagster.dagster.io_managers import failure, metadata
from nemotron_dagster.dagster.live import DagsterReporter, terminal
from nemotron_dagster.dagster.partitions import one_partition
from nemotron_dagster.errors import Cancelled, NemotronError, PreflightError
from nemotron_dagster.jobs.prepare import Request, code_digest
from nemotron_dagster.jobs.run import run_step
from nemotron_dagster.jobs.submission import compile_on
from nemotron_dagster.jobs.target import make_target
from nemotron_dagster.pipelines import CATALOG, Node, Pipeline
from nemotron_dagster.project import Project

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.places import Place


class EnvProfile(dg.ConfigurableResource[None]):
    """The profile of env.toml that runs use unless their op config or the tag ``nemotron/profile`` names one."""

    name: str | None = None


class StepConfig(dg.Config):
    """What a run may set on any step."""

    config_file: str | None = pydantic.Field(None, description="A config file of your own, instead of a named config.")
    profile: str | None = pydantic.Field(None, description="A profile of env.toml.")
    mode: Literal["auto", "local", "run", "batch"] = pydantic.Field(
        "auto", description="How the profile is used: as -r does (run) or as -b does (batch); auto: run, or local."
    )
    # null is a value: without it Dagster refuses `key=null` with an internal error
    overrides: dict[str, Any | None] = pydantic.Field({}, description="Config keys (dotted or nested), their values.")
    passthrough: list[str] = pydantic.Field([], description="Arguments handed to step.py as they are.")
    allow_unknown: bool = pydantic.Field(False, description="Accept override keys that the config does not have.")
    new: bool = pydantic.Field(False, description="Submit a job even where one of the very same spec is unfinished.")


@functools.cache
def step_config(configs: tuple[str, ...], default: str) -> type[StepConfig]:
    """The config class of a step: its named configs as an enum, so that the Launchpad offers them."""
    kind: Any = Literal[configs] if configs else str
    return pydantic.create_model("StepConfig", __base__=StepConfig, config=(kind, pydantic.Field(default=default)))


def pipeline_assets(
    project: Project, pipeline: Pipeline, root: "Place", partitions: Mapping[str, dg.PartitionsDefinition] | None = None
) -> list[dg.AssetsDefinition]:
    """One asset per node; ``root`` is the artifact root, ``partitions`` those of the asset keys that have some."""
    nodes = pipeline.nodes.values()
    return [_asset(project, pipeline, node, root, (partitions or {}).get("/".join(node.key))) for node in nodes]


def broken_steps(catalog: Catalog) -> list[dg.AssetSpec]:
    """One asset per step folder that cannot be loaded, with the reason, so that it is seen where it is missed.

    It cannot be materialized, and nothing depends on it.
    """
    return [
        dg.AssetSpec(
            dg.AssetKey(step_id.split("/")),
            group_name="broken",
            kinds={"broken"},
            description=f"**This step cannot be loaded.**\n\n```\n{error}\n```\n\nMend it and reload the definitions.",
            metadata={"error": str(error)},
        )
        for step_id, error in catalog.broken.items()
    ]


def _asset(
    project: Project, pipeline: Pipeline, node: Node, root: "Place", partitions: dg.PartitionsDefinition | None
) -> dg.AssetsDefinition:
    step = node.step
    produced = step.produces[0]
    types = {p.name: p.type for p in step.consumes}
    default = node.config or (step.runspec.default_config if step.runspec else "default")
    named = default if default in step.configs else (step.configs or ("default",))[0]

    key = dg.AssetKey(list(node.key))
    sources = {port: pipeline.nodes[source].key for port, source in node.inputs.items()} | dict(node.assets)

    @dg.asset(
        key=key,
        pool=_pool(project, node),
        output_required=False,  # a run that adopts a job may find that another has recorded it
        partitions_def=partitions,
        check_specs=check_specs(key, step),
        ins={
            port: dg.AssetIn(key=dg.AssetKey(list(source)), metadata={"accepts": types[port]})
            for port, source in sources.items()
        },
        group_name=step.category if pipeline.name == CATALOG else re.sub(r"\W", "_", pipeline.name),
        kinds=_kinds(pipeline, step),
        description=_page(step, node),
        tags={"nemotron/step": step.id.replace("/", "."), "nemotron/payload": "ready" if step.ready else "planned"},
        metadata={
            "artifact_type": produced.type,
            "configs": ", ".join(step.configs),
            "manifest": dg.MetadataValue.path(str(step.directory / "step.toml")),
        },
        io_manager_key=produced.type,
        code_version=code_digest(step)[:16],
    )
    def materialize(
        context: dg.AssetExecutionContext,
        config: step_config(step.configs, named),  # type: ignore[valid-type]
        profile: EnvProfile,
        **inputs: ArtifactRef | None,
    ) -> Iterator[Any]:
        screen = terminal()
        name = node.name if pipeline.name == CATALOG else f"{pipeline.name}/{node.name}"
        reporter = DagsterReporter(context, screen.started(name) if screen else None)
        error: NemotronError | None = None
        locked: list[Result] = []
        gone: list[str] = []
        with ExitStack() as watching:
            bond = Bond(project, context, node.name, key, reporter.note, watching)
            try:
                left = adopted(project, context, key)
                if left is None:
                    ref, used = _materialize(
                        project, node, root, context, config, profile, inputs, reporter, locked, bond
                    )
                else:
                    bond.adopts, locked = True, noted(left)
                    used, gone = inputs_of(left)
                    inputs = dict(used)
                    ref = publish_adopted(bond, left, step, reporter)
            except NemotronError as e:
                error = e
            except DagsterExecutionInterruptedError:
                error = bond.interrupted()
                raise
            finally:
                if screen:
                    screen.finished(name, error)
            if isinstance(error, Cancelled):
                bond.end_as_canceled(str(error))
                raise DagsterExecutionInterruptedError from error  # so that the run ends CANCELED, not FAILURE
            if error is not None:
                part = context.partition_key if context.has_partition_key else None
                yield from unpublished_results(key, step, locked, inputs, root, part, error)
                raise failure(error, bond.metadata()) from error
            with bond.recording() as mine:
                if mine:
                    told = {**metadata(ref), **bond.metadata()}  # in this order: the figures first
                    yield dg.Output(ref, data_version=dg.DataVersion(ref.manifest.content), metadata=told)
                else:
                    reporter.note(
                        "another run records what this job made; this one adds nothing to the asset's history"
                    )
            yield from lock_results(key, locked)
            yield from publication_results(key, step, ref, used, gone)

    return materialize


def _materialize(
    project: Project,
    node: Node,
    root: "Place",
    context: dg.AssetExecutionContext,
    config: Any,
    profile: EnvProfile,
    inputs: Mapping[str, ArtifactRef | None],
    reporter: DagsterReporter,
    locked: list[Result],
    bond: Bond,
) -> tuple[ArtifactRef, dict[str, ArtifactRef]]:
    partition = one_partition(context, node.name, inputs)
    environment = load_environment(project.root)
    name = config.profile or context.run.tags.get("nemotron/profile") or node.profile or profile.name
    given = {port: ref for port, ref in inputs.items() if ref is not None}
    upstream = {p.name: str(bound_path(p, given[p.name])) for p in node.step.consumes if p.name in given}
    in_catalog = node.name == node.step.id  # there a step's config may bring data of its own
    paths = {p.bind: node.paths[p.name] for p in node.step.consumes if p.bind and p.name in node.paths}
    spec = compile_on(
        project,
        node.step,
        config.config_file or config.config,
        [*to_dotlist(paths), *to_dotlist(node.overrides), *to_dotlist(config.overrides)],
        profile=name,
        mode=config.mode if config.mode != "auto" else "run" if name else "local",
        environment=environment,
        passthrough=config.passthrough,
        inputs={} if in_catalog else upstream,
        offered=upstream if in_catalog else {},
        allow_unknown=config.allow_unknown,
        here=project.root,
        artifacts=root,
    )
    for note in spec.notes:
        context.log.warning(note)
    wired = {**node.inputs, **{port: "/".join(key) for port, key in node.assets.items()}}
    lacking = [p for p in wired if p not in given and p not in spec.external]
    if lacking and not in_catalog:
        of = f", partition {partition}," if partition else ""
        raise PreflightError(f"{node.name}: {wired[lacking[0]]}{of} was never materialized. Materialize it first.")
    used = {port: given[port] for port in spec.bound}
    for port, ref in used.items():
        reporter.note(f"input {port} is {'/'.join(ref.manifest.asset)} of {ref.manifest.created}: {ref.path}")
    target = make_target(project, name, spec.environment)
    tags = context.run.tags
    retried = "dagster/is_resume_retry" in tags or "dagster/retry_number" in tags
    request = Request(
        spec=spec,
        asset=node.key,
        identity=(context.run.root_run_id if retried else None) or context.run.run_id,
        inputs=used,
        artifact_root=root,
        partition=partition,
        run=context.run.run_id,
        new=config.new,
    )

    return run_step(project, target, request, reporter, bond.submitted, bond.terminated, locked.extend), used


def _pool(project: Project, node: Node) -> str | None:
    """The concurrency pool of a node that always runs on one cluster: named by it; None where nobody is asked.

    A profile that does not resolve here has none: the run tells what is wrong with it.
    """
    if node.profile is None:
        return None
    try:
        cluster = make_target(project, node.profile, load_environment(project.root).profile(node.profile)).cluster
    except NemotronError:
        return None
    return re.sub(r"[^A-Za-z0-9_]+", "_", cluster).strip("_") or None


def _kinds(pipeline: Pipeline, step: Step) -> set[str]:
    """What the UI shows beside the name: category and backend where the name does not say them; what cannot run."""
    of_node = set() if pipeline.name == CATALOG else {step.category, *step.id.split("/")[1:2]}
    return of_node | (set() if step.ready else {"planned"})


def _page(step: Step, node: Node) -> str:
    """The asset's description in the UI: what it is, and the step's README below it, its headings made smaller."""
    parts = [node.description or step.description]
    if not step.ready:
        parts.append("**The payload of this step is not built yet: running it is refused.**")
    readme = step.directory / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        parts.append(re.sub(r"(?m)^#(?=#+ )", "###", re.sub(r"\A# .*\n+(Status: .*\n+)?", "", text)))
    return "\n\n".join(parts)
