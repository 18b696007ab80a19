"""``nemotron init``: a project of one's own that runs and passes its own test. Written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from nemotron_dagster.errors import PreflightError, UsageError

#: Written last where the folder is there already: they make it a project.
_MARKERS = ("pyproject.toml", "workspace.yaml")
_SHOWN = 5
SCHEMA = "env/env.schema.json"


@click.command("init", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option("--name", help="The project's name (default: the folder's).")
def cli(directory: Path, name: str | None) -> None:
    """Make a project in DIR (default: here), a folder that is empty or not there yet.

    It has a step, an execution target, profiles and a pipeline of its own, and a test that runs them.
    """
    from nemotron_dagster.cli.names import check_project_name

    folder = Path(os.path.abspath(directory.expanduser()))
    refuse_unusable(folder)
    chosen = check_project_name(name, "--name") if name is not None else check_project_name(folder.name, "the folder")
    files = project_files(chosen)
    write_project(folder, files)
    click.echo(f"{chosen} is in {folder}")
    click.echo("\n".join(f"    {line}" for line in tree([*files, SCHEMA])))
    click.echo("Next:")
    if folder != Path.cwd():
        click.echo(f"    cd {_quoted(directory)}")
    click.echo("    nemotron steps run data/times_tables -c tiny -r gentle")
    click.echo("    nemotron pipelines run times_tables")
    if folder == Path.cwd():
        click.echo("    nemotron ui")


def project_files(name: str) -> dict[str, str]:
    """Path -> text of every file of a new project, but for the schema of its env.toml."""
    from nemotron_dagster.cli.templates import fill_all

    return fill_all("project", {"name": name})


def refuse_unusable(folder: Path) -> None:
    """Raises UsageError or PreflightError: the folder cannot become a project; nothing was written."""
    if folder.is_symlink() and not folder.exists():
        raise UsageError(f"{folder}: is a link to nothing. Name another folder; nothing was written.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file. Name a folder; nothing was written.")
    if not folder.exists() and not folder.parent.is_dir():
        raise UsageError(f"{folder.parent}: no such folder. Make it first: mkdir -p {_quoted(folder.parent)}")
    try:
        there = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    except OSError as e:
        raise PreflightError(f"{folder}: cannot be read ({e.strerror}). Name another folder.") from e
    if there:
        more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
        listed = ", ".join(there[:_SHOWN]) + more
        raise PreflightError(f"{folder}: is not empty (it has {listed}). Name a new folder; nothing was written.")


def write_project(folder: Path, files: Mapping[str, str]) -> None:
    """Write all files beside the folder, then let them take its place; after an error nothing is left.

    A folder that a shell stands in is kept: its entries are moved into it.

    Raises:
        PreflightError: it cannot be written there.
    """
    real = folder.resolve()
    here = real.exists() and real.samefile(Path.cwd())
    staged: Path | None = None
    moved: list[Path] = []
    try:
        staged = Path(tempfile.mkdtemp(prefix=f".{real.name}.", dir=real if here else real.parent))
        write_files(staged, files)
        write_files(staged, {SCHEMA: env_schema(staged)})
        if here:
            entries = sorted(os.listdir(staged), key=lambda n: n in _MARKERS)
            for name in entries:
                os.rename(staged / name, real / name)
                moved.append(real / name)
            staged.rmdir()
        else:
            staged.chmod(0o777 & ~_umask())
            os.rename(staged, real)  # over an empty folder, if there is one
    except BaseException as e:
        for path in moved:
            remove(path)
        if staged is not None:
            remove(staged)
        if isinstance(e, OSError):
            raise PreflightError(f"{folder}: cannot be written ({e.strerror}). Name another folder.") from e
        raise


def env_schema(project: Path) -> str:
    """The JSON Schema of env.toml with the keys of the project's own targets, for editors."""
    from nemotron_dagster.jobs.env_schema import schema_text
    from nemotron_dagster.project import Project

    return schema_text(Project(project, project / ".nemotron"))


def write_files(root: Path, files: Mapping[str, str]) -> None:
    """Write path -> text below ``root``."""
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "x", encoding="utf-8", newline="\n") as out:
            out.write(text)


def remove(path: Path) -> None:
    """Remove a file or a whole folder that this command made."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def tree(names: Iterable[str]) -> list[str]:
    """The files as lines of a tree: folders first, indented by depth."""
    lines: list[str] = []
    shown: set[str] = set()
    for name in sorted(names, key=lambda n: [(i == n.count("/"), part) for i, part in enumerate(n.split("/"))]):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in shown:
                shown.add(folder)
                lines.append(f"{'  ' * (depth - 1)}{parts[depth - 1]}/")
        lines.append(f"{'  ' * (len(parts) - 1)}{parts[-1]}")
    return lines


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
