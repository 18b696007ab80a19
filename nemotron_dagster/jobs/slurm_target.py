"""The ``slurm`` target itself. Its settings are those of resources/slurm.py.

NeMo-Run renders the batch script (slurm_script.py). It is submitted once, whatever happens (slurm_submit.py); states,
logs and cancelling are ours (slurm_states.py, slurm_files.py).
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from nemotron_dagster.errors import TargetError
from nemotron_dagster.jobs import slurm_files, slurm_partitions, slurm_script, slurm_states, slurm_submit
from nemotron_dagster.jobs.target import ANY_KEY, Chunk, Hardware, JobHandle, Preview, Status, Submission
from nemotron_dagster.jobs.transport import LocalTransport, SshTransport, Transport


class SlurmTarget:
    """Batch jobs below ``remote_job_dir``."""

    executor = "slurm"

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @cached_property
    def transport(self) -> Transport:
        """How commands get to the login node; nothing is connected yet."""
        s = self.settings
        if tunnel(s) == "local":
            return LocalTransport()
        assert s.host
        identity, known = (os.path.expanduser(f) if f else None for f in (s.identity, s.known_hosts))
        return SshTransport(s.host, s.user, s.port, identity, s.strict_host_key_checking, known)

    @property
    def cluster(self) -> str:
        if tunnel(self.settings) == "ssh":
            return f"slurm {_login(self.settings)}"
        return f"slurm on this machine {os.environ.get('SLURM_CONF', '')}".strip()

    @property
    def shares_files(self) -> bool:
        return bool(self.settings.shares_files)

    def check(self) -> None:
        self.job_directory(ANY_KEY)
        if tunnel(self.settings) == "local" and not shutil.which("sbatch"):
            raise TargetError("slurm on this machine: there is no sbatch. Set host in the profile to a login node.")
        if tunnel(self.settings) == "ssh" and not shutil.which("ssh"):
            raise TargetError(
                f"slurm on {self.settings.host}: there is no ssh on this machine. Install OpenSSH's client."
            )

    def preview(self, job: Submission) -> Preview:
        settings = self.settings
        directory = slurm_script.job_directory(settings, job.key)
        return Preview(
            target=f"slurm {_place(settings)}",
            command=slurm_script.submit_command(settings, job.key),
            directory=directory,
            workdir=job.workdir or f"{job.cwd}/code",
            nodes=job.nodes,
            gpus_per_node=job.gpus_per_node,
            processes_per_node=job.processes_per_node,
            image=slurm_script.image_file(settings, job.image),
            mounts=(*slurm_script.mounts(settings, job), *([f"{self._run(job.key)}:/nemo_run"] if job.image else [])),
            env=tuple(job.env),
            secrets=tuple(job.secrets),
            script=slurm_script.batch_script(settings, job),
            before=slurm_script.preparation(settings, job),
            files={f"scripts/{slurm_script.TASK}.sh": slurm_script.job_script(job), **job.files},
        )

    def job_directory(self, key: str) -> str:
        return slurm_script.job_directory(self.settings, key)

    def hardware(self) -> Hardware | None:
        found = slurm_partitions.partitions(self.transport)
        named = self.settings.run_partition, self.settings.batch_partition, self.settings.partition
        wanted = [n for n in named if n] or [n for n, p in found.items() if p.default]
        known = [found[n] for n in wanted if n in found]
        if not known or len(known) < len(wanted):
            return None  # sbatch says best what is wrong with it
        return Hardware(
            gpus_per_node=max(p.gpus_per_node for p in known),
            nodes=max(p.nodes for p in known),
            where=f"partition {' or '.join(dict.fromkeys(wanted))} {_place(self.settings)}",
            minutes=max((p.minutes for p in known if p.minutes), default=None)
            if all(p.minutes for p in known)
            else None,
        )

    def send(self, inputs: Mapping[Path, str]) -> dict[str, str]:
        if self.shares_files or not inputs:
            return {}
        return slurm_files.send_inputs(self.transport, self._base, inputs)

    def submit(self, job: Submission) -> JobHandle:
        settings, directory, run = self.settings, self.job_directory(job.key), self._run(job.key)
        script = slurm_script.batch_script(settings, job)
        before = slurm_script.steps_before(settings, job)
        archive = f"{self._base}/code/{job.code.name}" if job.code else ""
        paths = (*([archive] if archive else []), *(path for path, _ in before))
        known = slurm_submit.probe(self.transport, directory, paths)
        if not known.id:
            if job.code and archive in known.lacking:
                self.transport.put({job.code.name: job.code}, os.path.dirname(archive))
            for path, command in before:
                force = settings.force_squash and path == slurm_script.image_file(settings, job.image)
                if force or path in known.lacking:
                    slurm_submit.prepare(self.transport, path, command, force)
            files = {f"scripts/{slurm_script.TASK}.sh": slurm_script.job_script(job), **job.files}
            experiment = os.path.dirname(directory)
            mine = {f"{os.path.basename(run)}/{name}": text.encode() for name, text in files.items()}
            mine[os.path.basename(slurm_script.batch_file(settings, job.key))] = script.encode()
            self.transport.put(mine, experiment)
        try:
            found = known.id or slurm_submit.submit(
                self.transport,
                slurm_script.submit_command(settings, job.key),
                slurm_script.name(settings, job),
                job=directory,
                run=run,
                base=self._base,
                code=archive,
                secret_file=slurm_script.secrets_file(settings, job.key),
                secrets=job.secrets,
                script=script,
            )
        except slurm_submit.Refused:
            self.release(JobHandle(self.executor, job.key, directory))
            raise
        return JobHandle(self.executor, job.key, directory, found)

    def find(self, key: str) -> JobHandle | None:
        directory = self.job_directory(key)
        found = slurm_submit.find(self.transport, directory)
        return JobHandle(self.executor, key, directory, found) if found else None

    def statuses(self, handles: Iterable[JobHandle]) -> dict[str, Status]:
        named = [h if h.id else self.find(h.key) or h for h in handles]
        return slurm_states.statuses(self.transport, named, self.settings.lost_after)

    def read(self, handle: JobHandle, cursor: Mapping[str, int]) -> Chunk:
        if self.shares_files and os.path.isdir(handle.directory):
            return slurm_files.read_here(Path(handle.directory), cursor)
        messages = not self.shares_files
        return slurm_files.read_there(self.transport, handle.directory, self._run(handle.key), cursor, messages)

    def collect(self, handle: JobHandle, output: Path) -> None:
        if not self.shares_files:
            self.transport.get(f"{self._run(handle.key)}/output", output)

    def cancel(self, handle: JobHandle) -> None:
        known = handle if handle.id else self.find(handle.key)
        if known is not None:
            slurm_submit.cancel(self.transport, known.id, known.directory)
        self.release(handle)

    def abandon(self, handle: JobHandle, successor: str) -> bool:
        return slurm_submit.abandon(self.transport, handle.directory, successor)

    def release(self, handle: JobHandle) -> None:
        slurm_submit.remove(self.transport, slurm_script.secrets_file(self.settings, handle.key))

    @property
    def _base(self) -> str:
        return os.path.dirname(os.path.dirname(os.path.dirname(self.job_directory(ANY_KEY))))

    def _run(self, key: str) -> str:
        return slurm_script.run_directory(self.settings, key)


def tunnel(settings: Any) -> str:
    """How the cluster is reached."""
    if settings.tunnel:
        return str(settings.tunnel)
    own = {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.gethostname().partition(".")[0]}
    return "ssh" if settings.host and settings.host not in own else "local"


def _login(settings: Any) -> str:
    user = f"{settings.user}@" if settings.user else ""
    return f"{user}{settings.host}" + (f":{settings.port}" if settings.port else "")


def _place(settings: Any) -> str:
    return "on this machine" if tunnel(settings) == "local" else f"through ssh to {_login(settings)}"
