"""Entry point: the command tree, and errors as messages with exit codes."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from nemotron_dagster import __version__
from nemotron_dagster.errors import NemotronError
from nemotron_dagster.files import told

_GROUPS = {
    "steps": ("nemotron_dagster.cli.steps", "List, show and run steps."),
    "pipelines": ("nemotron_dagster.cli.pipelines", "Run the pipelines of a project."),
    "env": ("nemotron_dagster.cli.env", "Payload environments."),
    "ui": ("nemotron_dagster.cli.ui", "Open the Dagster UI of this project."),
}


class LazyGroup(click.Group):
    """Imports a command's module when the command is used: `steps list` must not pay for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_GROUPS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _GROUPS:
            return None
        command: click.Command = importlib.import_module(_GROUPS[name][0]).cli
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _GROUPS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nemotron")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks and Dagster's own log.")
@click.pass_context
def cli(ctx: click.Context, verbose: bool) -> None:
    """NVIDIA Nemotron steps as Dagster assets."""
    ctx.obj = {"verbose": verbose}


def main(argv: list[str] | None = None) -> Any:
    """Run the command; a ``NemotronError`` becomes its message on stderr and its exit code."""
    verbose = "-v" in (argv or sys.argv) or "--verbose" in (argv or sys.argv)
    try:
        return cli(args=argv, prog_name="nemotron", standalone_mode=True)
    except NemotronError as e:
        if verbose:
            raise
        click.echo(f"Error: {told(e)}", err=True)
        sys.exit(e.exit_code)


if __name__ == "__main__":
    main()
