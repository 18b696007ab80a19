"""TAB: what bash, zsh and fish are offered, that it is quick, and that nothing ever lands in the shell but answers."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import REPO

SHELLS = ["bash", "zsh", "fish"]
Tab = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Path]:
    """A folder with the ``nemotron`` command in it, as a shell finds it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nemotron").write_text(
        f'#!/bin/sh\nPYTHONPATH="{REPO}" exec "{sys.executable}" -m nemotron_dagster.cli.main "$@"\n'
    )
    (folder / "nemotron").chmod(0o755)
    yield folder


@pytest.fixture
def tab(environ: dict[str, str], project: Path) -> Tab:
    """What a shell is offered for a line with the cursor at its end, by click's protocol."""
    (project / "env.toml").write_text('[lap]\nexecutor = "local"\n[far]\nexecutor = "slurm"\n')
    (project / "steps/demo/rows/config/small.yaml").write_text("n: 1\nonly_here: {deep: true}\n")

    def offered(line: str, shell: str = "bash") -> list[str]:
        words = line.split(" ")
        env = {**environ, "_NEMOTRON_COMPLETE": f"{shell}_complete", "COMP_WORDS": line}
        env["COMP_CWORD"] = words[-1] if shell == "fish" else str(len(words) - 1)
        argv = [sys.executable, "-m", "nemotron_dagster.cli.main"]
        done = subprocess.run(argv, cwd=project, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        if shell == "zsh":
            return [v.replace("\\:", ":") for v in lines[1::3]]
        return [entry.partition(",")[2].partition("\t")[0] for entry in lines]

    return offered


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("nemotron st", ["steps"]),
        ("nemotron steps ", ["list", "run", "show", "new", "check"]),
        ("nemotron steps show sft/a", ["sft/automodel"]),
        ("nemotron steps run rlv", ["rlvr"]),
        ("nemotron -v steps run demo/", ["demo/count", "demo/rows"]),
        ("nemotron steps run rows -c ", ["default", "small"]),
        ("nemotron steps run -c sm", []),
        ("nemotron steps run rows -c small -r ", ["lap", "far", "local"]),
        ("nemotron -b f", ["far"]),
        ("nemotron env show f", ["far"]),
        ("nemotron steps run rows sec", ["section.inner="]),
        ("nemotron steps run demo/rows -c small only", ["only_here.deep="]),
        ("nemotron steps run rows n=3 mode=", ["mode=a", "mode=b", "mode=null"]),
        ("nemotron steps run rows fail=", ["fail=true", "fail=false"]),
        ("nemotron steps run rows --config=sm", ["--config=small"]),
        ("nemotron steps list --category de", ["demo"]),
        ("nemotron steps list --produces checkpoint_l", ["checkpoint_lora"]),
        ("nemotron steps list --tag lor", ["lora"]),
        ("nemotron steps run rows --allow", ["--allow-unknown"]),
        ("nemotron steps show nosuch", []),
        ("nemotron nosuch x", []),
    ],
)
def test_what_tab_offers(tab: Tab, shell: str, line: str, found: list[str]) -> None:
    assert tab(line, shell) == found


def test_config_files_and_pipelines(tab: Tab, project: Path) -> None:
    (project / "mine.yaml").write_text("n: 1\n")
    (project / "pipelines").mkdir()
    (project / "pipelines/chain.yaml").write_text("nodes: {a: {step: demo/rows}}\n")
    (project / "pipelines/broken.yaml").write_text("nodes: [\n")
    assert tab("nemotron steps run rows -c ./m") == ["./mine.yaml"]
    assert tab("nemotron pipelines run ") == ["chain"]


@pytest.mark.parametrize("line", ["steps show d", "steps run rows ", "steps run rows -r ", "steps run rows -c "])
def test_a_broken_project_never_writes_into_the_shell(tab: Tab, project: Path, line: str) -> None:
    (project / "steps/demo/rows/step.toml").write_text("[step\n")
    (project / "steps/types.toml").write_text("[x\n")
    (project / "env.toml").write_text("[x\n")
    tab(f"nemotron {line}")  # asserts that it exits with 0 and that stderr is empty


