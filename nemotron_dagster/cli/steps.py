"""``nemotron steps list | show | run``; ``new`` and ``check`` in modules of their own."""

from __future__ import annotations

import gc
import importlib
from typing import Any

import click

from nemotron_dagster.catalog import Catalog, Port, Step, load_catalog
from nemotron_dagster.cli.completion import complete_override, complete_step, of_catalog
from nemotron_dagster.cli.failures import warn
from nemotron_dagster.cli.options import HELP, VERBATIM, RunCommand, detach_option, once, run_options
from nemotron_dagster.errors import NemotronError, did_you_mean
from nemotron_dagster.project import find_project

_categories = of_catalog(lambda c: (s.category for s in c.steps.values()))
_types = of_catalog(lambda c: c.types.parents)
_tags = of_catalog(lambda c: (t for s in c.steps.values() for t in s.tags))


_LAZY = {
    "new": ("nemotron_dagster.cli.new_step", "new"),
    "check": ("nemotron_dagster.cli.check", "check"),
}


class _Group(click.Group):
    """Imports what stands in ``_LAZY`` when it is used: `steps list` must not pay for it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_LAZY]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _LAZY:
            return super().get_command(ctx, name)
        module, function = _LAZY[name]
        command: click.Command = getattr(importlib.import_module(module), function)
        return command


@click.group(cls=_Group, context_settings=HELP)
def cli() -> None:
    """List, show, run, add and check steps.

    \b
    nemotron steps list --consumes training_jsonl
    nemotron steps show sft/automodel
    nemotron steps run sft/automodel -c tiny
    """


@cli.command("list", context_settings=HELP)
@click.option("--category", shell_complete=_categories, help="Only this category.")
@click.option("--consumes", metavar="TYPE", shell_complete=_types, help="Only steps that consume this artifact type.")
@click.option("--produces", metavar="TYPE", shell_complete=_types, help="Only steps that produce this artifact type.")
@click.option("--tag", shell_complete=_tags, help="Only steps with this tag.")
@click.option("--compatible", is_flag=True, help="Let types match along is_a: what accepts, or can stand for, TYPE.")
@click.option("--tree", is_flag=True, help="Group by category.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_steps(
    ctx: click.Context,
    category: str | None,
    consumes: str | None,
    produces: str | None,
    tag: str | None,
    compatible: bool,
    tree: bool,
    as_json: bool,
) -> None:
    """List the steps; filters are AND-ed and match exactly.

    \b
    nemotron steps list --category rl
    nemotron steps list --consumes filtered_jsonl --compatible
    """
    from nemotron_dagster.cli import render

    if compatible and not (consumes or produces):
        raise click.UsageError("--compatible widens --consumes or --produces. Give one of them.", ctx)
    gc.disable()  # nothing made here is garbage before the end
    catalog = _catalog()
    found = catalog.select(category, consumes, produces, tag, compatible)
    _hint(catalog, category=category, consumes=consumes, produces=produces, tag=tag)
    if as_json:
        click.echo(render.pretty([as_data(s) for s in found]))
    elif not found:
        click.echo("No steps matched.")
    else:
        click.echo("\n".join((render.tree if tree else render.table)(found, render.width())))


@cli.command(context_settings=HELP)
@click.argument("step_id", shell_complete=complete_step)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(step_id: str, as_json: bool) -> None:
    """Show a step: its artifacts, parameters, configs and what they need, strategies, errors.

    \b
    nemotron steps show sft/automodel
    nemotron steps show dpo --json
    """
    from nemotron_dagster.cli import render
    from nemotron_dagster.cli.configs import config_facts

    project = find_project()
    step = _catalog().find(step_id)
    facts = config_facts(step, project, _profiles())
    if as_json:
        details = {"config_details": [f.as_dict() for f in facts]}
        click.echo(render.pretty({**as_data(step), "runspec": runspec_data(step), **more_data(step), **details}))
    else:
        click.echo("\n".join(render.page(step, facts, render.width())))


@cli.command(cls=RunCommand, context_settings=HELP)
@click.argument("step_id", shell_complete=complete_step)
@run_options
@click.option(
    "--explain", multiple=True, metavar="KEY", help="Print every layer that sets KEY of the config, and stop."
)
@click.option("--allow-unknown", is_flag=True, help="Accept override keys that the config does not have.")
@click.option("--plan", is_flag=True, help="Measure for seconds what the run would take, print it, and stop.")
@click.option("--new", is_flag=True, help="Submit a job even where one of the very same spec is unfinished.")
@detach_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.argument("tokens", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...", shell_complete=complete_override)
@click.pass_context
def run(
    ctx: click.Context,
    step_id: str,
    config: tuple[str, ...],
    run: tuple[str, ...],
    batch: tuple[str, ...],
    dry_run: bool,
    force_squash: bool,
    stage: bool,
    explain: tuple[str, ...],
    plan: bool,
    allow_unknown: bool,
    new: bool,
    leaves: bool,
    as_json: bool,
    tokens: tuple[str, ...],
) -> int:
    """Run STEP_ID with its config, overridden by KEY=VALUE.

    Options may stand anywhere before `--`. All other arguments, and everything after `--`, go to step.py as they are.

    \b
    nemotron steps run sft/automodel -c tiny step_scheduler.max_steps=10
    nemotron steps run sft/automodel -c tiny -d
    nemotron steps run sft/automodel -c tiny --explain optimizer.lr
    nemotron steps run data_prep/pretrain_prep --plan blend_path=blend.json
    nemotron steps run sft/automodel -b my_profile
    """
    from nemotron_dagster.cli import run as running

    defaults: dict[str, Any] = (ctx.obj or {}).get("run", {})
    if stage or defaults.get("stage"):
        raise click.UsageError("--stage is not built. Nothing was done; drop it.", ctx)
    wanted = running.Wanted(
        step=_catalog().find(step_id),
        config=once("-c", *defaults.get("config", ()), *config),
        profile=once("-r", *defaults.get("run", ()), *run),
        batch=once("-b", *defaults.get("batch", ()), *batch),
        tokens=(*tokens, "--", *ctx.meta[VERBATIM]),
        allow_unknown=allow_unknown,
        force_squash=force_squash or bool(defaults.get("force_squash")),
        new=new,
        leaves=leaves,
    )
    if wanted.profile and wanted.batch:
        raise click.UsageError("-r runs and waits, -b submits and returns. Give one of them.", ctx)
    if explain:
        running.explain_keys(wanted, explain, as_json)
        return 0
    if dry_run or defaults.get("dry_run"):
        running.dry_run(wanted, as_json)
        return 0
    if plan:
        from nemotron_dagster.cli.plan import show_plan

        show_plan(wanted, as_json)
        return 0
    if wanted.batch:
        from nemotron_dagster.cli.batch import submit_detached

        submit_detached(wanted, as_json)
        return 0
    return running.run_step(wanted, bool((ctx.obj or {}).get("verbose")), as_json)


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
        warn(f"Warning: step {name} is left out: {error}")
    return catalog


def _profiles() -> dict[str, dict[str, Any]]:
    """The profiles that -r can name, with what they extend; what is broken is told and left out."""
    from nemotron_dagster.config.profiles import load_environment

    found: dict[str, dict[str, Any]] = {}
    try:
        environment = load_environment(find_project().root)
    except NemotronError as e:
        warn(f"Warning: no profiles are shown: {e}")
        return found
    for name in environment.profiles:
        try:
            found[name] = environment.written(name)
        except NemotronError as e:
            warn(f"Warning: profile {name} is left out: {e}")
    return found


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
            warn(f"--{name} {value}: not known.{did_you_mean(value, known[name])}")
