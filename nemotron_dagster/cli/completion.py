"""Shell completion: what TAB offers, and the scripts that make bash, zsh and fish ask.

A function that completes never raises and never writes: whatever is wrong with a project, TAB offers nothing then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from nemotron_dagster.catalog import Catalog, Step, load_catalog
from nemotron_dagster.project import find_project

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def quiet(function: Callable[[click.Context, str], Iterable[str | tuple[str, str]]]) -> Complete:
    """A completer for click from a function that gives candidates, or (candidate, help): those that fit, no errors."""

    @wraps(function)
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found: dict[str, CompletionItem] = {}
        try:
            for candidate in function(ctx, incomplete):
                value, help_text = candidate if isinstance(candidate, tuple) else (candidate, None)
                if value.startswith(incomplete):
                    found.setdefault(value, CompletionItem(value, help=help_text))
        except Exception:  # TAB is no place to tell of a broken file
            return list(found.values())
        return list(found.values())

    return complete


def _catalog() -> Catalog:
    return load_catalog(find_project())


@quiet
def complete_step(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Ids; and once something is typed, the folder names that belong to one step only."""
    steps = _catalog().steps.values()
    tails: dict[str, list[Step]] = {}
    for step in steps:
        yield step.id, step.summary
        tails.setdefault(step.id.split("/")[-1], []).append(step)
    if incomplete:
        yield from ((tail, s[0].id) for tail, s in tails.items() if len(s) == 1)


@quiet
def complete_config(ctx: click.Context, incomplete: str) -> Iterator[str]:
    """Config names of the step that stands on the line, or files."""
    if "/" not in incomplete and not incomplete.startswith("."):
        step = _step(ctx)
        yield from step.configs if step else ()
        return
    folder, _, start = incomplete.rpartition("/")
    for entry in sorted(os.scandir(os.path.expanduser(folder) or "/"), key=lambda e: e.name):
        if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
            if entry.is_dir():
                yield f"{folder}/{entry.name}/"
            elif entry.name.endswith((".yaml", ".yml")):
                yield f"{folder}/{entry.name}"


@quiet
def complete_profile(ctx: click.Context, incomplete: str) -> Iterator[str]:
    """The profiles of env.toml."""
    from nemotron_dagster.config.profiles import load_environment

    yield from load_environment(find_project().root).profiles


@quiet
def complete_override(ctx: click.Context, incomplete: str) -> Iterator[str]:
    """Keys of the chosen config with ``=``; after it the choices that the manifest or a switch gives."""
    from nemotron_dagster.config.compose import config_path, load_yaml
    from nemotron_dagster.config.keys import flat, join, merge

    step = _step(ctx)
    if step is None or step.runspec is None or incomplete.startswith("-"):
        return
    choices = {p.name: [_text(c) for c in p.choices] for p in step.parameters}
    chosen = next(iter((ctx.params.get("config") or ())[-1:]), None)
    config: dict[str, Any] = {}
    for name in dict.fromkeys([step.runspec.default_config, chosen or step.runspec.default_config]):
        config = merge(config, load_yaml(config_path(step, name)))
    config.pop("run", None)
    known = {join(path): value for path, value in flat(config)}
    key, equals, _ = incomplete.partition("=")
    if equals:
        values = choices.get(key) or (["true", "false"] if isinstance(known.get(key), bool) else [])
        yield from (f"{key}={value}" for value in values)
    else:
        yield from (f"{key}=" for key in sorted({*known, *choices}))


def of_catalog(values: Callable[[Catalog], Iterable[str]]) -> Complete:
    """Completes the values that a filter of `steps list` may have."""
    return quiet(lambda ctx, incomplete: sorted(set(values(_catalog()))))


@quiet
def complete_pipeline(ctx: click.Context, incomplete: str) -> Iterator[str]:
    """Names of the project's pipelines."""
    from nemotron_dagster.pipelines import find_pipelines, load_pipeline

    catalog = _catalog()
    for file in find_pipelines(find_project(ctx.params.get("folder"))):
        try:
            yield load_pipeline(file, catalog).name
        except Exception:  # the others still have names
            continue


