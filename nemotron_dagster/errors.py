"""Every error a person can meet, with its exit code. Each message ends with the next action.

0 is success. Codes 10 and above are free for a user's own wrappers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NemotronError(Exception):
    """Base of all errors shown without a traceback."""

    exit_code = 1


class JobFailed(NemotronError):
    """The job ran and failed, or ended without a complete output."""

    exit_code = 1


class UsageError(NemotronError):
    """The command line names something that does not exist."""

    exit_code = 2


class ConfigError(NemotronError):
    """A config, override, manifest or pipeline is wrong."""

    exit_code = 3


class ProfileError(NemotronError):
    """env.toml or a profile in it is wrong, or does not suit the step."""

    exit_code = 4


class PreflightError(NemotronError):
    """The run was refused before anything was submitted."""

    exit_code = 5


class TargetError(NemotronError):
    """The target could not be reached or refused the job."""

    exit_code = 6


class Cancelled(NemotronError):
    """The job was cancelled."""

    exit_code = 7


class ArtifactError(NemotronError):
    """An artifact is missing, incomplete, of the wrong type or invalid."""

    exit_code = 8


class PayloadNotBuilt(NemotronError):
    """The step is in the catalog; its payload is not built yet."""

    exit_code = 9


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean a, b?`` for the closest of ``known``, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""
