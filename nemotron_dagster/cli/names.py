"""Names that a person gives to a new project or step: good on every file system, in Python and in Dagster."""

from __future__ import annotations

import re
import unicodedata

from nemotron_dagster.errors import UsageError

_LONGEST = 64  # of one name; file systems allow 255 bytes, screens and databases less
#: What Windows takes for a device, with or without a suffix.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
_PROJECT = re.compile(r"[A-Za-z](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
_PART = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


def check_project_name(name: str, what: str) -> str:
    """The name, if it can be a Python distribution's.

    Raises:
        UsageError: it cannot; with one that can.
    """
    problem = _problem(name)
    if problem is None and not _PROJECT.fullmatch(name):
        problem = "must begin with a letter, end with a letter or digit, and hold letters, digits, _ and - only"
    if problem is None:
        return name
    raise UsageError(f"{what} {name!r} {problem}. Give another, such as --name {_suggested(name) or 'my_project'}.")


def check_step_id(step_id: str) -> str:
    """The id, if its parts can be folders, asset keys and the names of Dagster's ops.

    Raises:
        UsageError: it cannot; naming the part, and an id that can.
    """
    parts = step_id.split("/")
    suggested = "/".join(_suggested(p) for p in parts if _suggested(p))
    hint = f" For example {suggested}." if suggested.count("/") and suggested != step_id else ""
    if "\\" in step_id or step_id.startswith("/") or any(p in ("", ".", "..") for p in parts):
        raise UsageError(f"step id {step_id!r} is no <category>/<name>: write names with one / between them.{hint}")
    if len(parts) < 2:
        raise UsageError(f"step id {step_id!r} has no category. Write <category>/<name>, such as data/{parts[0]}.")
    if len(parts) > 4:
        raise UsageError(f"step id {step_id!r} has {len(parts)} parts. Write at most four.")
    for part in parts:
        problem = _problem(part)
        if problem is None and part.startswith(("_", ".")):
            problem = "begins with _ or ., and such folders are no steps"
        if problem is None and not _PART.fullmatch(part):
            problem = "must be lower-case letters and digits, with single _ between them, beginning with a letter"
        if problem is not None:
            raise UsageError(f"step id {step_id!r}: {part!r} {problem}.{hint}")
    return step_id


def _problem(name: str) -> str | None:
    if not name:
        return "is empty"
    if not name.isascii():
        return "has characters beyond a-z"
    if len(name) > _LONGEST:
        return f"is {len(name)} characters long; {_LONGEST} are allowed"
    if name.lower().partition(".")[0] in _DEVICES:
        return "is a device on Windows"
    return None


def _suggested(name: str) -> str:
    """The nearest name that every check accepts, or nothing."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "_", plain).strip("_").lstrip("0123456789_")[:_LONGEST].strip("_")
    return f"{words}_1" if words in _DEVICES else words
