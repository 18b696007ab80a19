"""``nemotron pipelines list | run``."""

from __future__ import annotations

from pathlib import Path

import click

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.cli.completion import complete_pipeline
from nemotron_dagster.cli.options import HELP, detach_option
from nemotron_dagster.errors import UsageError, did_you_mean
from nemotron_dagster.pipelines import Pipeline, load_pipelines
from nemotron_dagster.project import find_project


@click.group(context_settings=HELP)
def cli() -> None:
    """Run the pipelines of a project: the YAML files of its `pipelines/` folder.

    \b
    nemotron pipelines list
    nemotron pipelines run teach_a_skill
    """


@cli.command("list", context_settings=HELP)
def list_pipelines() -> None:
    """List the project's pipelines and their nodes."""
    for pipeline in _pipelines().values():
        click.echo(f"{pipeline.name}  {pipeline.description.strip().splitlines()[0] if pipeline.description else ''}")
        for node in pipeline.nodes.values():
            sources = [*node.inputs.values(), *("/".join(key) for key in node.assets.values())]
            inputs = f"  <- {', '.join(sources)}" if sources else ""
            click.echo(f"    {node.name}  {node.step.id}{inputs}")


@cli.command(context_settings=HELP)
@click.argument("name", shell_complete=complete_pipeline)
@click.option("--project", "folder", type=click.Path(path_type=Path), help="The project's folder (default: here).")
@detach_option
@click.pass_context
def run(ctx: click.Context, name: str, folder: Path | None, leaves: bool) -> int:
    """Materialize all nodes of the pipeline NAME, producers first."""
    from nemotron_dagster.cli.run import materialize_and_tell

    project = find_project(folder)
    pipelines = _pipelines(folder)
    if name not in pipelines:
        known = ", ".join(pipelines) or "none; a project keeps them in pipelines/*.yaml"
        raise UsageError(f"no pipeline {name!r} here.{did_you_mean(name, pipelines)} Known: {known}.")
    nodes = [(n.name, n.key) for n in pipelines[name].nodes.values()]
    return materialize_and_tell(project, nodes, {}, bool((ctx.obj or {}).get("verbose")), name, leaves=leaves)


def _pipelines(folder: Path | None = None) -> dict[str, Pipeline]:
    project = find_project(folder)
    return load_pipelines(project, load_catalog(project))
