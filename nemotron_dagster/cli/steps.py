"""``nemotron steps list | show | run``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from nemotron_dagster.catalog import Catalog, Port, Step, load_catalog
from nemotron_dagster.errors import UsageError, did_you_mean
from nemotron_dagster.files import told
from nemotron_dagster.project import find_project

_TITLES = {
    "byob": "Bring Your Own Benchmark",
    "convert": "Conversion",
    "curate": "Data Curation",
    "data_prep": "Data Preparation",
    "env": "Environment Profiles",
    "eval": "Evaluation",
    "optimize": "Model Optimization",
    "peft": "Parameter-Efficient Fine-Tuning",
    "pretrain": "Pretraining",
    "rl": "Reinforcement Learning",
    "sft": "Supervised Fine-Tuning",
    "sdg": "Synthetic Data Generation",
    "translate": "Translation",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """List, show and run steps."""


@cli.command("list")
@click.option("--category", help="Only this category.")
@click.option("--consumes", help="Only steps that consume this artifact type.")
@click.option("--produces", help="Only steps that produce this artifact type.")
@click.option("--tag", help="Only steps with this tag.")
@click.option("--tree", is_flag=True, help="Group by category.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_steps(
    category: str | None, consumes: str | None, produces: str | None, tag: str | None, tree: bool, as_json: bool
) -> None:
    """List the steps; filters are AND-ed and match exactly."""
    catalog = _catalog()
    found = catalog.select(category, consumes, produces, tag)
    _hint(catalog, category=category, consumes=consumes, produces=produces, tag=tag)
    if as_json:
        click.echo(json.dumps([as_data(s) for s in found], indent=2, ensure_ascii=False))
    elif not found:
        click.echo("No steps matched.")
    elif tree:
        _print_tree(found)
    else:
        _print_table(found)


@cli.command()
@click.argument("step_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(step_id: str, as_json: bool) -> None:
    """Show one step: what it consumes and produces, its parameters, configs, strategies and errors."""
    step = _catalog().find(step_id)
    if as_json:
        click.echo(
            json.dumps({**as_data(step), "runspec": runspec_data(step), **more_data(step)}, indent=2, default=str)
        )
        return
    from nemotron_dagster.cli.render import print_step

    print_step(step)


@cli.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
)
@click.argument("step_id")
@click.option("-c", "--config", help="A config name of the step, or a path to a YAML file.")
@click.option("-r", "--run", "profile", help="Run on this profile of env.toml and wait.")
@click.option("-b", "--batch", help="Not there yet: submit to this profile and return.")
@click.option("-d", "--dry-run", is_flag=True, help="Print the compiled config and stop.")
@click.option("--allow-unknown", is_flag=True, help="Accept override keys that the config does not have.")
@click.argument("tokens", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    step_id: str,
    config: str | None,
    profile: str | None,
    batch: str | None,
    dry_run: bool,
    allow_unknown: bool,
    tokens: tuple[str, ...],
) -> None:
    """Materialize STEP_ID. TOKENS are key=value overrides; other tokens are handed to step.py as they are."""
    from nemotron_dagster.cli.run import dry_run as print_dry_run
    from nemotron_dagster.cli.run import run_step

    if batch is not None:  # refused, not handed to the payload as an argument
        raise UsageError("-b: detached runs are not there yet; nothing was submitted. Use -r to wait for the job.")
    step = _catalog().find(step_id)
    arguments = [*tokens, *ctx.args]
    verbose = bool((ctx.obj or {}).get("verbose"))
    if dry_run:
        print_dry_run(step, config, profile, arguments, allow_unknown)
    else:
        sys.exit(run_step(step, config, profile, arguments, allow_unknown, verbose))


def as_data(step: Step) -> dict[str, Any]:
    """The nine keys of ``list --json``, in their order."""

    def port(p: Port) -> dict[str, Any]:
        return {"type": p.type, "required": p.required, "description": p.description}

    return {
        "id": step.id,
        "name": step.name,
        "category": step.category,
        "description": step.description,
        "tags": list(step.tags),
        "path": str(step.directory),
        "consumes": [port(p) for p in step.consumes],
        "produces": [port(p) for p in step.produces],
        "parameters": [
            {"name": p.name, "default": p.default, "description": p.description, "choices": list(p.choices)}
            for p in step.parameters
        ],
    }


def runspec_data(step: Step) -> dict[str, Any] | None:
    """The ``runspec`` of ``show --json``."""
    r = step.runspec
    if r is None:
        return None
    return {
        "name": r.name,
        "image": r.image,
        "launch": r.launch,
        "config_dir": str(r.config_dir.resolve()),
        "default_config": r.default_config,
        "resources": {"nodes": r.nodes, "gpus_per_node": r.gpus_per_node},
    }


def more_data(step: Step) -> dict[str, Any]:
    """What ``show --json`` says beyond the reference, after its keys."""
    return {
        "payload": "ready" if step.ready else "planned",
        "configs": list(step.configs),
        "models": list(step.models),
        "strategies": list(step.strategies),
        "errors": list(step.errors),
        "reference": step.reference,
    }


def _catalog() -> Catalog:
    catalog = load_catalog(find_project())
    for name, error in catalog.broken.items():
        click.echo(f"Warning: step {name} is left out: {told(error)}", err=True)
    return catalog


def _hint(catalog: Catalog, **filters: str | None) -> None:
    """Say on stderr that a filter's value is nothing the catalog knows."""
    steps = catalog.steps.values()
    known = {
        "category": {s.category for s in steps},
        "consumes": set(catalog.types.parents),
        "produces": set(catalog.types.parents),
        "tag": {t for s in steps for t in s.tags},
    }
    for name, value in filters.items():
        if value is not None and value not in known[name]:
            click.echo(f"--{name} {value}: not known.{did_you_mean(value, known[name])}", err=True)


def _print_table(steps: list[Step]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Available Steps")
    table.add_column("ID", no_wrap=True)
    for name in ("Category", "Consumes", "Produces", "Description"):
        table.add_column(name)
    for s in steps:
        consumed = ", ".join(p.type + ("" if p.required else "?") for p in s.consumes)
        table.add_row(s.id, s.category, consumed, ", ".join(p.type for p in s.produces), s.summary)
    Console().print(table)


def _print_tree(steps: list[Step]) -> None:
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree("Available Steps")
    branches: dict[str, Tree] = {}
    for s in steps:
        if s.category not in branches:
            branches[s.category] = tree.add(f"{s.category} — {_TITLES.get(s.category, s.category.title())}")
        branches[s.category].add(f"{s.id}  {s.summary}")
    Console().print(tree)
