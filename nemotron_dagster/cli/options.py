"""How ``nemotron steps run`` reads its command line, and the run options that may also stand before the command."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

import click

from nemotron_dagster.cli.completion import complete_config, complete_profile

VERBATIM = "nemotron.verbatim"  # in Context.meta: what stood after `--`
_LIKE = 0.85  # how alike an unknown option must be to one of ours to be a slip and not the payload's

HELP = {"help_option_names": ["-h", "--help"]}


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare -c -r -b -d --force-squash --stage: at the root they are defaults for ``steps run``."""
    for option in reversed(
        [
            click.option(
                "-c", "--config", multiple=True, metavar="NAME", shell_complete=complete_config,
                help="A config of the step, or a path to a YAML file.",
            ),
            click.option(
                "-r", "--run", multiple=True, metavar="PROFILE", shell_complete=complete_profile,
                help="Run on this profile of env.toml and wait.",
            ),
            click.option(
                "-b", "--batch", multiple=True, metavar="PROFILE", shell_complete=complete_profile,
                help="Submit to this profile of env.toml and return.",
            ),
            click.option("-d", "--dry-run", is_flag=True, help="Print what would run, and stop."),
            click.option("--force-squash", is_flag=True, help="Make the container's squash file anew."),
            click.option("--stage", is_flag=True, hidden=True, help="Not built."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def detach_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare --detach-on-interrupt, of every command that watches a job."""
    return click.option(
        "--detach-on-interrupt", "leaves", is_flag=True, help="Ctrl-C leaves the job running instead of cancelling it."
    )(command)


class RunCommand(click.Command):
    """Takes its own options wherever they stand before ``--``; every other token is kept as it is and in order.

    Click's own parser would take `-lr` apart (its `r` is an option here) and would lose where ``--`` stood.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[VERBATIM] = tuple(args[at + 1 :])
        options, words = self._split(ctx, args[:at])
        return super().parse_args(ctx, [*options, "--", *words])

    def _split(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str]]:
        flags, valued = _names(self)
        options: list[str] = []
        words: list[str] = []
        left = iter(args)
        for arg in left:
            name = arg.partition("=")[0] if arg.startswith("--") else arg
            if name in flags or (name in valued and name != arg):
                options.append(arg)
            elif name in valued:
                value = next(left, None)
                if value is not None and not value.startswith("-"):
                    options += [arg, value]
                elif not ctx.resilient_parsing:
                    raise click.BadOptionUsage(name, f"Option {name!r} requires a value.", ctx)
            else:
                if not ctx.resilient_parsing:
                    self._refuse_slip(ctx, name, flags | valued, bool(words))
                words.append(arg)
        return options, words

    def _refuse_slip(self, ctx: click.Context, name: str, known: set[str], after_id: bool) -> None:
        """Refuse what is most likely a mistyped option: handed to the payload, it would start a run not asked for."""
        if not name.startswith("-") or name == "-":
            return
        close = difflib.get_close_matches(name, known, n=1, cutoff=_LIKE) if name.startswith("--") else []
        if name[:2] in known and not name.startswith("--"):
            close = [f"{name[:2]} {name[2:]}"]
        if close:
            raise click.UsageError(
                f"{name} is no option here. Did you mean {close[0]}? What is meant for step.py goes after --.", ctx
            )
        if not after_id:
            raise click.UsageError(f"{name} stands before the step's id. The id comes first.", ctx)


def once(name: str, *values: str) -> str | None:
    """The one value of an option, wherever and however often it was given.

    Raises:
        click.UsageError: it was given different values.
    """
    different = list(dict.fromkeys(values))
    if len(different) > 1:
        raise click.UsageError(f"{name} was given {len(different)} values: {', '.join(different)}. Give one.")
    return different[0] if different else None


def _names(command: click.Command) -> tuple[set[str], set[str]]:
    """Names of the options that take no value, and of those that take one."""

    def options() -> Iterator[click.Option]:
        for param in command.params:
            if isinstance(param, click.Option):
                yield param

    flags = {n for o in options() if o.is_flag for n in o.opts} | {"-h", "--help"}
    return flags, {n for o in options() if not o.is_flag for n in o.opts}
