"""``nemotron steps run``: an asset materialization in this process, or a preview of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from nemotron_dagster.artifacts.delivery import check as check_delivery
from nemotron_dagster.artifacts.localize import bound_path
from nemotron_dagster.artifacts.manifest import ArtifactRef
from nemotron_dagster.artifacts.store import artifact_root, latest
from nemotron_dagster.catalog import Step
from nemotron_dagster.cli.failures import warn
from nemotron_dagster.config.compile import JobSpec
from nemotron_dagster.config.compose import config_path
from nemotron_dagster.config.delivery import Delivery
from nemotron_dagster.config.overrides import parse_dotlist, split_tokens
from nemotron_dagster.config.profiles import load_environment
from nemotron_dagster.errors import JobFailed, PayloadNotBuilt, UsageError
from nemotron_dagster.jobs.submission import compile_on
from nemotron_dagster.project import Project, find_project, working_directory


@dataclass(frozen=True)
class Wanted:
    """What a command line asks for.

    Attributes:
        tokens: overrides and arguments of step.py as they were typed; after ``--`` only the latter.
        profile: run there and wait (-r).
        batch: submit there and return (-b).
        new: submit a job even where one of the very same spec is unfinished.
        leaves: Ctrl-C leaves the job running.
    """

    step: Step
    config: str | None = None
    profile: str | None = None
    batch: str | None = None
    tokens: tuple[str, ...] = ()
    allow_unknown: bool = False
    force_squash: bool = False
    new: bool = False
    leaves: bool = False

    @property
    def mode(self) -> str:
        """How the profile is used: local | run | batch."""
        return "batch" if self.batch else "run" if self.profile else "local"

    @property
    def config_named(self) -> str | None:
        """The config; a file as an absolute path, so that it is found from any directory."""
        if self.config and ("/" in self.config or self.config.endswith((".yaml", ".yml"))):
            return os.path.abspath(os.path.expanduser(self.config))
        return self.config

    @property
    def overrides(self) -> tuple[str, ...]:
        squash = ("run.env.force_squash=true",) if self.force_squash else ()
        return (*split_tokens(self.tokens).dotlist, *squash)

    @property
    def typed(self) -> tuple[str, ...]:
        """The tokens, without a ``--`` that nothing follows."""
        return self.tokens[:-1] if self.tokens[-1:] == ("--",) else self.tokens

    @property
    def passthrough(self) -> tuple[str, ...]:
        return split_tokens(self.tokens).passthrough


def compiled(wanted: Wanted, submitting: bool = True) -> JobSpec:
    """Compile as the asset will, so that a mistake is told before Dagster is even imported.

    Raises:
        ConfigError, ProfileError, UsageError: naming the file, key or value, and the fix.
        TargetError: with ``submitting``, the target takes no jobs.
    """
    project, step = find_project(), wanted.step
    if wanted.config_named != wanted.config:
        config_path(step, wanted.config)  # raises where there is none: it names the file as it was typed
    environment, profile = load_environment(project.root), wanted.batch or wanted.profile
    if wanted.force_squash:
        settings = environment.profile(profile) if profile else {}
        _knows_squash(project, str(settings.get("executor") or "local"))
    given = upstream(project, step)
    spec = compile_on(
        project,
        step,
        wanted.config_named,
        wanted.overrides,
        profile=profile,
        mode=wanted.mode,
        environment=environment,
        passthrough=wanted.passthrough,
        offered={p.name: str(bound_path(p, given[p.name])) for p in step.consumes if p.name in given},
        allow_unknown=wanted.allow_unknown,
        argv=wanted.typed,
        here=working_directory(),
        submitting=submitting,
    )
    for note in spec.notes:
        warn(f"Warning: {note}")
    return spec


def upstream(project: Project, step: Step) -> dict[str, ArtifactRef]:
    """Port name -> the current artifact of its default producer, where there is one."""
    root = artifact_root(project)
    found = {p.name: latest(root, p.source.split("/")) for p in step.consumes if p.source}
    return {name: ref for name, ref in found.items() if ref is not None}


def dry_run(wanted: Wanted, as_json: bool) -> None:
    """Print the compiled config and what would be submitted; touch nothing."""
    from nemotron_dagster.cli.preview import preview, print_preview

    print_preview(preview(find_project(), compiled(wanted, submitting=False)), as_json)


def explain_keys(wanted: Wanted, keys: Sequence[str], as_json: bool) -> None:
    """Print every layer that set each of ``keys`` of the compiled config; touch nothing."""
    from nemotron_dagster.config.explain import explain, render

    spec, environment = compiled(wanted, submitting=False), load_environment(find_project().root)
    profile = wanted.batch or wanted.profile
    found = {
        k: explain(wanted.step, wanted.config_named, wanted.overrides, profile, environment, k, spec) for k in keys
    }
    if as_json:
        rows = {
            k: [{**vars(layer), "position": layer.position and str(layer.position)} for layer in v]
            for k, v in found.items()
        }
        click.echo(json.dumps(rows, indent=2, default=str))
    else:
        click.echo("\n".join(render(layers) for layers in found.values()))


def run_step(wanted: Wanted, verbose: bool, as_json: bool) -> int:
    """Materialize one step of the catalog; the exit code."""
    refuse_planned(wanted.step)
    spec = compiled(wanted)
    settings: dict[str, Any] = {
        "overrides": dict(parse_dotlist(wanted.overrides)),
        "passthrough": list(wanted.passthrough),
        "allow_unknown": wanted.allow_unknown,
        "new": wanted.new,
    }
    if wanted.config_named:
        settings["config" if wanted.config in wanted.step.configs else "config_file"] = wanted.config_named
    if wanted.profile:
        settings["profile"] = wanted.profile
    if spec.delivery is not None:  # told before Dagster is imported; and only this process knows the user's directory
        check_delivery(spec.delivery)
        settings["overrides"][spec.delivery.key] = str(spec.delivery.path)
    key = tuple(wanted.step.id.split("/"))
    return materialize_and_tell(
        find_project(),
        [(wanted.step.id, key)],
        {key: settings},
        verbose,
        as_json=as_json,
        delivery=spec.delivery,
        leaves=wanted.leaves,
    )


def refuse_planned(step: Step) -> None:
    """Raises PayloadNotBuilt: the step's payload is not there yet."""
    if not step.ready:
        raise PayloadNotBuilt(
            f"{step.id} is in the catalog, but its payload is not built yet; nothing was run. "
            f"`nemotron steps show {step.id}` prints its contract."
        )


