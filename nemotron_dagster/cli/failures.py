"""Errors as a person or a script meets them: one message or one JSON object on stderr, and the exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import click

from nemotron_dagster.errors import Cancelled, NemotronError, UsageError, did_you_mean
from nemotron_dagster.files import told

INTERNAL = 70  # a bug of ours; EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # by Ctrl-C, where no job was cancelled
PIPE_CLOSED = 141  # whoever read our output went away, as for any Unix tool

_LONGEST = 300  # characters of a foreign exception that we repeat
_PLACE = re.compile(
    r"(?P<file>[~.]*/[^:\n]+|[^\s:]+\.(?:ya?ml|toml|py|jsonl?)):(?:(?P<line>\d+):(?:(?P<column>\d+):)?)?\s"
)


def from_click(e: click.ClickException) -> UsageError:
    """Click's own refusal in our style: what is wrong, the closest that exists, where help is."""
    ctx = getattr(e, "ctx", None)
    path = ctx.command_path if ctx else "nemotron"
    text, hint = e.message, ""
    if isinstance(e, click.NoSuchOption):
        known = [o for p in ctx.command.params for o in (*p.opts, *p.secondary_opts)] if ctx else []
        text = f"no such option {e.option_name}."
        hint = did_you_mean(e.option_name, [k for k in known if k.startswith("--")])
    elif ctx is not None and isinstance(ctx.command, click.Group) and (m := re.match("No such command '(.*)'", text)):
        text = f"no such command {m[1]!r}."
        hint = did_you_mean(m[1], ctx.command.list_commands(ctx))
    elif isinstance(e, click.MissingParameter) and e.param is not None:
        name = e.param.make_metavar(ctx) if ctx and isinstance(e.param, click.Argument) else e.param.opts[-1]
        text = f"{name} is missing."
    elif isinstance(e, click.BadParameter):
        text = e.format_message()
    text = text if text.endswith((".", "?", "!")) else f"{text}."
    return UsageError(f"{path}: {text}{hint} `{path} -h` prints what it takes.")


def internal(e: BaseException) -> NemotronError:
    """A bug of ours, in one line."""
    first = next(iter(str(e).strip().splitlines()), "")[:_LONGEST]
    what = f"{type(e).__name__}: {first}".rstrip(": ")
    error = NemotronError(f"internal error ({what}). Run again with `nemotron -v ...` and report what it prints.")
    error.exit_code = INTERNAL
    return error


def interrupted() -> NemotronError:
    error = Cancelled("interrupted.")
    error.exit_code = INTERRUPTED
    return error


def as_data(error: NemotronError) -> dict[str, Any]:
    """What ``--json`` prints for an error; file, line and column where the message begins with a place."""
    name = "InternalError" if error.exit_code == INTERNAL else type(error).__name__
    data: dict[str, Any] = {"error": name, "exit_code": error.exit_code, "message": str(error)}
    place = _PLACE.match(str(error))
    if place:
        data["file"] = place["file"]
        data |= {k: int(place[k]) for k in ("line", "column") if place[k]}
    return data


def warn(text: str) -> None:
    """Say something on stderr that is no error. With ``--json`` it is kept for ``tell`` or ``tell_warnings``."""
    obj = click.get_current_context().find_root().obj
    if isinstance(obj, dict) and obj.get("json"):
        obj.setdefault("warnings", []).append(text)
    else:
        click.echo(told(text), err=True)


def tell(error: NemotronError, as_json: bool, warnings: Sequence[str] = ()) -> None:
    """Print an error on stderr: one message, or one JSON object that also holds the warnings."""
    data = {**as_data(error), **({"warnings": list(warnings)} if warnings else {})}
    click.echo(json.dumps(data, indent=2) if as_json else f"Error: {told(error)}", err=True)


def tell_warnings(warnings: Sequence[str]) -> None:
    """Print on stderr what was kept, one JSON object a line."""
    for text in warnings:
        click.echo(json.dumps({"warning": text}), err=True)
