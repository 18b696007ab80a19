"""The ``lepton`` target: jobs of an NVIDIA DGX Cloud Lepton workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from nemotron_dagster.config.compile import Relocation
from nemotron_dagster.jobs import cloud, launch
from nemotron_dagster.jobs.preview_only import PreviewOnly
from nemotron_dagster.jobs.settings import Commands, CommonSettings, Count, Positive, is_auto_mount
from nemotron_dagster.jobs.target import Preview, Submission


class Settings(CommonSettings):
    """Keys of a Lepton profile. The workspace and its token are the environment's (`lep login`)."""

    executor: Literal["lepton"] = "lepton"
    nemo_run_dir: str | None = Field(None, description="Directory on the mounted storage for job files; required.")
    remote_job_dir: str | None = Field(None, description="Directory on the mounted storage below which jobs write.")
    ntasks_per_node: Positive | None = Field(None, description="Processes per node where nprocs_per_node is not set.")
    node_group: str | None = Field(None, description="Dedicated node group.")
    node_reservation: str | None = Field(None, description="Reservation of nodes.")
    resource_shape: str | None = Field(None, description="Shape of a node, e.g. gpu.8xh100-80gb.")
    head_resource_shape: str | None = Field(None, description="Shape of the head node of a Ray cluster.")
    shared_memory_size: Count = Field(65536, description="Shared memory in MiB.")
    mounts: tuple[str | dict[str, Any], ...] = Field(
        (), description="Tables with path, mount_path and from; ${auto_mount:...} is cloned in the container."
    )
    image_pull_secrets: tuple[str, ...] = Field((), description="Names of secrets that pull the image.")
    secret_vars: dict[str, str] = Field({}, description="Variable -> name of the Lepton secret that fills it.")
    pre_launch_commands: Commands = Field((), description="Commands run in each container before anything else.")
    pip_extras: tuple[str, ...] = Field((), description="Packages installed with pip before the step.")
    custom_spec: dict[str, Any] = Field({}, description="Fields merged into the job's specification.")
    ray_version: str | None = Field(None, description="Ray version of a Ray cluster, e.g. 2.48.0.")
    existing_ray_cluster: str | None = Field(None, description="Ray cluster to use instead of a new one.")
    launcher: Literal["torchrun"] | None = Field(None, description="Launcher of torchrun steps; only torchrun.")
    can_be_preempted: bool = Field(False, description="The job may give its nodes to one of higher priority.")
    can_preempt: bool = Field(False, description="The job may take nodes of one of lower priority.")
    queue_priority: str | None = Field(None, description="e.g. mid-4000; required with either of them.")

    @field_validator("mounts")
    @classmethod
    def _mounts(cls, mounts: tuple[Any, ...]) -> tuple[Any, ...]:
        for mount in mounts:
            if is_auto_mount(mount):
                continue
            if not isinstance(mount, dict) or not mount.get("path") or not mount.get("mount_path"):
                raise ValueError(f"{mount!r}: must be a table with path and mount_path, and from for its source")
            if unknown := sorted(set(mount) - {"path", "mount_path", "from"}):
                raise ValueError(f"unknown key {unknown[0]!r} in a mount; known: path, mount_path, from")
        return mounts


def relocation(settings: Settings) -> Relocation:
    return cloud.NEMO_RUN


def make_target(settings: Settings, state: Path) -> LeptonTarget:
    return LeptonTarget(settings)


class LeptonTarget(PreviewOnly):
    """Jobs whose files lie in ``nemo_run_dir`` on the mounted storage."""

    executor = "lepton"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def preview(self, job: Submission) -> Preview:
        s = self.settings
        cloud.require("lepton", {"container_image": job.image, "nemo_run_dir": s.nemo_run_dir})
        if (s.can_be_preempted or s.can_preempt) and not s.queue_priority:
            cloud.require("lepton", {"queue_priority": None})
        mounts = [m for m in s.mounts if isinstance(m, dict)]
        executor = {
            "container_image": job.image,
            "nemo_run_dir": s.nemo_run_dir,
            "nodes": job.nodes,
            "gpus_per_node": job.gpus_per_node,
            "nprocs_per_node": job.processes_per_node,
            "shared_memory_size": s.shared_memory_size,
            "resource_shape": s.resource_shape,
            "node_group": s.node_group,
            "node_reservation": s.node_reservation,
            "mounts": mounts,
            "secret_vars": s.secret_vars,
            "image_pull_secrets": list(s.image_pull_secrets),
            "custom_spec": s.custom_spec,
            "can_be_preempted": s.can_be_preempted,
            "can_preempt": s.can_preempt,
            "queue_priority": s.queue_priority,
            "env_vars": cloud.variables(job),
        }
        request: dict[str, Any] = {"name": cloud.job_name(job)}
        if job.launch == "ray":
            executor |= {"ray_version": s.ray_version, "head_resource_shape": s.head_resource_shape}
            request["ray_cluster"] = s.existing_ray_cluster or cloud.job_name(job)
        request["LeptonExecutor"] = {k: v for k, v in executor.items() if v not in (None, "", [], {}, False)}
        script = launch.job_script(
            job, '"${NODE_RANK:-0}"', cloud.before(job, s.pip_extras, first=s.pre_launch_commands)
        )
        return cloud.preview(job, "lepton", f"{s.nemo_run_dir}/{job.key}", request, script, mounts)
