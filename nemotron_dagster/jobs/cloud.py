"""What the targets that are driven by an API have in common: required keys, the job's name, the shape of a preview."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_dagster.config.compile import Relocation
from nemotron_dagster.config.secrets import HIDDEN
from nemotron_dagster.errors import ProfileError
from nemotron_dagster.jobs import launch
from nemotron_dagster.jobs.target import Preview, Submission

NEMO_RUN = Relocation(code="/nemo_run/code", run="/nemo_run")
SCRIPT = "scripts/job.sh"


def require(executor: str, values: Mapping[str, Any]) -> None:
    """Refuse a profile that lacks a key its executor cannot do without.

    Raises:
        ProfileError: ``<key> required for the <executor> executor``.
    """
    for key, value in values.items():
        if not value:
            raise ProfileError(f"{key} required for the {executor} executor. Add it to the profile.")


def job_name(job: Submission, longest: int = 34) -> str:
    """A name for one workload: lower case, unique by the job's key."""
    return f"{launch.slug(job.step)[: longest - 13]}-{job.key[:12]}"


def variables(job: Submission) -> dict[str, str]:
    """The job's variables as a preview shows them."""
    return {**job.env, **dict.fromkeys(job.secrets, HIDDEN)}


def before(job: Submission, pip_extras: Sequence[str], first: Sequence[str] = ()) -> list[str]:
    """Commands in the container before the profile's startup commands: its own, pip's, and the repositories'."""
    pip = [shlex.join([job.python, "-m", "pip", "install", "--quiet", *pip_extras])] if pip_extras else []
    return [*first, *pip, *(launch.clone_command(*repository) for repository in launch.clones(job.mounts))]


def preview(
    job: Submission, target: str, directory: str, request: Mapping[str, Any], script: str, mounts: Sequence[Any]
) -> Preview:
    """The preview of a job that an API starts with ``bash /nemo_run/scripts/job.sh``."""
    return Preview(
        target=target,
        command=("bash", f"{job.cwd}/{SCRIPT}"),
        directory=re.sub("/+", "/", directory),
        workdir=job.workdir or f"{job.cwd}/code",
        nodes=job.nodes,
        gpus_per_node=job.gpus_per_node,
        processes_per_node=job.processes_per_node,
        image=job.image,
        mounts=tuple(mounts),
        env=tuple(job.env),
        secrets=tuple(job.secrets),
        request=request,
        files={SCRIPT: script, **job.files},
    )