def materialize_and_tell(
    project: Project,
    nodes: Iterable[tuple[str, tuple[str, ...]]],
    settings: Mapping[tuple[str, ...], Mapping[str, Any]],
    verbose: bool,
    pipeline: str | None = None,
    as_json: bool = False,
    delivery: Delivery | None = None,
    leaves: bool = False,
) -> int:
    """Materialize the assets with their progress on the terminal, then say where everything lies; the exit code.

    ``delivery`` is the file to which the only asset's artifact was copied; with ``leaves`` Ctrl-C leaves the job.

    Raises:
        NemotronError: of the first step that failed.
    """
    from nemotron_dagster.cli.screen import screen
    from nemotron_dagster.dagster import live
    from nemotron_dagster.dagster.materialize import materialize, op_name

    nodes = list(nodes)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with screen(verbose, quiet=as_json) as shown, live.attached(shown, leaves):
        success = materialize(
            project,
            [key for _, key in nodes],
            {op_name(k): {"config": dict(v)} for k, v in settings.items()},
            {},
            pipeline,
        )
    for _, error in shown.errors[1:]:
        click.echo(f"Error: {error}", err=True)
    if shown.errors:
        raise shown.errors[0][1]
    if not success:
        raise JobFailed("the run failed outside any step. Run again with `nemotron -v` to see Dagster's log.")
    if as_json:
        delivered = {"delivered": str(delivery.path)} if delivery else {}
        rows = [{**told(project, name, key), **delivered} for name, key in nodes]
        click.echo(json.dumps(rows, indent=2, default=str))
        return 0
    for name, key in nodes:
        tell(project, name, key)
    return 0


def told(project: Project, name: str, key: tuple[str, ...]) -> dict[str, Any]:
    """What a run made, as data."""
    from nemotron_dagster.artifacts import describe

    ref = latest(artifact_root(project), key)
    if ref is None:
        return {"name": name, "artifact": None}
    manifest = ref.manifest
    return {
        "name": name,
        "artifact": {"type": ref.type, "uri": ref.uri, "path": str(ref.path), "key": manifest.key},
        "summary": describe.summary(ref),
        "warnings": describe.warnings(ref),
        "pictures": [f"{ref.folder}/{p}" for p in manifest.facts.get("pictures", [])],
        "job": manifest.job,
    }


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
        click.echo(f"    picture: {ref.folder}/{picture}")
    for warning in describe.warnings(ref):
        click.echo(f"Warning: {warning}", err=True)
    sys.stdout.flush()


def _knows_squash(project: Project, executor: str) -> None:
    """Raises UsageError: the target makes no squash files, so --force-squash would be dropped in silence."""
    from nemotron_dagster.jobs.target import target_files, target_module

    files = target_files(project)
    able = [name for name in files if "force_squash" in target_module(project, name).Settings.model_fields]
    if executor in files and executor not in able:
        only = f"Only {', '.join(able)} does." if able else "No target here does."
        raise UsageError(f"--force-squash: the target {executor} makes no container squash files. {only} Drop it.")