@quiet
def complete_run(ctx: click.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Keys of submissions, the newest first; no cluster is asked."""
    import json

    folder = find_project().state / "ledger"
    files = [e for name in ("open", "done") if (folder / name).is_dir() for e in os.scandir(folder / name)]
    fitting = [e for e in files if e.name.startswith(incomplete) and e.name.endswith(".json")]
    for entry in sorted(fitting, key=lambda e: e.stat().st_mtime, reverse=True)[:100]:
        try:
            record = json.loads(Path(entry.path).read_text(encoding="utf-8"))
            about = f"{record['order']['step']}  {record['phase']}"
        except (OSError, ValueError, KeyError, TypeError):  # the others still have keys
            continue
        yield entry.name.removesuffix(".json"), about


def _step(ctx: click.Context) -> Step | None:
    name = ctx.params.get("step_id")
    return _catalog().find(name) if name else None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# The shells
# ---------------------------------------------------------------------------------------------------------------------

VARIABLE = "_NEMOTRON_COMPLETE"

#: bash cuts words at the characters of COMP_WORDBREAKS (`=`, `:`) and replaces only what follows the last of them, so
#: the whole line is handed over and that much is taken off what comes back.
_BASH = """\
_nemotron_completion() {
    local IFS=$'\\n' line kind value cut=
    local before="${COMP_LINE:0:COMP_POINT}" breaks="${COMP_WORDBREAKS//[^=:]/}"
    local current="${before##*[[:space:]]}"
    COMPREPLY=()
    [[ -n $breaks ]] && cut="${current%"${current##*["$breaks"]}"}"
    for line in $(COMP_WORDS="$before" COMP_CWORD= _NEMOTRON_COMPLETE=bash_complete "$1" 2>/dev/null); do
        kind="${line%%,*}" value="${line#*,}"
        [[ $kind == plain ]] || continue
        [[ $value == *[=/] ]] && compopt -o nospace 2>/dev/null
        COMPREPLY+=("${value#"$cut"}")
    done
}
complete -o nosort -F _nemotron_completion nemotron
"""

_ZSH = """\
#compdef nemotron
_nemotron_completion() {
    local -a answer closed open
    local kind value about
    (( $+commands[nemotron] )) || return 1
    answer=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) _NEMOTRON_COMPLETE=zsh_complete \\
        nemotron 2>/dev/null)}")
    for kind value about in "${answer[@]}"; do
        [[ $kind == plain ]] || continue
        if [[ $value == *[=/] ]]; then open+=("$value"); else closed+=("$value"); fi
    done
    (( ${#open} )) && compadd -U -S '' -a open
    (( ${#closed} )) && compadd -U -a closed
    return 0
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _nemotron_completion "$@"
else
    compdef _nemotron_completion nemotron
fi
"""

_FISH = """\
function _nemotron_completion
    set -lx _NEMOTRON_COMPLETE fish_complete
    set -lx COMP_WORDS (commandline -cp | string collect)
    set -lx COMP_CWORD (commandline -ct | string collect)
    for line in (nemotron 2>/dev/null)
        set -l parts (string split -m 1 , -- $line)
        test "$parts[1]" = plain; and echo $parts[2]
    end
end
complete --no-files --command nemotron --arguments "(_nemotron_completion)"
"""

SCRIPTS: Mapping[str, str] = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def complete_line(cli: click.Command, instruction: str) -> None:
    """Answer one TAB on stdout, in click's protocol (``COMP_WORDS``, ``COMP_CWORD``; an empty one: COMP_WORDS is the
    line up to the cursor)."""
    from click.shell_completion import get_completion_class, split_arg_string

    shell = instruction.partition("_")[0]
    kind = get_completion_class(shell)
    if kind is None or shell not in SCRIPTS:
        return
    completer = kind(cli, {}, "nemotron", VARIABLE)
    line = os.environ.get("COMP_WORDS", "")
    if shell == "bash" and not os.environ.get("COMP_CWORD"):
        words = split_arg_string(line)
        fresh = not line or line[-1].isspace()
        args, incomplete = (words[1:], "") if fresh else (words[1:-1], words[-1] if len(words) > 1 else "")
    else:
        args, incomplete = completer.get_completion_args()
    found = completer.get_completions(args, incomplete)
    prefix = incomplete.partition("=")[0] + "=" if incomplete.startswith("--") and "=" in incomplete else ""
    for item in found:
        if prefix and not str(item.value).startswith(prefix):
            item.value = prefix + str(item.value)
        print(completer.format_completion(item))
    sys.stdout.flush()


def detect_shell() -> str | None:
    """The shell that started this process, else the one of ``SHELL``; None where it is none of ours."""
    pid = os.getppid()
    for _ in range(10):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            break
        name = fields.partition("(")[2].rpartition(")")[0]
        if name in SCRIPTS:
            return name
        pid = int(fields.rpartition(")")[2].split()[1])
    name = Path(os.environ.get("SHELL", "")).name
    return name if name in SCRIPTS else None


def install(shell: str) -> list[Path]:
    """Write the script where the shell finds it; the files that were written or changed.

    Raises:
        OSError: one of them cannot be written.
    """
    home = Path.home()
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return [_put(config / "fish" / "completions" / "nemotron.fish", SCRIPTS[shell])]
    if shell == "zsh":
        script = _put(home / ".zfunc" / "_nemotron", SCRIPTS[shell])
        start = Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
        return [script, *_add(start, 'fpath=("$HOME/.zfunc" $fpath)\nautoload -Uz compinit && compinit')]
    script = _put(home / ".bash_completions" / "nemotron.sh", SCRIPTS[shell])
    return [script, *_add(home / ".bashrc", 'source "$HOME/.bash_completions/nemotron.sh"')]


def _put(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def _add(file: Path, lines: str) -> list[Path]:
    """Append lines to a start-up file, once."""
    mark = "# nemotron completion"
    old = file.read_text(encoding="utf-8", errors="surrogateescape") if file.exists() else ""
    if mark in old:
        return []
    with open(file, "a", encoding="utf-8") as out:
        out.write(f"{'' if not old or old.endswith(chr(10)) else chr(10)}{mark}\n{lines}\n")
    return [file]
