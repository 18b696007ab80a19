"""``nemotron runs attach | sync``: runs that adopt what other processes have submitted."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import click

from nemotron_dagster.cli.failures import INTERRUPTED, warn
from nemotron_dagster.errors import JobFailed, NemotronError
from nemotron_dagster.jobs.ledger import OPEN, Record, ledger
from nemotron_dagster.jobs.sync import look, unpublished
from nemotron_dagster.project import Project


def attach(project: Project, record: Record, verbose: bool, leaves: bool, as_json: bool) -> int:
    """Follow a submission in a run of this process, and tell what it made; the exit code.

    Raises:
        NemotronError: of the job.
    """
    from nemotron_dagster.cli.run import tell, told
    from nemotron_dagster.cli.runs_text import print_json
    from nemotron_dagster.cli.screen import screen
    from nemotron_dagster.dagster import live
    from nemotron_dagster.dagster.materialize import adopt

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if record.phase != "published" or record.key in ledger(project.state).owed():
        with screen(verbose, quiet=as_json) as shown, live.attached(shown, leaves):
            success = adopt(project, record)
        if shown.errors:
            raise shown.errors[0][1]
        if not success:
            raise JobFailed("the run failed outside the step. Run again with `nemotron -v` to see Dagster's log.")
    if as_json:
        print_json(told(project, record.order.step, record.order.asset))
    else:
        tell(project, record.order.step, record.order.asset)
    return 0


def sync_all(project: Project, named: Sequence[Record] | None, verbose: bool, as_json: bool) -> int:
    """Publish or record every submission that has ended and nobody watches, of ``named`` if given; the exit code."""
    from nemotron_dagster.cli.runs_text import print_json

    due = {s.record.key: s.record for s in unpublished(project, lambda text: warn(f"Warning: {text}"))}
    rows: list[dict[str, Any]] = []
    for record in due.values() if named is None else named:
        said = _publish(project, record, verbose) if record.key in due else _not_due(project, record)
        rows.append({"key": record.key, "step": record.order.step, **said})
        if not as_json:
            click.echo(f"{record.key}  {record.order.step}  {said['what']}: {said['text']}".rstrip(": "))
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("Nothing to publish.", err=True)
    return int(any(r["what"] in ("failed", "not published") for r in rows))


def _publish(project: Project, record: Record, verbose: bool) -> dict[str, str]:
    from nemotron_dagster.cli.screen import screen
    from nemotron_dagster.dagster import live
    from nemotron_dagster.dagster.materialize import adopt

    try:
        with screen(verbose, quiet=True) as shown, live.attached(shown, leaves=True):
            adopt(project, record)
    except NemotronError as e:
        return {"what": "not published", "text": str(e)}
    if shown.errors and shown.errors[0][1].exit_code == INTERRUPTED:
        raise shown.errors[0][1]
    now = ledger(project.state).get(record.key) or record
    if now.phase in OPEN:
        problem = str(shown.errors[0][1]) if shown.errors else "the run failed; `nemotron -v runs sync` shows why"
        return {"what": "not published", "text": problem}
    return {"what": now.phase, "text": now.uri or (now.error.splitlines() or [""])[0]}


def _not_due(project: Project, record: Record) -> dict[str, str]:
    """Why a named submission is left alone."""
    now = ledger(project.state).get(record.key) or record
    if now.phase not in OPEN:
        return {"what": now.phase, "text": now.uri or (now.error.splitlines() or [""])[0]}
    [sight] = look(project, [now])
    if sight.problem:
        return {"what": "not published", "text": sight.problem}
    if sight.ended:
        return {"what": "watched", "text": "another process watches it, and publishes it"}
    return {"what": "goes on", "text": sight.status.state.lower() if sight.status else "no job yet"}
