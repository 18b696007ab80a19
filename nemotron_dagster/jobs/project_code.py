"""The project's own files that travel with a job: committed ones, those that patterns name, or both.

NeMo-Run's packagers make the archives; see nemo_packagers.py. What they would leave out without a word (uncommitted and
untracked files, submodules that are not checked out, symlinks, patterns that match nothing) is shipped or refused here.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_dagster.config.secrets import redact
from nemotron_dagster.errors import PreflightError
from nemotron_dagster.files import printable
from nemotron_dagster.jobs import archive, git_code, nemo_packagers
from nemotron_dagster.jobs.archive import Entry
from nemotron_dagster.jobs.git_code import Committed, GitFailed, Repository
from nemotron_dagster.project import Project, working_directory

if TYPE_CHECKING:
    from nemotron_dagster.jobs.settings import CommonSettings

_CACHES = frozenset(
    {"__pycache__", ".git", ".hg", ".svn", ".venv", ".nemotron", ".ipynb_checkpoints"}
    | {".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
)
_EXAMPLES = (".example", ".sample", ".template")
_LISTED = 10
_WORDS = 60_000  # bytes of names in one command: Linux takes 128 KiB in one argument
_LIMIT = 600  # seconds


@dataclass(frozen=True)
class _Part:
    """A repository, or a submodule of it: where its files go, the commit and what that holds."""

    folder: str
    repo: Repository
    commit: str
    entries: list[Committed]


def enters(folder: str) -> bool:
    """Whether a folder of this name is looked into: not caches, environments and version control's own."""
    return folder not in _CACHES


def stays(name: str) -> bool:
    """Whether a file never travels: caches, ``.env`` files, and the project's ``env.toml``, which may hold secrets."""
    *folders, file = name.split("/")
    private = file == ".env" or (file.startswith(".env.") and not file.endswith(_EXAMPLES))
    return private or name == "env.toml" or file.endswith(".pyc") or not _CACHES.isdisjoint([*folders, file])


def collect(project: Project, settings: CommonSettings, scratch: Path) -> dict[str, Entry]:
    """What the profile's packager takes of the project, by its place below the project's root; nothing for ``payload``.

    Raises:
        PreflightError: as ``packaging.package``.
    """
    if settings.packager == "payload":
        return {}
    root = (project.root or working_directory()).resolve()
    inside = project.state.is_relative_to(root) and project.state != root
    state = project.state.relative_to(root).as_posix() if inside else None

    def travels(name: str) -> bool:
        return not stays(name) and (state is None or not f"{name}/".startswith(f"{state}/"))

    named: dict[str, Entry] = {}
    if settings.packager in ("pattern", "hybrid"):
        named = _named(root, settings.packager_patterns, travels)
        archive.check_size({n: e.size for n, e in named.items()}, settings.packager_max_mb)
    parts: list[_Part] = []
    overlay: dict[str, Entry | None] = {}
    if settings.packager in ("git", "hybrid"):
        try:
            parts = _parts(root, settings)
            sizes = {f"{p.folder}{c.path}": c.size for p in parts for c in p.entries if travels(f"{p.folder}{c.path}")}
            archive.check_size(sizes, settings.packager_max_mb)
            overlay = _uncommitted(root, parts, settings, lambda n: travels(n) and n not in named)
        except GitFailed as e:
            raise PreflightError(
                f'packager = "{settings.packager}": {printable(root)}: {printable(e)}. '
                'Run it in a git repository with a commit, or use packager = "payload".'
            ) from e
    found = _archives(root, parts, named, settings.packager, scratch)
    links = {n: e for n, e in named.items() if e.link is not None}  # their packager takes regular files only
    whole = {n: e for n, e in {**found, **links, **overlay}.items() if e is not None}
    return {n: e for n, e in whole.items() if travels(n)}


def _named(root: Path, patterns: Iterable[str], travels: Callable[[str], bool]) -> dict[str, Entry]:
    """The files that the patterns match, and all files below the folders that they match."""
    found: dict[str, Entry] = {}
    for pattern in patterns:
        names: set[str] = set()
        for match in glob.glob(pattern, root_dir=root, recursive=True):
            name = os.path.normpath(match) if match else "."
            if link := next((p for p in [*reversed(list(archive.parents(name))), name] if (root / p).is_symlink()), ""):
                names.add(link)
            elif (root / name).is_dir():
                prefix = "" if name == "." else f"{name}/"
                names |= {f"{prefix}{n}" for n in archive.walk(root / name, enters)}
            else:
                names.add(name)
        names = {n for n in names if travels(n)}
        if not names:
            raise PreflightError(
                f"packager_patterns: {pattern!r} matches no file below {printable(root)} that may travel. Mend it."
            )
        found |= {n: archive.entry(root / n, root) for n in names - found.keys()}
    return found


def _parts(root: Path, settings: CommonSettings) -> list[_Part]:
    repo = git_code.repository(root)
    ref = settings.packager_ref or "HEAD"
    try:
        commit = git_code.commit_of(repo, ref)
        entries = git_code.committed(repo, commit)
    except GitFailed as e:
        missing = f"{repo.inner or 'the project'} in it" if repo.inner else "such a commit"
        raise PreflightError(
            f"packager_ref = {ref!r}: {printable(repo.top)} has no commit of that name, or not {missing}. "
            "Commit the project, or name a commit that holds it."
        ) from e
    parts = [_Part("", repo, commit, entries)]
    for part in parts:  # grows: submodules have submodules
        inner = git_code.submodules(part.repo, part.entries, settings.packager_uncommitted == "ship")
        parts += [_Part(f"{part.folder}{f}/", r, c, git_code.committed(r, c)) for f, r, c in inner]
    return parts


