"""``nemotron runs list | status | logs | cancel | attach | sync``: submitted jobs, from any process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from nemotron_dagster.cli.completion import complete_run
from nemotron_dagster.cli.failures import warn
from nemotron_dagster.cli.options import HELP, detach_option
from nemotron_dagster.errors import Cancelled, JobFailed, NemotronError, UsageError
from nemotron_dagster.jobs.target import State
from nemotron_dagster.project import find_project

if TYPE_CHECKING:
    from nemotron_dagster.jobs.ledger import Ledger, Record

_LIMIT = 20  # closed submissions that `list` shows


@click.group(context_settings=HELP)
def cli() -> None:
    """List, follow, cancel and publish submitted jobs, with or without a running Dagster.

    A job is named by the beginning of its submission's key, or by the scheduler's job id.

    \b
    nemotron runs list
    nemotron runs logs -f 4f2a
    nemotron runs sync
    """


def _json(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@cli.command("list", context_settings=HELP)
@click.option("-a", "--all", "everything", is_flag=True, help=f"Also those closed before the newest {_LIMIT}.")
@click.option(
    "--state", type=click.Choice([s.value for s in State], case_sensitive=False), help="Only jobs in this state."
)
@click.option("-n", "--limit", type=click.IntRange(1), metavar="N", help="Only the N newest.")
@_json
def list_runs(everything: bool, state: str | None, limit: int | None, as_json: bool) -> None:
    """List submissions, the newest last. A state followed by ? is the last one known: its cluster does not answer."""
    from nemotron_dagster.cli import runs_text as text
    from nemotron_dagster.jobs.sync import look

    book, problems = _ledger(), list[str]()
    records = book.all(None if everything or state else max(_LIMIT, limit or 0), problems)
    sights = look(find_project(), records)
    sights = [s for s in sights if state is None or text.state(s) == state][-(limit or 0) :]
    if as_json:
        text.print_json([text.row(s) for s in sights])
    elif sights:
        click.echo("\n".join(text.listing(sights, book.keys())))
    else:
        click.echo("No submissions.", err=True)
    for problem in dict.fromkeys([*problems, *(s.problem for s in sights if s.problem)]):
        warn(f"Warning: {problem}")


@cli.command(context_settings=HELP)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...", shell_complete=complete_run)
@_json
def status(keys: tuple[str, ...], as_json: bool) -> None:
    """Show all that is known of submissions: job ids, nodes, times, GPU-hours, why one waits or has failed."""
    from nemotron_dagster.cli import runs_text as text
    from nemotron_dagster.jobs.sync import look

    sights = look(find_project(), _named(keys))
    if as_json:
        text.print_json([text.details(s) for s in sights])
    else:
        click.echo("\n\n".join("\n".join(text.page(s)) for s in sights))
    for problem in dict.fromkeys(s.problem for s in sights if s.problem):
        warn(f"Warning: {problem}")


@cli.command(context_settings=HELP)
@click.argument("key", shell_complete=complete_run)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Begin with the last N lines.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the log; not with -f.")
def logs(key: str, follow: bool, tail: int | None, as_json: bool) -> None:
    """Print what the job of KEY wrote, byte for byte; of a walltime chain, what all its jobs wrote."""
    from nemotron_dagster.cli import runs_text as text
    from nemotron_dagster.jobs.logs import ends, pieces

    if follow and as_json:
        raise UsageError("-f and --json: give one of them.")
    [record] = _named([key])
    found = pieces(find_project(), record, follow)
    if tail is not None:
        found = ends(found, tail)
    if as_json:
        log = b"".join(p or b"" for p in found).decode("utf-8", errors="replace")
        text.print_json({"key": record.key, "log": log})
        return
    for piece in found:
        sys.stdout.buffer.write(piece or b"")
        sys.stdout.buffer.flush()


@cli.command(context_settings=HELP)
@click.argument("keys", nargs=-1, metavar="KEY...", shell_complete=complete_run)
@click.option("-a", "--all", "everything", is_flag=True, help="Cancel all that have not ended.")
@_json
def cancel(keys: tuple[str, ...], everything: bool, as_json: bool) -> int:
    """Cancel jobs, wait until they have ended, and close their submissions. Asks nothing; safe to repeat."""
    from nemotron_dagster.cli import runs_text as text
    from nemotron_dagster.jobs import sync

    if bool(keys) == everything:
        raise UsageError("name the jobs to cancel, or give --all; `nemotron runs list` prints them.")
    project, code, rows = find_project(), 0, []
    for record in _ledger().open() if everything else _named(keys):
        try:
            now, error = sync.cancel(project, record), ""
        except NemotronError as e:
            now, error, code = record, str(e), e.exit_code
        rows.append({"key": record.key, "step": record.order.step, "phase": now.phase, "error": error})
        if not as_json:
            click.echo(f"{record.key}  {text.cancelled(record, now, error)}")
    if as_json:
        text.print_json(rows)
    elif not rows:
        click.echo("Nothing to cancel.", err=True)
    return code


@cli.command(context_settings=HELP)
@click.argument("key", shell_complete=complete_run)
@detach_option
@_json
@click.pass_context
def attach(ctx: click.Context, key: str, leaves: bool, as_json: bool) -> int:
    """Follow KEY as `steps run` does: log, progress, and its artifact published at the end. Ctrl-C cancels the job."""
    from nemotron_dagster.cli.runs_attach import attach as follow

    [record] = _named([key])
    if record.phase in ("failed", "cancelled"):
        kind = Cancelled if record.phase == "cancelled" else JobFailed
        raise kind(record.error or f"{record.order.step}: the job has {record.phase}.")
    return follow(find_project(), record, bool((ctx.obj or {}).get("verbose")), leaves, as_json)


@cli.command(context_settings=HELP)
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=complete_run)
@_json
@click.pass_context
def sync(ctx: click.Context, keys: tuple[str, ...], as_json: bool) -> int:
    """Publish what jobs have made that ended while nobody watched, or record that they failed.

    Without KEY all of them. The exit code is 1 where one of them failed.
    """
    from nemotron_dagster.cli.runs_attach import sync_all

    return sync_all(find_project(), _named(keys) if keys else None, bool((ctx.obj or {}).get("verbose")), as_json)


def _ledger() -> Ledger:
    from nemotron_dagster.jobs.ledger import ledger

    return ledger(find_project().state)


def _named(keys: tuple[str, ...] | list[str]) -> list[Record]:
    from nemotron_dagster.jobs.sync import find

    book = _ledger()
    return list({r.key: r for r in (find(book, key) for key in keys)}.values())