def test_tab_imports_nothing_heavy(environ: dict[str, str], project: Path) -> None:
    code = """
import os, sys
class Deny:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("dagster", "omegaconf", "pydantic", "rich", "nemo_run", "pyarrow"):
            os.write(1, f"imports {name}".encode())
sys.meta_path.insert(0, Deny())
from nemotron_dagster.cli.main import main
main()
"""
    env = {**environ, "PYTHONPATH": str(REPO), "_NEMOTRON_COMPLETE": "bash_complete"}
    env |= {"COMP_WORDS": "nemotron steps run sft/automodel -c tiny opt", "COMP_CWORD": "6"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=project, env=env, capture_output=True, text=True, check=True)
    assert "imports" not in done.stdout and "plain,optimizer" in done.stdout, done.stdout


def answer(keys: list[tuple[str, str]], environment: dict[str, str], cwd: Path) -> None:
    """Type into an interactive bash; after each piece of typing its expected echo must appear."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    try:
        for typed, expected in keys:
            os.write(terminal, typed.encode())
            seen, deadline = "", time.monotonic() + 30
            while not re.search(expected, seen):
                assert time.monotonic() < deadline, f"typed {typed!r}, saw {seen!r}, no {expected!r}"
                if select.select([terminal], [], [], 0.2)[0]:
                    seen += os.read(terminal, 1 << 16).decode(errors="replace")
    finally:
        os.write(terminal, b"\x15\x04")
        os.close(terminal)
        os.waitpid(pid, 0)


def test_a_real_bash_completes_ids_keys_choices_and_options(
    command: Path, tab: Tab, environ: dict[str, str], project: Path
) -> None:
    env = {**environ, "PATH": f"{command}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "READY>"}
    answer(
        [
            ('eval "$(nemotron --show-completion bash)"; echo lo""aded\n', r"loaded\s+READY>"),
            ("nemotron steps sh\t", r"show $"),
            ("demo/ro\t", r"demo/rows $"),
            ("\x15nemotron steps run rows sect\t", r"section\.inner=$"),
            ("2 mode=b\t", r"mode=b $"),
            ("--config=sm\t", r"--config=small $"),
            ("-r la\t", r"-r lap $"),
        ],
        env,
        project,
    )


@pytest.mark.parametrize(
    ("shell", "files"),
    [
        ("bash", [".bash_completions/nemotron.sh", ".bashrc"]),
        ("zsh", [".zfunc/_nemotron", ".zshrc"]),
        ("fish", [".config/fish/completions/nemotron.fish"]),
    ],
)
def test_installing_writes_where_the_shell_looks_and_twice_changes_nothing(
    nemotron, environ: dict[str, str], tmp_path: Path, shell: str, files: list[str]
) -> None:
    home = Path(environ["HOME"])
    (home / ".bashrc").write_text("alias x=y")
    for _ in range(2):
        done = nemotron("--install-completion", shell, cwd=tmp_path, ZDOTDIR="", XDG_CONFIG_HOME="")
        assert done.returncode == 0 and files[0] in done.stdout, done.stderr
    shown = nemotron("--show-completion", shell, cwd=tmp_path).stdout
    assert (home / files[0]).read_text() == shown and "_NEMOTRON_COMPLETE" in shown
    if len(files) > 1:
        assert (home / files[1]).read_text().count("# nemotron completion") == 1
    assert (home / ".bashrc").read_text().startswith("alias x=y")


def test_a_home_that_cannot_be_written_is_named(nemotron, tmp_path: Path) -> None:
    done = nemotron("--install-completion", "bash", cwd=tmp_path, HOME="/proc/nope")
    assert done.returncode == 2 and "/proc/nope" in done.stderr and "--show-completion bash" in done.stderr


def test_the_shell_is_found_out_when_it_is_not_named(command: Path, environ: dict[str, str], tmp_path: Path) -> None:
    env = {**environ, "PATH": f"{command}:{os.environ['PATH']}", "SHELL": "/bin/zsh"}
    script = ["bash", "--norc", "-c", "nemotron --show-completion; true"]
    done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("_nemotron_completion() {") and "COMP_LINE" in done.stdout
