"""How a job's command is written: launcher, startup commands and environment, as argv or as one shell script.

Every cluster runs the same script, so that quoting is decided here and nowhere else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from nemotron_dagster.config.resolvers import parse_auto_mount
from nemotron_dagster.jobs.settings import is_auto_mount
from nemotron_dagster.jobs.target import Submission

PORT = 29500  # where rank 0 of a torchrun job listens, as NeMo-Run has it
_OPERATOR = re.compile(r"[\n#;|&]")


def template(text: str, script: str, config: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """The command of a ``cmd`` or ``run_command`` template: {script} and {config} filled in, arguments appended."""
    filled = text.replace("{script}", shlex.quote(script)).replace("{config}", shlex.quote(config))
    return ("bash", "-c", " ".join([filled.strip(), *map(shlex.quote, arguments)]))


def torchrun(job: Submission) -> tuple[str, ...]:
    """The job's command on one machine, with torchrun in front where it starts several processes."""
    if job.launch != "torchrun" or job.processes_per_node == 1:
        return job.argv
    return (*_torchrun(job, "--standalone"), *_payload(job))


def _torchrun(job: Submission, *where: str) -> tuple[str, ...]:
    return (job.python, "-m", "torch.distributed.run", *where, f"--nproc_per_node={job.processes_per_node}")


def _payload(job: Submission) -> tuple[str, ...]:
    """What torchrun is given: a Python script, or a program of its own."""
    return job.argv[1:] if job.argv[0] == job.python else ("--no-python", *job.argv)


def startup(commands: Sequence[str]) -> str:
    """``{ a && b; } && `` in front of a command; a command of several parts is kept together."""
    parts = [f"{{ {c}\n}}" if _OPERATOR.search(c) else c for c in map(str.strip, commands) if c]
    return f"{{ {' && '.join(parts)}; }} && " if parts else ""


def exports(variables: Mapping[str, str]) -> list[str]:
    """``export NAME=VALUE`` lines, names as they are and values quoted."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def job_script(job: Submission, node_rank: str, before: Sequence[str] = ()) -> str:
    """What each node runs: the environment, the working directory, ``before`` and the startup commands, the payload.

    ``node_rank`` is the shell expression of the node's rank. Secrets are not in the script: the target puts them into
    the environment that it inherits.
    """
    command = shlex.join(job.argv)
    if job.launch == "torchrun":
        nodes = (f"--nnodes={job.nodes}", "--node-rank=$NODE_RANK", "--master-addr=$MASTER_ADDR")
        where = (*nodes, "--master-port=$MASTER_PORT") if job.nodes > 1 else ("--standalone",)
        command = " ".join(f'"{w}"' if "$" in w else shlex.quote(w) for w in _torchrun(job, *where))
        command += " " + shlex.join(_payload(job))
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# {job.step}: run once on each node",
            *exports(job.env),
            f"export NNODES={job.nodes} NODE_RANK={node_rank}",
            'export MASTER_ADDR="${MASTER_ADDR:-${PET_MASTER_ADDR:-127.0.0.1}}"',
            f'export MASTER_PORT="${{MASTER_PORT:-${{PET_MASTER_PORT:-{PORT}}}}}"',
            f"cd {shlex.quote(job.workdir or f'{job.cwd}/code')} || exit 1",
            f"{startup([*before, *job.startup])}exec {command}",
            "",
        ]
    )


def clones(mounts: Iterable[object]) -> list[tuple[str, str, str]]:
    """The git repositories among a job's mounts: ``(url, ref, target)``.

    Raises:
        ConfigError: one is malformed, naming the part.
    """
    found = [parse_auto_mount(str(m).strip()) for m in mounts if is_auto_mount(m)]
    return [(m.url, m.ref, m.target) for m in found]


def clone_command(url: str, ref: str, path: str) -> str:
    """Fetch one commit, branch or tag into ``path``, replacing what the image has there."""
    url, ref, path = map(shlex.quote, (url, ref, path))
    return (
        f"rm -rf {path} && git init -q {path} && git -C {path} fetch -q --depth 1 {url} {ref}"
        f" && git -C {path} checkout -q FETCH_HEAD"
    )


def slug(step: str) -> str:
    """A step's id as part of a job's name: ``sft/automodel`` -> ``sft-automodel``."""
    return re.sub(r"[^a-z0-9]+", "-", step.lower()).strip("-")
