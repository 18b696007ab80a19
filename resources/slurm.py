"""The ``slurm`` target: batch jobs of a Slurm cluster, on this machine or reached over SSH.

Here is what a profile may say; nemotron_dagster/jobs/slurm_target.py is what comes of it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from nemotron_dagster.config.compile import Relocation
from nemotron_dagster.jobs import slurm_script
from nemotron_dagster.jobs.settings import CommonSettings, Count, Positive, Scalar, is_auto_mount
from nemotron_dagster.jobs.slurm_target import SlurmTarget, tunnel
from nemotron_dagster.jobs.target import ANY_KEY

_WORD = re.compile(r"[\w@%+=./-]+")
#: Options of sbatch with which a job, its log or its end could not be found again.
_OURS = {
    "job-name",
    "output",
    "error",
    "open-mode",
    "array",
    "wait",
    "wrap",
    "parsable",
    "test-only",
    "chdir",
    "export",
}
_CONTROL = re.compile(r"[\x00-\x1f]")
_SHELL = {"setup_lines", "startup_commands", "run_command", "env_vars"}  # these are shell, or quoted for it
#: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds
_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|(?i:unlimited|infinite)")


class Settings(CommonSettings):
    """Keys of a Slurm profile."""

    executor: Literal["slurm"] = "slurm"
    # where
    tunnel: Literal["ssh", "local"] | None = Field(
        None, description="How the cluster is reached; default: ssh if host is another machine, else local."
    )
    host: str | None = Field(None, description="Login node.")
    user: str | None = Field(None, description="User on the login node.")
    port: Positive | None = Field(None, le=65535, description="Port of its SSH server; default 22.")
    identity: str | None = Field(None, description="Private key file; default: the SSH agent's keys.")
    strict_host_key_checking: Literal["yes", "accept-new", "no"] = Field(
        "accept-new", description="What to do with a host key that is not known yet, as OpenSSH spells it."
    )
    known_hosts: str | None = Field(None, description="File of known host keys; default: OpenSSH's own.")
    remote_job_dir: str | None = Field(
        None, description="Directory on the shared file system below which jobs, images and clones are kept."
    )
    files: Literal["shared", "copied"] | None = Field(
        None,
        description="Whether the cluster sees this machine's files under the same paths, or inputs and outputs are "
        "copied; default: copied over SSH, else shared.",
    )
    max_chain: Positive = Field(
        1, description="How many jobs a step that can resume may take when it is preempted or hits its time limit."
    )
    # queue and resources
    account: str | None = Field(None, description="Account that is charged.")
    partition: str | None = Field(None, description="Partition.")
    run_partition: str | None = Field(None, description="Partition of attached jobs (-r); default: partition.")
    batch_partition: str | None = Field(None, description="Partition of detached jobs (-b); default: partition.")
    time: str = Field("04:00:00", description="Time limit, e.g. HH:MM:SS or D-HH:MM:SS.")
    ntasks_per_node: Positive | None = Field(
        None, description="Processes per node of a torchrun step; default: gpus_per_node, else 1."
    )
    cpus_per_task: Positive | None = Field(None, description="CPUs per task.")
    cpus_per_gpu: Positive | None = Field(None, description="CPUs per GPU.")
    gpus_per_task: Positive | None = Field(None, description="GPUs per task.")
    mem: str | None = Field(None, description="Memory per node, e.g. 512G, or 0 for all.", coerce_numbers_to_str=True)
    mem_per_cpu: str | None = Field(None, description="Memory per CPU.", coerce_numbers_to_str=True)
    mem_per_gpu: str | None = Field(None, description="Memory per GPU.", coerce_numbers_to_str=True)
    exclusive: bool | Literal["user", "mcs"] | None = Field(None, description="Do not share the nodes.")
    qos: str | None = Field(None, description="Quality of service.")
    constraint: str | None = Field(None, description="Features that the nodes must have.")
    gres: str | None = Field(None, description="Generic resources, e.g. gpu:h100:8.")
    exclude: str | None = Field(None, description="Nodes not to use.")
    nodelist: str | None = Field(None, description="Nodes to use.")
    reservation: str | None = Field(None, description="Reservation.")
    segment: Positive | None = Field(None, description="Nodes per segment of a topology block.")
    network: str | None = Field(None, description="Network options, e.g. sharp.")
    dependency: str | None = Field(None, description="Jobs to wait for, e.g. afterok:1234.")
    signal: str | None = Field(None, description="Signal before the time limit, e.g. B:USR1@300.")
    requeue: bool | None = Field(None, description="Whether Slurm may requeue the job; default: the cluster's.")
    retries: Count = Field(0, description="How often the job requeues itself after a failure.")
    lost_after: Positive = Field(
        60,
        description="Seconds in which Slurm answers that it does not know a job, after which the job is lost; "
        "three times as long where its accounting does not answer.",
    )
    comment: str | None = Field(None, description="Comment on the job.")
    job_name: str | None = Field(None, description="First part of the job's name; default: account and step.")
    mail_user: str | None = Field(None, description="Who gets mail.")
    mail_type: str | None = Field(None, description="When, e.g. END,FAIL.")
    additional_parameters: dict[str, Scalar] = Field({}, description="Further sbatch options, without the dashes.")
    srun_args: tuple[str, ...] = Field((), description="Further arguments of srun.")
    launcher: Literal["torchrun"] | None = Field(None, description="Launcher of torchrun steps; only torchrun.")
    # what the job sees
    mounts: tuple[str | dict[str, Any], ...] = Field(
        (), description='Container mounts, "host:container[:flags]", or ${auto_mount:git+URL@REF,/target}.'
    )
    lustre_mount: str = Field("/lustre:/lustre", description='One more mount; "" for none.')
    setup_lines: str | None = Field(None, description="Shell lines of the batch script before srun.")
    # importing the image
    build_partition: str | None = Field(
        None, description="Partition that imports the image; default: run_partition, else partition."
    )
    build_time: str | None = Field(None, description="Time limit of the import; default: time.")
    build_include_gpus: bool = Field(False, description="Ask for GPUs for the import, where the partition wants that.")
    build_gpus_per_node: Count | None = Field(None, description="How many; default: gpus_per_node.")
    force_squash: bool = Field(False, description="Import the image again, even where its file is there.")
    build_image: str | None = Field(None, description="Accepted; read by image builds, which steps do not do.")
    build_cache_dir: str | None = Field(None, description="Accepted; read by image builds, which steps do not do.")
    build_registry: str | None = Field(None, description="Accepted; read by image builds, which steps do not do.")

    @field_validator("time", "build_time", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        if value is None:
            return value
        if not isinstance(value, str) or not _TIME.fullmatch(value.strip()):
            raise ValueError('must be a time in quotes, "HH:MM:SS" or "D-HH:MM:SS"; a plain number there is minutes')
        return value.strip()

    @field_validator("exclusive", mode="before")
    @classmethod
    def _exclusive(cls, value: Any) -> Any:
        if value not in (True, False, "true", "false", "user", "mcs"):
            raise ValueError("must be true, false, user or mcs")
        return value

    @field_validator("mounts")
    @classmethod
    def _mounts(cls, mounts: tuple[Any, ...]) -> tuple[Any, ...]:
        for mount in mounts:
            parts = mount.split(":") if isinstance(mount, str) else []
            if not is_auto_mount(mount) and (len(parts) not in (2, 3) or not all(parts) or "," in mount):
                raise ValueError(f'{mount!r}: must be "host:container" or "host:container:flags", one mount each')
        return mounts

    @field_validator("setup_lines", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator("srun_args", mode="before")
    @classmethod
    def _arguments(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("must be a list of arguments")
        return value

    @model_validator(mode="after")
    def _reachable(self) -> Settings:
        if self.tunnel == "ssh" and not self.host:
            raise ValueError('tunnel = "ssh" needs host. Name the login node, or use tunnel = "local" on it')
        return self

    @field_validator("remote_job_dir", "account", "partition", "run_partition", "batch_partition", "build_partition")
    @classmethod
    def _words(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not _WORD.fullmatch(value):
            raise ValueError("must not contain spaces, quotes, colons, commas or other special characters")
        if value is not None and info.field_name == "remote_job_dir" and not value.startswith("/"):
            raise ValueError("must be an absolute path on the cluster")
        return value.rstrip("/") if value and info.field_name == "remote_job_dir" else value

    @field_validator("job_name")
    @classmethod
    def _job_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.:@+-]+", value):
            raise ValueError("must be letters, digits and .:@+-_ only: it is part of file names")
        return value

    @field_validator("additional_parameters")
    @classmethod
    def _options(cls, options: dict[str, Scalar]) -> dict[str, Scalar]:
        for option in options:
            if not re.fullmatch(r"[a-z][a-z0-9_-]*", option):
                raise ValueError(f"{option!r} is no option of sbatch. Write it without dashes in front")
            if option.replace("_", "-") in _OURS:
                raise ValueError(f"{option!r} is set for every job, so that it is found again. Remove it")
        return options

    @model_validator(mode="after")
    def _one_line(self) -> Settings:
        for field, value in self:
            texts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
            if field not in _SHELL and any(isinstance(t, str) and _CONTROL.search(t) for t in texts):
                raise ValueError(f"{field} must be one line: it becomes a line of the batch script")
        return self

    @property
    def shares_files(self) -> bool:
        """Whether the cluster sees this machine's files."""
        return self.files == "shared" if self.files else tunnel(self) == "local"


def relocation(settings: Settings) -> Relocation:
    """Containers see the job's directory as /nemo_run; without one it is where it lies."""
    run = "/nemo_run" if settings.job_image else slurm_script.job_directory(settings, ANY_KEY)
    return Relocation(code=f"{run}/code", run=run)


def make_target(settings: Settings, state: Path) -> SlurmTarget:
    return SlurmTarget(settings)
