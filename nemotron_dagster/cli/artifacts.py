"""``nemotron artifacts ls | show | check | verify | lineage | diff | gc``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from nemotron_dagster.cli.artifacts_check import check
from nemotron_dagster.cli.options import HELP
from nemotron_dagster.errors import ArtifactError, UsageError
from nemotron_dagster.project import find_project

if TYPE_CHECKING:
    from nemotron_dagster.artifacts.inventory import Inventory, Version
    from nemotron_dagster.artifacts.places import Place

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@click.group(context_settings=HELP)
def cli() -> None:
    """List, show, check, compare and remove artifacts.

    An artifact is named by its asset (its current version), as asset@version, or by its directory or URL.

    \b
    nemotron artifacts ls 'sft/*'
    nemotron artifacts show sft/automodel
    nemotron artifacts lineage eval/model_eval --mermaid
    """


cli.add_command(check)


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """--root and --json, which every command takes."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    text = "Where artifacts lie: a directory or a URL (default: the project's root)."
    return click.option("--root", metavar="URL", help=text)(command)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Asset names below the root."""
    from pathlib import Path

    from nemotron_dagster.artifacts.inventory import asset_names

    root = _root(ctx.params.get("root"))
    names = asset_names(root) if isinstance(root, Path) else []  # TAB must not wait for a store
    return [click.shell_completion.CompletionItem(n) for n in names if n.startswith(incomplete)]


@cli.command("ls", context_settings=HELP)
@click.argument("pattern", required=False, shell_complete=_complete)
@_common
def list_artifacts(pattern: str | None, root: str | None, as_json: bool) -> None:
    """List the versions of all assets, or of those that PATTERN fits: a glob, or the beginning of a name.

    A star marks the current version.
    """
    from nemotron_dagster.cli import artifacts_text as text

    inventory = _scan(_root(root))
    versions = inventory.matching(pattern)
    if as_json:
        text.print_json([text.row(v) for v in versions])
    elif not versions:
        what = f"No artifacts fit {pattern!r}" if pattern else "No artifacts"
        click.echo(f"{what} in {inventory.root}.", err=True)
    else:
        click.echo("\n".join(text.listing(versions)))
    for label, problem in inventory.problems:
        click.echo(f"Warning: {label}: {problem}", err=True)


@cli.command(context_settings=HELP)
@click.argument("artifact", shell_complete=_complete)
@_common
def show(artifact: str, root: str | None, as_json: bool) -> None:
    """Show ARTIFACT: figures, tables, samples, columns, what it was made from and by what."""
    from nemotron_dagster.artifacts.inventory import find
    from nemotron_dagster.cli import artifacts_text as text

    version = _readable(find(_root(root), artifact))
    if as_json:
        text.print_json(text.details(version))
    else:
        click.echo("\n".join(text.page(version)))


@cli.command(context_settings=HELP)
@click.argument("artifacts", nargs=-1, shell_complete=_complete)
@click.option("--deep", is_flag=True, help="Also validate the content as its type.")
@_common
def verify(artifacts: tuple[str, ...], deep: bool, root: str | None, as_json: bool) -> None:
    """Read every byte of ARTIFACTS (default: all) and compare it with what was published.

    Prints every problem. With one or more, the exit code is 8.
    """
    from nemotron_dagster.artifacts.inventory import find
    from nemotron_dagster.artifacts.verify import problems
    from nemotron_dagster.cli import artifacts_text as text

    inventory = _scan(_root(root))
    versions = [find(inventory.root, a, inventory) for a in artifacts] or list(inventory.versions)
    found = [] if artifacts else [(label, problem) for label, problem in inventory.problems]
    with text.meter("verifying", sum(v.bytes for v in versions)) as progress:
        for version in versions:
            found += [(version.label, p) for p in problems(version, inventory, deep, progress)]
    if as_json:
        rows = [{"artifact": label, "problem": problem} for label, problem in found]
        text.print_json({"verified": len(versions), "bytes": sum(v.bytes for v in versions), "problems": rows})
    else:
        for label, problem in found:
            click.echo(f"{label}: {problem}")
        size = text.size(sum(v.bytes for v in versions))
        click.echo(f"{text.count(len(versions), 'artifact')}, {size}: {text.count(len(found), 'problem')}.", err=True)
    if found:
        sys.exit(ArtifactError.exit_code)


@cli.command(context_settings=HELP)
@click.argument("artifact", shell_complete=_complete)
@click.option("--up", is_flag=True, help="Only what it was made from.")
@click.option("--down", is_flag=True, help="Only what was made from it.")
@click.option("--mermaid", is_flag=True, help="Print a Mermaid flow chart.")
@_common
def lineage(artifact: str, up: bool, down: bool, mermaid: bool, root: str | None, as_json: bool) -> None:
    """Show what ARTIFACT was made from and what was made from it, by digest over all manifests of the root."""
    from nemotron_dagster.artifacts import lineage as lines
    from nemotron_dagster.artifacts.inventory import find
    from nemotron_dagster.cli import artifacts_text as text

    if mermaid and as_json:
        raise UsageError("--mermaid and --json: give one of them.")
    inventory = _scan(_root(root))
    version = _readable(find(inventory.root, artifact, inventory))
    both = up == down
    found = lines.graph(inventory, version, up or both, down or both)
    if as_json:
        text.print_json(lines.as_data(found))
    else:
        click.echo(lines.as_mermaid(found) if mermaid else "\n".join(lines.as_tree(found, up or both, down or both)))


@cli.command(context_settings=HELP)
@click.argument("a", shell_complete=_complete)
@click.argument("b", required=False, shell_complete=_complete)
@_common
def diff(a: str, b: str | None, root: str | None, as_json: bool) -> None:
    """Compare the versions A and B: config, code, inputs, figures, files. Without B: A with the version before it."""
    from nemotron_dagster.artifacts.compare import difference
    from nemotron_dagster.artifacts.inventory import find
    from nemotron_dagster.cli import artifacts_text as text

    where = _root(root)
    if b is None:
        inventory = _scan(where)
        new = _readable(find(where, a, inventory))
        old = _readable(_before(inventory, new))
    else:
        old, new = _readable(find(where, a)), _readable(find(where, b))
    assert old.ref is not None and new.ref is not None
    found = difference(old.ref, new.ref)
    if as_json:
        text.print_json({"a": old.uri, "b": new.uri, **found})
    else:
        click.echo("\n".join(text.differences(old, new, found)))


@cli.command(context_settings=HELP)
@click.option("--keep", type=click.IntRange(0), metavar="N", help="Keep the N newest versions of each asset.")
@click.option("--older-than", metavar="AGE", help="Remove only what is older: 90m, 12h, 30d, 2w.")
@click.option("-d", "--dry-run", is_flag=True, help="Print what would be removed, and stop.")
@_common
def gc(keep: int | None, older_than: str | None, dry_run: bool, root: str | None, as_json: bool) -> None:
    """Remove old versions, and what jobs and uploads that never finished left behind.

    Without --keep and --older-than the three newest versions of each asset stay. A current version, one that a kept
    version was made from, an input of a live job and a live job's files are never removed.
    """
    from nemotron_dagster.artifacts import collect
    from nemotron_dagster.cli import artifacts_text as text

    age = _age(older_than) if older_than else None
    inventory = _scan(_root(root))
    planned = collect.plan(inventory, keep if keep is not None else 3 if age is None else 1, age)
    done: list[Any] = []
    try:
        if dry_run:
            done = [*planned.versions, *planned.leftovers]
        else:
            with text.meter("removing", planned.bytes) as progress:
                for item in collect.execute(planned, inventory):
                    done.append(item)
                    progress(item.bytes)
    finally:
        freed = sum(item.bytes for item in done)
        rows = [text.removed(item) for item in done]
        if as_json:
            text.print_json({"dry_run": dry_run, "bytes": freed, "removed": rows, "kept": planned.kept})
        else:
            for row in rows:
                click.echo(f"{row['label']}  {text.size(row['bytes'])}  {row['what']}")
            verb = "would free" if dry_run else "freed"
            click.echo(f"{verb} {text.size(freed)}: {text.count(len(rows), 'directory', 'directories')}.", err=True)
            kept = ", ".join(f"{n} {reason}" for reason, n in planned.kept.items())
            click.echo(f"kept: {kept or 'nothing'}.", err=True)


def _root(named: str | None) -> Place:
    from nemotron_dagster.artifacts.places import place
    from nemotron_dagster.artifacts.store import artifact_root

    return place(named) if named else artifact_root(find_project())


def _scan(root: Place) -> Inventory:
    from nemotron_dagster.artifacts.inventory import scan

    return scan(root)


def _readable(version: Version) -> Version:
    if version.ref is None:
        raise ArtifactError(version.problem)
    return version


def _before(inventory: Inventory, version: Version) -> Version:
    same = [v for v in inventory.versions if (v.asset, v.partition) == (version.asset, version.partition)]
    names = [v.uri for v in same]
    at = names.index(version.uri) if version.uri in names else 0
    if at == 0:
        raise UsageError(f"{version.label}: there is no version before it to compare with. Name two: diff A B.")
    return same[at - 1]


def _age(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if not found:
        raise UsageError(f"--older-than {text}: is no age. Write 90m, 12h, 30d or 2w.")
    return float(found[1]) * _SECONDS[found[2]]
