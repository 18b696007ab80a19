"""What git says about a project's code: the commit it stands at, what is not committed, what a commit holds.

Nothing here writes to the repository: not even the index is refreshed, as others may be packing at the same time.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from nemotron_dagster.config.secrets import redact
from nemotron_dagster.errors import PreflightError
from nemotron_dagster.files import printable
from nemotron_dagster.project import Project

_LIMIT = 60  # seconds: a file system that hangs must not hang the submission
#: Variables that point git at another repository, as hooks of git set them.
_POINTERS = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"),
    *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_GRAFT_FILE", "GIT_SHALLOW_FILE"),
    *("GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS"),
)


class GitFailed(Exception):
    """git is not installed, found no repository, or refused."""


@dataclass(frozen=True)
class Repository:
    """A working tree.

    Attributes:
        top: its top directory.
        inner: where in it the folder lies that was asked for; empty for the top, else with a slash at the end.
        git_dir: what GIT_DIR must be, for a submodule and a linked working tree too.
    """

    top: Path
    inner: str
    git_dir: str


@dataclass(frozen=True)
class Committed:
    """One entry of a commit's tree; ``commit`` is set for a submodule, ``size`` for anything else."""

    path: str
    size: int = 0
    commit: str | None = None


def environment(**more: str) -> dict[str, str]:
    """The environment of a git command that must not be led elsewhere, ask for anything or take a lock."""
    kept = {k: v for k, v in os.environ.items() if k not in _POINTERS}
    return {**kept, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **more}


def git(directory: Path, *arguments: str) -> str:
    """The output of ``git ARGUMENTS`` in ``directory``; names that are not UTF-8 survive as surrogates.

    Raises:
        GitFailed: with git's own words.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT,
            check=False,
        )
    except FileNotFoundError as e:
        raise GitFailed("git is not installed" if directory.is_dir() else f"{directory} is gone") from e
    except OSError as e:
        raise GitFailed(e.strerror or type(e).__name__) from e
    except subprocess.TimeoutExpired as e:
        raise GitFailed(f"git {arguments[0]} gave no answer within {_LIMIT} s") from e
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise GitFailed(words[-1].removeprefix("fatal: ") if words else f"git {arguments[0]} failed")
    return done.stdout.decode("utf-8", "surrogateescape")


def repository(folder: Path) -> Repository:
    """The working tree that ``folder`` lies in.

    Raises:
        GitFailed: there is none.
    """
    said = git(folder, "rev-parse", "--show-toplevel", "--show-prefix", "--absolute-git-dir").split("\n")
    return Repository(Path(said[0]), said[1], said[2])


def commit_of(repo: Repository, ref: str) -> str:
    """The id of the commit that ``ref`` names, so that no name reaches a shell.

    Raises:
        GitFailed: no such commit.
    """
    return git(repo.top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").strip()


def uncommitted(repo: Repository) -> list[str]:
    """Files at or below the folder that differ from HEAD or are untracked and not ignored, relative to it.

    A submodule at another commit than the recorded one is told by its folder, what changed inside it is not.

    Raises:
        GitFailed: git refused.
    """
    flags = ("--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", "--ignore-submodules=dirty")
    said = git(repo.top / repo.inner, "status", *flags, "--", ".")
    return sorted({line[3:].removeprefix(repo.inner).rstrip("/") for line in said.split("\0") if line})


def committed(repo: Repository, commit: str) -> list[Committed]:
    """What the commit holds at or below the folder, relative to it.

    Raises:
        GitFailed: the folder is not in that commit.
    """
    found = []
    tree = f"{commit}:{repo.inner.rstrip('/')}"
    for line in git(repo.top, "ls-tree", "-r", "-l", "-z", "--full-tree", tree).split("\0"):
        if line:
            about, _, path = line.partition("\t")
            _, kind, name, size = about.split()
            bytes_ = int(size) if size.isdigit() else 0  # git says BAD of an object that is missing
            found.append(Committed(path, commit=name) if kind == "commit" else Committed(path, bytes_))
    return found


def submodules(repo: Repository, entries: list[Committed], at_head: bool) -> Iterator[tuple[str, Repository, str]]:
    """The submodules among a commit's entries: folder, working tree and the commit to take.

    Raises:
        PreflightError: one is not checked out.
    """
    for entry in entries:
        if entry.commit is None:
            continue
        folder = repo.top / repo.inner / entry.path
        try:
            inner = repository(folder)
            if inner.inner:  # an empty folder: git answered for the repository around it
                raise GitFailed("it is empty")
            yield entry.path, inner, commit_of(inner, "HEAD" if at_head else entry.commit)
        except GitFailed as e:
            raise PreflightError(
                f"{printable(folder)}: the submodule is not checked out at {entry.commit[:12]} ({e}). "
                "Run `git submodule update --init --recursive`."
            ) from e


def git_state(project: Project) -> dict[str, Any] | None:
    """Commit, branch, dirty, changed and remote of the project's code; None outside a repository or without git.

    ``changed`` counts files of the project that differ from the commit; a folder of untracked files counts once. The
    remote's URL is told without user and password.
    """
    if project.root is None:
        return None
    flags = ["--porcelain=v2", "--branch", "-z", "--no-renames", "--ignore-submodules=none"]
    paths = ["."]
    if project.state.is_relative_to(project.root) and project.state != project.root:
        paths.append(f":(exclude,literal){project.state.relative_to(project.root)}")
    try:
        said = git(project.root, "status", *flags, "--", *paths).split("\0")
        remotes = _remotes(project.root)
    except GitFailed:
        return None
    about = dict(line[2:].split(" ", 1) for line in said if line.startswith("# ") and " " in line[2:])
    changed = sum(1 for line in said if line and not line.startswith("#"))
    commit, branch = about.get("branch.oid"), about.get("branch.head")
    remote = remotes.get(about.get("branch.upstream", "").partition("/")[0]) or remotes.get("origin")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "dirty": changed > 0,
        "changed": changed,
        "remote": without_credentials(remote or next(iter(remotes.values()), "")) or None,
    }


def _remotes(root: Path) -> dict[str, str]:
    try:
        said = git(root, "config", "-z", "--get-regexp", r"^remote\..*\.url$")
    except GitFailed:  # there are none
        return {}
    pairs = (line.partition("\n")[::2] for line in said.split("\0") if line)
    return {key.removeprefix("remote.").removesuffix(".url"): url for key, url in pairs}


def without_credentials(url: str) -> str:
    """A remote's URL without user, password, query and fragment; a user of ssh stays, as it is part of the address."""
    if "://" not in url:
        return str(redact(re.sub(r"^([^/@:]+):[^/@]*@", r"\1@", url)))
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        user = parts.username if parts.scheme in ("ssh", "git+ssh") else None
    except ValueError:
        return ""
    return str(redact(urlunsplit((parts.scheme, f"{user}@{host}" if user else host, parts.path, "", ""))))