def _uncommitted(
    root: Path, parts: Sequence[_Part], settings: CommonSettings, concerned: Callable[[str], bool]
) -> dict[str, Entry | None]:
    """Files to lay over the commit's, None where one was deleted.

    Raises:
        PreflightError: there are some, and the profile does not say to ship them.
    """
    names = [f"{p.folder}{n}" for p in parts for n in git_code.uncommitted(p.repo)]
    names = [n for n in names if concerned(n)]
    if not names:
        return {}
    listed = "\n".join(f"  {printable(n)}" for n in names[:_LISTED])
    if len(names) > _LISTED:
        listed += f"\n  and {len(names) - _LISTED:,} more"
    if settings.packager_uncommitted != "ship":
        count = "1 file" if len(names) == 1 else f"{len(names):,} files"
        raise PreflightError(
            f'packager = "{settings.packager}" ships what is committed; {count} below {printable(root)} would be '
            f"missing:\n{listed}\nCommit, stash or ignore them, or set "
            + ("packager_ref to nothing and " if settings.packager_ref else "")
            + 'packager_uncommitted = "ship" to send them along.'
        )
    overlay: dict[str, Entry | None] = {}
    modules = {p.folder.rstrip("/") for p in parts}
    for name in names:
        place = root / name
        if place.is_dir() and not place.is_symlink():
            if name not in modules:
                raise PreflightError(
                    f"{printable(place)}: is a git repository of its own, and no submodule of a commit: its files "
                    "would be missing. Commit it as a submodule, or ignore it."
                )
        else:
            overlay[name] = archive.entry(place, root) if os.path.lexists(place) else None
    return overlay


def _archives(
    root: Path, parts: Sequence[_Part], named: Mapping[str, Entry], packager: str, scratch: Path
) -> dict[str, Entry]:
    """What NeMo-Run's packagers pack, unpacked below ``scratch``."""
    _check_path(scratch)
    work, unpacked = scratch / "work", scratch / "files"
    for made in (work, unpacked):
        made.mkdir()
    (scratch / "project").symlink_to(root)  # the project's own path may hold anything, and they quote nothing
    orders: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        inner = shlex.quote(part.repo.inner.rstrip("/")) if part.repo.inner else ""
        about = {"git_dir": part.repo.git_dir, "commit": part.commit, "inner": inner}
        orders.append({"name": f"git{i}", "git": about})
    files = {n: e for n, e in named.items() if e.link is None}
    if files:
        chunks = [f"{scratch}/project/{words}" for words in _words(files)]
        pattern = {"include_pattern": chunks, "relative_path": [f"{scratch}/project"] * len(chunks)}
        if orders:
            orders[0]["pattern"] = pattern
        else:
            orders.append({"name": "pattern", "pattern": pattern})
    _run(orders, work, packager)
    found: dict[str, Entry] = {}
    try:
        for i, order in reversed(list(enumerate(orders))):  # submodules first: patterns win over them
            folder = parts[i].folder if parts else ""
            (unpacked / str(i)).mkdir()
            contents = archive.extract(work / f"{order['name']}.tar.gz", unpacked / str(i))
            found |= {f"{folder}{n}": e for n, e in contents.items()}
    except (OSError, tarfile.TarError) as e:
        raise PreflightError(f'packager = "{packager}": its archive cannot be read: {e}. Run it again.') from e
    for name, listed in files.items():
        packed = found.get(name)
        if packed is None or packed.size != listed.size:
            raise PreflightError(f"{printable(root / name)}: changed while the code was packed. Run it again.")
        found[name] = replace(listed, source=packed.source)
    return found


def _run(orders: list[dict[str, Any]], work: Path, packager: str) -> None:
    if not orders:
        return
    try:
        done = subprocess.run(
            [sys.executable, "-I", nemo_packagers.__file__],
            input=json.dumps(orders).encode(),
            cwd=work,
            env=git_code.environment(NEMORUN_HOME=str(work / "nemo_run_home")),
            capture_output=True,
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise PreflightError(f'packager = "{packager}": not packed within {_LIMIT} s. Pack less of it.') from e
    if done.returncode:
        lines = [x.strip() for x in done.stderr.decode("utf-8", "replace").splitlines() if x.strip()]
        told = [x for x in lines if re.match(r"(tar|git|find|gzip|fatal|error|warning|/bin/bash|bash)\b.*:", x)]
        why = printable(redact((told or lines or ["no message"])[0 if told else -1]), 500)
        raise PreflightError(
            f'packager = "{packager}": NeMo-Run cannot pack the code: {why}. Mend that and run it again.'
        )


def _words(names: Iterable[str]) -> list[str]:
    """The names as words of a shell, in pieces that one command can take.

    Each begins with ``./`` inside its quotes: the packager normalizes the path, and a name may begin with a dash.
    """
    pieces: list[str] = []
    size = _WORDS
    for name in sorted(names, key=os.fsencode):
        word = "'./" + name.replace("'", "'\"'\"'") + "'"
        length = len(os.fsencode(word)) + 1
        if size + length > _WORDS:
            pieces.append(word)
            size = length
        else:
            pieces[-1] += f" {word}"
            size += length
    return pieces


def _check_path(scratch: Path) -> None:
    if not re.fullmatch(r"[\w./+-]+", str(scratch), re.ASCII):
        raise PreflightError(
            f"{scratch.parent}: NeMo-Run's packagers need a directory for scratch files without spaces and special "
            "characters. Set TMPDIR to one."
        )
