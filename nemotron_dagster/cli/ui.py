"""``nemotron ui``: the Dagster UI of this project."""

from __future__ import annotations

import os
import sys

import click

from nemotron_dagster.project import find_project


@click.command("ui", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-p", "--port", type=int, default=3000, show_default=True, help="Port on 127.0.0.1.")
def cli(port: int) -> None:
    """Start Dagster's webserver and daemon on loopback for this project; Ctrl-C stops them."""
    from nemotron_dagster.dagster.definitions import dagster_home

    project = find_project()
    os.environ["DAGSTER_HOME"] = str(dagster_home(project))
    if project.root:
        os.environ["NEMOTRON_PROJECT"] = str(project.root)
    click.echo(f"http://127.0.0.1:{port}  (Ctrl-C stops)")
    sys.stdout.flush()
    arguments = ["-m", "nemotron_dagster.definitions", "-h", "127.0.0.1", "-p", str(port), "--log-level", "warning"]
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "dev", *arguments])
