"""Entry point: the command tree, options before the command, and errors as messages with exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

from nemotron_dagster import __version__
from nemotron_dagster.cli import failures
from nemotron_dagster.cli.completion import SCRIPTS, VARIABLE
from nemotron_dagster.cli.options import HELP, run_options
from nemotron_dagster.errors import NemotronError

_GROUPS = {
    "init": ("nemotron_dagster.cli.scaffold", "Make a project of your own."),
    "steps": ("nemotron_dagster.cli.steps", "List, show, run, add and check steps."),
    "runs": ("nemotron_dagster.cli.runs", "List, follow, cancel and publish submitted jobs."),
    "pipelines": ("nemotron_dagster.cli.pipelines", "Run the pipelines of a project."),
    "artifacts": ("nemotron_dagster.cli.artifacts", "List, show, check, compare and remove artifacts."),
    "env": ("nemotron_dagster.cli.env", "Profiles of env.toml, and payload environments."),
    "ui": ("nemotron_dagster.cli.ui", "Open the Dagster UI of this project."),
}
_REST = "nemotron.rest"
_SHELLS = click.Choice(["auto", *SCRIPTS])


class LazyGroup(click.Group):
    """Imports a command's module when the command is used: `steps list` must not pay for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_GROUPS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _GROUPS:
            return None
        command: click.Command = importlib.import_module(_GROUPS[name][0]).cli
        return command

    def invoke(self, ctx: click.Context) -> Any:
        ctx.meta[_REST] = list(ctx.args)  # what follows the command's name; gone when the callback runs
        return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _GROUPS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(n, help=text) for n, (_, text) in _GROUPS.items() if n.startswith(incomplete)]


def _verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and isinstance(ctx.obj, dict):
        ctx.obj["verbose"] = True


def _show_completion(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        click.echo(SCRIPTS[_shell(ctx, param, value)], nl=False)
        ctx.exit()


def _install_completion(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None or ctx.resilient_parsing:
        return
    from nemotron_dagster.cli.completion import install

    shell = _shell(ctx, param, value)
    try:
        for file in install(shell):
            click.echo(f"Wrote {file}")
    except OSError as e:
        raise click.UsageError(
            f"{e.filename}: cannot be written ({e.strerror}). `nemotron --show-completion {shell}` prints the script; "
            "put it where you can.",
            ctx,
        ) from e
    click.echo(f"Completion for {shell} is there in every new shell.")
    ctx.exit()


def _shell(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from nemotron_dagster.cli.completion import detect_shell

    shell = detect_shell() if value == "auto" else value
    if shell is None:
        raise click.UsageError(f"the shell is not known. Name it: {param.opts[0]} {'|'.join(SCRIPTS)}.", ctx)
    return shell


@click.group(cls=LazyGroup, context_settings=HELP)
@click.version_option(__version__, prog_name="nemotron")
@click.option(
    "-v", "--verbose", is_flag=True, is_eager=True, expose_value=False, callback=_verbose,
    help="Show tracebacks and Dagster's own log.",
)  # fmt: skip
@run_options
@click.option(
    "--install-completion", type=_SHELLS, is_flag=False, flag_value="auto", is_eager=True, expose_value=False,
    callback=_install_completion, help="Make TAB complete in bash, zsh or fish (default: this shell).",
)  # fmt: skip
@click.option(
    "--show-completion", type=_SHELLS, is_flag=False, flag_value="auto", is_eager=True, expose_value=False,
    callback=_show_completion, help="Print the script for that.",
)  # fmt: skip
@click.pass_context
def cli(ctx: click.Context, /, **defaults: Any) -> None:
    """NVIDIA Nemotron steps as Dagster assets.

    -c, -r, -b, -d and --force-squash are options of `steps run`; given here they reach it. -v stands only here.

    \b
    nemotron steps list
    nemotron steps run sft/automodel -c tiny
    """
    given = {name: value for name, value in defaults.items() if value}
    rest = ctx.meta[_REST]
    command = " ".join([str(ctx.invoked_subcommand), *rest[:1]])
    if given and command != "steps run" and not {"-h", "--help"} & set(rest):
        names = ", ".join(f"--{n.replace('_', '-')}" for n in given)
        raise click.UsageError(f"{names}: only `nemotron steps run` takes that, `nemotron {command}` does not.", ctx)
    ctx.ensure_object(dict)["run"] = given


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit. An error becomes one message on stderr, or JSON with ``--json``, and its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that is not UTF-8
    if VARIABLE in os.environ:
        _complete(os.environ[VARIABLE])
    as_json = "--json" in args[: args.index("--") if "--" in args else None]
    obj: dict[str, Any] = {"verbose": False, "run": {}, "json": as_json, "warnings": []}
    error: NemotronError | None = None
    cause: BaseException | None = None
    code: Any = 0
    try:
        with cli.make_context("nemotron", args, obj=obj) as ctx:
            code = cli.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as e:
        code = e.exit_code
    except BrokenPipeError:
        _leave_pipe()
        sys.exit(failures.PIPE_CLOSED)
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.ctx.get_help() if e.ctx else "")
        sys.exit(0)
    except (KeyboardInterrupt, click.Abort) as e:
        error, cause = failures.interrupted(), e
    except click.ClickException as e:
        error, cause = failures.from_click(e), e
    except NemotronError as e:
        error = cause = e
    except Exception as e:  # the last place where a bug can become a message
        error, cause = failures.internal(e), e
    if error is None:
        failures.tell_warnings(obj["warnings"])
        sys.exit(code if isinstance(code, int) else 0)
    if obj["verbose"]:
        import traceback

        assert cause is not None
        traceback.print_exception(cause)
    failures.tell(error, as_json, obj["warnings"])
    sys.exit(error.exit_code)


def _complete(instruction: str) -> NoReturn:
    """Answer TAB; whatever goes wrong stays out of the shell."""
    from nemotron_dagster.cli.completion import complete_line

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with suppress(BaseException):
        complete_line(cli, instruction)
    with suppress(OSError):
        sys.stdout.flush()
    sys.exit(0)


def _leave_pipe() -> None:
    """Point stdout elsewhere, so that the interpreter's last flush does not fail too."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
