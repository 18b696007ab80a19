"""Where an artifact root may be: a local directory, or a URL that fsspec knows (``s3://``, ``gs://``, ``memory://``).

A local place is a ``pathlib.Path``, any other a ``UPath``; both have ``/``, ``name`` and ``read_bytes``.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

from nemotron_dagster.errors import ArtifactError, ConfigError
from nemotron_dagster.project import find_project

if TYPE_CHECKING:
    from upath import UPath

    Place: TypeAlias = Path | UPath

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def place(text: str, base: Path | None = None) -> Place:
    """The place that a path or a URL names; a relative path counts from ``base`` (default: the working directory).

    Raises:
        ConfigError: a URL with credentials in it, or of a kind that nothing installed can reach.
    """
    if "://" not in text:
        return (base or Path()).joinpath(Path(text).expanduser()).resolve()
    parts = urlsplit(text)
    if parts.password is not None or (parts.username is not None and parts.scheme != "abfs"):
        raise ConfigError(
            f"{parts.scheme}://…@{parts.hostname}: a URL of artifacts must not hold credentials: it is written into "
            "manifests. Give them by the environment, as the store's own tools take them."
        )
    if parts.scheme in ("file", "local"):
        return Path(unquote(parts.path)).resolve()
    from upath import UPath

    try:
        found = UPath(text.rstrip("/"), use_listings_cache=False)  # another process may have published since
        found.fs  # noqa: B018  # imports what reaches the store
    except ImportError as e:
        extra = _EXTRAS.get(parts.scheme)
        how = f"pip install 'nemotron-dagster[{extra}]'" if extra else "Install the package that fsspec names"
        raise ConfigError(f"{text}: cannot be reached ({e}). {how}.") from e
    except ValueError as e:
        raise ConfigError(f"{text}: is no place for artifacts ({e}). Name a directory, s3://... or gs://...") from e
    return found


def is_local(where: Place) -> bool:
    """Whether this machine's file system holds it."""
    return isinstance(where, Path)


def local(where: Place) -> Path:
    """``where`` as the local path that it is known to be."""
    assert isinstance(where, Path), where
    return where


def join(root: Place, *parts: str) -> Place:
    """``root`` with ``parts`` below it."""
    for part in parts:
        root = root / part
    return root


def scratch(root: Place) -> Path:
    """The local directory where locks lie and jobs write that publish to ``root``: itself, or one of the project's."""
    if isinstance(root, Path):
        return root
    url = str(root)
    name = re.sub(r"[^\w.-]+", "-", url).strip("-")[:60]
    return find_project().state / "staging" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def cache_home() -> Path:
    """Where copies of remote artifacts are kept, shared by all projects of a user."""
    named = os.environ.get("NEMOTRON_ARTIFACT_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nemotron" / "artifacts"


def unreachable(where: Place, error: Exception) -> ArtifactError:
    """The error of a store that did not answer, or refused."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ArtifactError(f"{where}: cannot be reached ({text}). Check the address and the credentials; try again.")


def failures() -> tuple[type[Exception], ...]:
    """What a store raises when it cannot be reached: few of its libraries' errors are an OSError."""
    found: list[type[Exception]] = [OSError, TimeoutError]
    try:
        from botocore.exceptions import BotoCoreError, ClientError

        found += [BotoCoreError, ClientError]
    except ImportError:
        pass
    try:
        from google.auth.exceptions import GoogleAuthError

        found.append(GoogleAuthError)
    except ImportError:
        pass
    return tuple(found)


def read_bytes(where: Place) -> bytes:
    """The whole of a small file.

    Raises:
        FileNotFoundError: it is not there.
        ArtifactError: the store cannot be reached.
    """
    if isinstance(where, Path):
        return where.read_bytes()
    try:
        data: Any = where.fs.cat_file(where.path)
        return bytes(data)
    except FileNotFoundError:
        raise
    except failures() as e:
        raise unreachable(where, e) from e
