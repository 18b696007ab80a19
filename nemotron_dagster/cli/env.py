"""``nemotron env build``: payload environments."""

from __future__ import annotations

import click

from nemotron_dagster.project import find_project


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Payload environments."""


@cli.command()
@click.argument("families", nargs=-1)
@click.option("--print-python", is_flag=True, help="Print only the interpreter's path on stdout.")
def build(families: tuple[str, ...], print_python: bool) -> None:
    """Build the payload environments FAMILIES (default: all) unless they are there; each once, by its lock's digest."""
    from nemotron_dagster.jobs import payload_env

    project = find_project()
    for family in families or payload_env.families(project):
        env = payload_env.find(project, family)
        python = payload_env.build(env, lambda text: click.echo(text, err=True))
        click.echo(str(python) if print_python else f"{family}: {python}")
