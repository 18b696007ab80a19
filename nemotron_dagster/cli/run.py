"""``nemotron steps run``: an asset materialization in this process, or a preview of it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from nemotron_dagster.artifacts import delivery
from nemotron_dagster.artifacts.store import artifact_root, latest
from nemotron_dagster.catalog import Step
from nemotron_dagster.config.compile import JobSpec, compile_job
from nemotron_dagster.config.overrides import parse_dotlist, split_tokens
from nemotron_dagster.config.profiles import load_environment
from nemotron_dagster.config.secrets import redact
from nemotron_dagster.errors import JobFailed, PayloadNotBuilt
from nemotron_dagster.project import Project, find_project


def compiled(
    step: Step, config: str | None, profile: str | None, tokens: Sequence[str], allow_unknown: bool
) -> JobSpec:
    """Compile as the asset will, so that a mistake is told before Dagster is even imported."""
    project = find_project()
    split = split_tokens(tokens)
    root = artifact_root(project)
    upstream = {p.name: latest(root, p.source.split("/")) for p in step.consumes if p.source}
    return compile_job(
        step,
        config,
        split.dotlist,
        profile=profile,
        mode="run" if profile else "local",
        environment=load_environment(project.root),
        passthrough=split.passthrough,
        offered={name: str(ref.path) for name, ref in upstream.items() if ref is not None},
        allow_unknown=allow_unknown,
        here=Path.cwd(),
    )


def dry_run(step: Step, config: str | None, profile: str | None, tokens: Sequence[str], allow_unknown: bool) -> None:
    """Print the compiled config; touch nothing."""
    import yaml

    spec = compiled(step, config, profile, tokens, allow_unknown)
    click.echo("# run")
    click.echo(yaml.safe_dump(redact(spec.run), sort_keys=False, allow_unicode=True))
    click.echo("# config")
    click.echo(yaml.safe_dump(redact(spec.train), sort_keys=False, allow_unicode=True), nl=False)


def run_step(
    step: Step, config: str | None, profile: str | None, tokens: Sequence[str], allow_unknown: bool, verbose: bool
) -> int:
    """Materialize one step of the catalog; the exit code."""
    if not step.ready:
        raise PayloadNotBuilt(
            f"{step.id} is in the catalog, but its payload is not built yet; nothing was run. "
            f"`nemotron steps show {step.id}` prints its contract."
        )
    split = split_tokens(tokens)
    spec = compiled(step, config, profile, tokens, allow_unknown)
    named = config is None or config in step.configs
    settings: dict[str, Any] = {
        "overrides": dict(parse_dotlist(split.dotlist)),
        "passthrough": list(split.passthrough),
        "allow_unknown": allow_unknown,
    }
    if named and config:
        settings["config"] = config
    elif config:
        settings["config_file"] = os.path.abspath(os.path.expanduser(config))
    if profile:
        settings["profile"] = profile
    if spec.delivery is not None:  # told before Dagster is imported; and only this process knows the user's directory
        delivery.check(spec.delivery)
        settings["overrides"][spec.delivery.key] = str(spec.delivery.path)
    key = tuple(step.id.split("/"))
    return materialize_and_tell(find_project(), [(step.id, key)], {key: settings}, verbose)


def materialize_and_tell(
    project: Project,
    nodes: Iterable[tuple[str, tuple[str, ...]]],
    settings: Mapping[tuple[str, ...], Mapping[str, Any]],
    verbose: bool,
    pipeline: str | None = None,
) -> int:
    """Materialize the assets with their progress on the terminal, then say where everything lies; the exit code."""
    from nemotron_dagster.cli.screen import screen
    from nemotron_dagster.dagster import live
    from nemotron_dagster.dagster.materialize import materialize, op_name

    nodes = list(nodes)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with screen(verbose) as shown, live.attached(shown):
        success = materialize(
            project,
            [key for _, key in nodes],
            {op_name(k): {"config": dict(v)} for k, v in settings.items()},
            {},
            pipeline,
        )
    for _, error in shown.errors:
        click.echo(f"Error: {error}", err=True)
    if shown.errors:
        return shown.errors[0][1].exit_code
    if not success:
        raise JobFailed("the run failed outside any step. Run again with `nemotron -v` to see Dagster's log.")
    for name, key in nodes:
        tell(project, name, key)
    return 0


def tell(project: Project, name: str, key: tuple[str, ...]) -> None:
    """Print where an asset's artifact lies and its headline figures."""
    from nemotron_dagster.artifacts import describe

    ref = latest(artifact_root(project), key)
    if ref is None:
        return
    click.echo(f"{name}: {ref.type} at {ref.path}")
    for k, v in describe.summary(ref).items():
        click.echo(f"    {k}: {v:,}" if isinstance(v, int) else f"    {k}: {v}")
    for picture in ref.manifest.facts.get("pictures", []):
        click.echo(f"    picture: {ref.uri}/{picture}")
    for warning in describe.warnings(ref):
        click.echo(f"Warning: {warning}", err=True)
    sys.stdout.flush()
