"""``nemotron env list | show | check | schema | build``: profiles, and payload environments."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemotron_dagster.cli.completion import complete_profile
from nemotron_dagster.errors import ProfileError, UsageError
from nemotron_dagster.project import find_project

if TYPE_CHECKING:
    from nemotron_dagster.config.guardrails import Finding
    from nemotron_dagster.config.profiles import Environment


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Profiles of env.toml, and payload environments."""


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_profiles(as_json: bool) -> None:
    """List the profiles that -r and -b can name: those of env.toml and the built-in ones."""
    from nemotron_dagster.cli import env_text
    from nemotron_dagster.config.profiles import load_environment

    environment = load_environment(find_project().root)
    rows = [env_text.row(environment, name) for name in environment.profiles]
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    cells = []
    for r in rows:
        size = f"{r.get('nodes') or '-'} x {'-' if r.get('gpus_per_node') is None else r['gpus_per_node']}"
        image = f"error: {r['error']}" if "error" in r else r["image"]
        cells.append((r["profile"], r.get("executor"), r["extends"], size, r["where"], image))
    click.echo(env_text.table(("PROFILE", "EXECUTOR", "EXTENDS", "NODES x GPUS", "WHERE", "IMAGE"), cells))


@cli.command()
@click.argument("profile", shell_complete=complete_profile)
@click.option("--resolved", is_flag=True, help="Merge the chain and resolve every value; each names its origin.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(profile: str, resolved: bool, as_json: bool) -> None:
    """Show PROFILE as written, with every profile that it extends. Secrets are hidden."""
    from nemotron_dagster.cli import env_text
    from nemotron_dagster.config.profiles import load_environment

    environment = load_environment(find_project().root)
    if as_json:
        click.echo(json.dumps(env_text.shown(environment, profile, resolved), indent=2, ensure_ascii=False))
    else:
        click.echo((env_text.as_resolved if resolved else env_text.as_written)(environment, profile))


@cli.command()
@click.argument("profiles", nargs=-1, shell_complete=complete_profile)
@click.option("--step", "step_id", help="Also check against what this step needs.")
@click.option("-c", "--config", help="Config of that step, by name or path (default: its default one).")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(profiles: tuple[str, ...], step_id: str | None, config: str | None, as_json: bool) -> None:
    """Check PROFILES (default: all of env.toml): keys, values, inheritance, and what a step needs.

    Prints every finding, one line each. Errors make the exit code 4; warnings alone do not.
    """
    from nemotron_dagster.catalog import load_catalog
    from nemotron_dagster.config.guardrails import check_profiles
    from nemotron_dagster.config.profiles import Environment, find_env_file, read_environment

    if config is not None and step_id is None:
        raise UsageError("-c names a config of a step. Add --step STEP_ID.")
    project = find_project()
    step = load_catalog(project).find(step_id) if step_id else None
    file = find_env_file(project.root)
    environment = read_environment(file, project.root) if file else Environment()
    if file is None and not profiles:
        click.echo("no env.toml here; nothing to check. `nemotron steps run env/env_toml` writes one.", err=True)
    findings = [] if profiles else _sections(environment)
    own = [name for name in environment.profiles if not profiles and name in environment.tables]
    names = list(dict.fromkeys(profiles)) or own
    if file is None and profiles:
        environment = _built_in()
    findings += check_profiles(project, environment, names, step, config)
    errors = sum(f.level == "error" for f in findings)
    if as_json:
        click.echo(json.dumps([vars(f) for f in findings], indent=2, ensure_ascii=False))
    else:
        for line in _lines(findings):
            click.echo(line)
        warnings = len(findings) - errors
        click.echo(
            f"{_count(len(names), 'profile')}: {_count(errors, 'error')}, {_count(warnings, 'warning')}.", err=True
        )
    if errors:
        sys.exit(ProfileError.exit_code)


@cli.command()
@click.option("--write", is_flag=True, help="Keep it in env/env.schema.json of the project.")
@click.option("--markdown", is_flag=True, help="Print the keys as Markdown tables instead.")
def schema(write: bool, markdown: bool) -> None:
    """Print the JSON Schema of env.toml, for editors: first line `#:schema ./env/env.schema.json`."""
    from nemotron_dagster.jobs import env_schema

    project = find_project()
    if markdown:
        click.echo(env_schema.key_tables(project), nl=False)
        return
    text = env_schema.schema_text(project)
    if not write:
        click.echo(text, nl=False)
        return
    if project.root is None:
        raise UsageError("--write: no project here. Run `nemotron env schema > env.schema.json`.")
    file = project.root / "env" / "env.schema.json"
    _keep(file, text)
    click.echo(str(file))


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


def _sections(environment: Environment) -> list[Finding]:
    """What is wrong with the top level and the system sections, as findings."""
    from nemotron_dagster.config.guardrails import Finding
    from nemotron_dagster.config.sections import problems

    return [
        Finding("error", p.path[0], ".".join(p.path[1:]), p.message, environment.where(*p.path))
        for p in problems(environment.tables)
    ]


def _built_in() -> Environment:
    from nemotron_dagster.config.profiles import load_environment

    return load_environment(find_project().root)


def _lines(findings: Iterable[Finding]) -> list[str]:
    """One line each; what several profiles inherit from one place is told once."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for f in findings:
        grouped.setdefault((f.where, f.level, f.message), []).append(f.profile)
    lines = []
    for (where, level, message), names in grouped.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"{where + ': ' if where else ''}{level}: [{names[0]}]{more}: {message}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _keep(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as e:
        raise UsageError(f"{file}: cannot be written ({e.strerror}). Mend that, or print it to a file.") from e
