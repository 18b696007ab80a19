"""``nemotron steps check``: every fault of the steps' manifests, configs and payload files, one line each."""

from __future__ import annotations

import json
import os
import sys

import click

from nemotron_dagster.errors import ConfigError
from nemotron_dagster.project import find_project


@click.command("check", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("step_id", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(step_id: str | None, as_json: bool) -> None:
    """Check STEP_ID, or all steps of the project and the bundle. Exits with 3 if there is an error."""
    from nemotron_dagster.catalog import load_catalog
    from nemotron_dagster.config.check import check_project, required_inputs

    project = find_project()
    found = check_project(project, step_id)
    errors = sum(f.level == "error" for f in found)
    if as_json:
        click.echo(json.dumps([f.as_data() for f in found], indent=2, ensure_ascii=False))
        sys.exit(ConfigError.exit_code if errors else 0)
    for finding in found:
        click.echo(str(finding).replace(f"{os.getcwd()}{os.sep}", "", 1))
    if step_id and not errors:
        for name, keys in required_inputs(load_catalog(project).find(step_id)).items():
            click.echo(f"config {name} must be given: {', '.join(keys)}")
    what = step_id or "all steps"
    click.echo(f"{what}: {_count(errors, 'error')}, {_count(len(found) - errors, 'warning')}", err=True)
    sys.exit(ConfigError.exit_code if errors else 0)


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
