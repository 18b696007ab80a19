"""``nemotron artifacts check``: would a step take this artifact? The same checks as before a job is submitted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemotron_dagster.cli.completion import complete_step
from nemotron_dagster.cli.options import HELP
from nemotron_dagster.errors import ArtifactError, UsageError, did_you_mean
from nemotron_dagster.project import Project, find_project

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.manifest import ArtifactRef
    from nemotron_dagster.artifacts.port_locks import Result, Subject
    from nemotron_dagster.catalog import Port, Step


@click.command("check", context_settings=HELP)
@click.argument("artifact")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--for", "step_id", required=True, metavar="STEP", shell_complete=complete_step, help="Who is to read it."
)
@click.option("-c", "--config", metavar="NAME", help="A config of the step, or a path to a YAML file.")
@click.option("--port", "port_name", metavar="NAME", help="Which input (default: the first that takes its type).")
@click.option("--root", metavar="URL", help="Where artifacts lie (default: the project's root).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    artifact: str,
    overrides: tuple[str, ...],
    step_id: str,
    config: str | None,
    port_name: str | None,
    root: str | None,
    as_json: bool,
) -> None:
    """Check whether STEP would take ARTIFACT: its type, its files, and the locks of the input.

    ARTIFACT is an asset (its current version), asset@version, a directory or URL, or data that nothing has published.
    The other inputs are what the step would get now. Exits with 8 if the step would refuse it.
    """
    from nemotron_dagster.catalog import load_catalog

    project = find_project()
    step = load_catalog(project).find(step_id)
    port, subject, ref = _as_input(project, step, artifact, port_name, root)
    results = [_whole(port, ref)] if ref is not None else []
    results += _locks(project, step, port, subject, ref, config, overrides)
    refused = any(r.refuses for r in results)
    if as_json:
        rows = [{"name": r.name, "passed": r.passed, "severity": r.severity, "message": r.message} for r in results]
        about = {"artifact": subject.path, "type": subject.type, "step": step.id, "port": port.name}
        click.echo(json.dumps({**about, "fits": not refused, "results": rows}, indent=2, ensure_ascii=False))
    else:
        for r in results:
            word = "ok" if r.passed and r.severity == "error" else "refused" if r.refuses else "note"
            click.echo(f"{word:8}{r.name}: {r.message}")
        verdict = "does not fit" if refused else "fits"
        click.echo(f"{subject.name} ({subject.type}) {verdict} {step.id}, input {port.name}.", err=True)
    if refused:
        sys.exit(ArtifactError.exit_code)


def _as_input(
    project: Project, step: Step, artifact: str, port_name: str | None, root: str | None
) -> tuple[Port, Subject, ArtifactRef | None]:
    """The artifact as the input of one port.

    Raises:
        UsageError: there is no such artifact or port.
        ArtifactError: no port takes it.
    """
    from nemotron_dagster.artifacts import validate
    from nemotron_dagster.artifacts.port_locks import subject_at
    from nemotron_dagster.catalog import load_catalog
    from nemotron_dagster.jobs.inputs import upstream

    ports = {p.name: p for p in step.consumes}
    if port_name is not None and port_name not in ports:
        known = ", ".join(ports) or "none"
        raise UsageError(f"{step.id}: has no input {port_name!r}.{did_you_mean(port_name, ports)} Inputs: {known}.")
    wanted = [ports[port_name]] if port_name is not None else list(step.consumes)
    ref = _published(project, artifact, root)
    if ref is not None:
        types = load_catalog(project).types
        for port in wanted:
            if types.accepts(port.type, ref.type):
                return port, upstream(step, port, ref), ref
        takes = ", ".join(f"{p.name} ({p.type})" for p in wanted) or "no input"
        raise ArtifactError(
            f"{artifact}: is a {ref.type}; {step.id} takes {takes}. Give it an artifact of such a type."
        )
    problems = []
    for port in wanted:
        try:
            return port, subject_at(port.type, artifact, validate(port.type, Path(artifact).expanduser())), None
        except ArtifactError as e:
            problems.append(f"as {port.type}: {e}")
    raise ArtifactError("\n".join(problems) or f"{step.id} has no inputs. Name another step.")


def _published(project: Project, artifact: str, root: str | None) -> ArtifactRef | None:
    """The published artifact of that name; None for data that nothing has published.

    Raises:
        UsageError, ArtifactError: there is no such artifact, or it is damaged.
    """
    from nemotron_dagster.artifacts.inventory import find
    from nemotron_dagster.artifacts.places import place
    from nemotron_dagster.artifacts.store import artifact_root

    path = Path(artifact).expanduser()
    if "://" not in artifact and (path.is_file() or (path.is_dir() and not (path / "artifact.json").is_file())):
        where = place(root) if root else artifact_root(project)
        if not isinstance(where, Path) or not (where / artifact / "latest.json").is_file():
            return None
    version = find(place(root) if root else artifact_root(project), artifact)
    if version.ref is None:
        raise ArtifactError(version.problem)
    return version.ref


def _whole(port: Port, ref: ArtifactRef) -> Result:
    from nemotron_dagster.artifacts.manifest import read
    from nemotron_dagster.artifacts.places import place
    from nemotron_dagster.artifacts.port_locks import Result

    try:
        read(place(ref.uri))
    except ArtifactError as e:
        return Result("files", port.name, False, "error", str(e))
    return Result("files", port.name, True, "error", f"{len(ref.manifest.files):,} files are as the manifest says.")


def _locks(
    project: Project,
    step: Step,
    port: Port,
    subject: Subject,
    ref: ArtifactRef | None,
    config: str | None,
    overrides: tuple[str, ...],
) -> list[Result]:
    from nemotron_dagster.artifacts.localize import bound_path
    from nemotron_dagster.artifacts.port_locks import check as check_port
    from nemotron_dagster.cli.run import upstream as current
    from nemotron_dagster.config.profiles import load_environment
    from nemotron_dagster.jobs.inputs import upstream
    from nemotron_dagster.jobs.submission import compile_on

    ports = {p.name: p for p in step.consumes}
    others: dict[str, Any] = {n: r for n, r in current(project, step).items() if n != port.name}
    spec = compile_on(
        project,
        step,
        config,
        overrides,
        environment=load_environment(project.root),
        inputs={port.name: subject.path},
        offered={n: str(bound_path(ports[n], r)) for n, r in others.items()},
        submitting=False,
    )
    bound = {n: upstream(step, ports[n], r) for n, r in others.items() if n in spec.bound}
    return check_port(step, port, subject, spec.train, bound)
