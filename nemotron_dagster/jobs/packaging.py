"""What code travels with a job to a target that moves it, as one archive that is unpacked at ``<job>/code``.

``payload`` is the step's own folder, what its siblings share with it (``steps/_runtime``, packages of the project) and
the Python code of the other steps. ``git`` and ``pattern`` put the project's committed files, or those that patterns
name, around it; NeMo-Run's packagers make these. The payload is always there, so that the step runs.

What is there twice comes from the first that has it: the project's files, the step's folder, the project's ``steps/``,
the bundled ones. A step or package is taken whole from one of them, as Python would import it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.catalog import Step
from nemotron_dagster.jobs import archive, project_code
from nemotron_dagster.jobs.archive import Entry
from nemotron_dagster.jobs.git_code import git_state
from nemotron_dagster.jobs.project_code import enters, stays
from nemotron_dagster.jobs.target import parse_settings
from nemotron_dagster.project import Project

if TYPE_CHECKING:
    from nemotron_dagster.jobs.settings import CommonSettings

__all__ = ["git_state", "package"]

#: A folder with one of these belongs together: it is never a mixture of two.
_WHOLE = ("step.toml", "__init__.py")


def package(
    project: Project,
    step: Step,
    settings: CommonSettings | Mapping[str, Any],
    into: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """The archive of the code that travels with the step's job: ``<into>/<sha256[:16]>.tar.gz``.

    The same code gives the same file, byte for byte, wherever and whenever it is packed; the name is the digest of its
    bytes, so that one that is on the target already need not travel again. ``settings`` may be a profile's values as
    they are (``JobSpec.environment``). ``say`` is told how much code it is.

    Raises:
        PreflightError: code that is not committed, is too much, changed meanwhile, links to what does not travel, or
            could not be read.
        ProfileError: values that are none of a profile.
    """
    if isinstance(settings, Mapping):
        settings = parse_settings(project, None, settings)[1]
    with _scratch() as scratch:
        found = _merged(_layers(project, step, settings, scratch))
        archive.check_links(found)
        archive.check_size({name: e.size for name, e in found.items()}, settings.packager_max_mb)
        file = archive.write(found, into)
    size = sum(e.size for e in found.values())
    say(f"code: {len(found)} files, {size / 1e6:,.1f} MB, packed {file.stat().st_size / 1e6:,.1f} MB ({file.name})")
    return file


def _layers(project: Project, step: Step, settings: CommonSettings, scratch: Path) -> Iterator[dict[str, Entry]]:
    """The sources of code, those that win first."""
    yield project_code.collect(project, settings, scratch)
    yield _own(step)
    for folder in project.folders("steps"):
        yield _shared(folder, step)


def _own(step: Step) -> dict[str, Entry]:
    """The step's folder, whole: its configs refer to the files beside them."""
    top = step.directory.resolve()
    names = (n for n in archive.walk(top, enters) if not stays(n))
    return {f"steps/{step.id}/{n}": archive.entry(top / n, top) for n in names}


def _shared(folder: Path, step: Step) -> dict[str, Entry]:
    """What steps share: all of ``steps/`` but the files of other steps and data, of which only Python code travels."""
    names = [n for n in archive.walk(folder, enters) if not stays(n)]
    steps = {n.rpartition("/")[0] for n in names if n.endswith("/step.toml")}
    found = {}
    for name in names:
        above = list(archive.parents(name))
        if step.id in above or (folder / name / "step.toml").is_file():  # the latter: a link to another step
            continue
        code = name.endswith((".py", "/step.toml"))
        if code or not (steps.intersection(above) or any(p.rpartition("/")[2] == "data" for p in above)):
            found[f"steps/{name}"] = archive.entry(folder / name, folder)
    return found


def _merged(layers: Iterable[Mapping[str, Entry]]) -> dict[str, Entry]:
    merged: dict[str, Entry] = {}
    for layer in layers:
        taken = {n.rpartition("/")[0] for n in merged if n.rpartition("/")[2] in _WHOLE and n.count("/") > 1}
        own = _whole_step(layer)  # packages around a step do not hide it
        for name, found in layer.items():
            above = set(archive.parents(name))
            if own is not None:
                above = {p for p in above if len(p) >= len(own)}
            if name not in merged and not taken & above and not any(_link(merged, p) for p in above):
                merged[name] = found
    return merged


def _whole_step(layer: Mapping[str, Entry]) -> str | None:
    """The folder of the only step that a layer holds, where that is all it holds."""
    steps = [n.rpartition("/")[0] for n in layer if n.endswith("/step.toml")]
    return steps[0] if len(steps) == 1 and all(n.startswith(f"{steps[0]}/") for n in layer) else None


def _link(entries: Mapping[str, Entry], name: str) -> bool:
    return name in entries and entries[name].link is not None


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nemotron-code-") as name:
        yield Path(name)
