"""The ``dgxcloud`` target: workloads of NVIDIA DGX Cloud (Run:ai)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from nemotron_dagster.config.compile import Relocation
from nemotron_dagster.config.secrets import HIDDEN
from nemotron_dagster.jobs import cloud, launch
from nemotron_dagster.jobs.preview_only import PreviewOnly
from nemotron_dagster.jobs.settings import CommonSettings, Positive, is_auto_mount
from nemotron_dagster.jobs.target import Preview, Submission

_PVC_KEYS = {"name", "path", "existingPvc", "claimName", "readOnly", "claimInfo", "ephemeral"}


class Settings(CommonSettings):
    """Keys of a DGX Cloud profile."""

    executor: Literal["dgxcloud"] = "dgxcloud"
    base_url: str | None = Field(None, description="Address of the Run:ai API, .../api/v1; required.")
    kube_apiserver_url: str | None = Field(None, description="Address of the cluster's API server; required.")
    client_id: str | None = Field(None, description="OAuth client; required.")
    app_id: str | None = Field(None, description="The same, as older profiles spell it.")
    client_secret: str | None = Field(None, description="Its secret; required. Write ${oc.env:NAME}, not the secret.")
    app_secret: str | None = Field(None, description="The same, as older profiles spell it.")
    project_name: str | None = Field(None, description="Run:ai project; required.")
    pvc_nemo_run_dir: str | None = Field(None, description="Directory on the volume for job files; required.")
    ntasks_per_node: Positive | None = Field(None, description="Processes per node where nprocs_per_node is not set.")
    pvcs: tuple[dict[str, Any], ...] = Field(
        (), description="Volumes: tables with path, and name, existingPvc, claimName, readOnly."
    )
    mounts: tuple[str | dict[str, Any], ...] = Field(
        (), description="Only ${auto_mount:...}, cloned in the container; storage is named in pvcs."
    )
    distributed_framework: str = Field("PyTorch", description="Framework of a workload of several nodes.")
    custom_spec: dict[str, Any] = Field({}, description="Fields merged into the workload's spec.")
    pip_extras: tuple[str, ...] = Field((), description="Packages installed with pip before the step.")
    launcher: Literal["torchrun"] | None = Field(None, description="Launcher of torchrun steps; only torchrun.")
    dgxcloud_max_args_chars: Positive = Field(9500, description="Longest argument string that the API takes.")

    @field_validator("mounts")
    @classmethod
    def _mounts(cls, mounts: tuple[Any, ...]) -> tuple[Any, ...]:
        for mount in mounts:
            if not is_auto_mount(mount):
                raise ValueError(f"{mount!r}: only ${{auto_mount:...}} is mounted here. Name the volume in pvcs")
        return mounts

    @field_validator("pvcs")
    @classmethod
    def _pvcs(cls, pvcs: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for pvc in pvcs:
            if not pvc.get("path"):
                raise ValueError(f"{pvc!r}: must have path, where the job sees the volume")
            if unknown := sorted(set(pvc) - _PVC_KEYS):
                raise ValueError(f"unknown key {unknown[0]!r} in a volume; known: {', '.join(sorted(_PVC_KEYS))}")
        return pvcs


def relocation(settings: Settings) -> Relocation:
    return cloud.NEMO_RUN


def make_target(settings: Settings, state: Path) -> DGXCloudTarget:
    return DGXCloudTarget(settings)


class DGXCloudTarget(PreviewOnly):
    """Workloads whose files lie in ``pvc_nemo_run_dir`` on the volume."""

    executor = "dgxcloud"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def preview(self, job: Submission) -> Preview:
        s = self.settings
        client, secret = s.client_id or s.app_id, s.client_secret or s.app_secret
        needed = {
            "container_image": job.image,
            "base_url": s.base_url,
            "kube_apiserver_url": s.kube_apiserver_url,
            "client_id (or app_id)": client,
            "client_secret (or app_secret)": secret,
            "project_name": s.project_name,
            "pvc_nemo_run_dir": s.pvc_nemo_run_dir,
        }
        cloud.require("dgxcloud", needed)
        executor = {
            "base_url": s.base_url,
            "kube_apiserver_url": s.kube_apiserver_url,
            "client_id": client,
            "client_secret": HIDDEN,
            "project_name": s.project_name,
            "container_image": job.image,
            "pvc_nemo_run_dir": s.pvc_nemo_run_dir,
            "nodes": job.nodes,
            "gpus_per_node": job.gpus_per_node,
            "nprocs_per_node": job.processes_per_node,
            "pvcs": list(s.pvcs),
            "distributed_framework": s.distributed_framework,
            "custom_spec": s.custom_spec,
            "MAX_ARGS_CHARS": s.dgxcloud_max_args_chars,
            "env_vars": cloud.variables(job),
        }
        request: dict[str, Any] = {"name": cloud.job_name(job)}
        if job.launch == "ray":
            request["ray_cluster"] = cloud.job_name(job)
        request["DGXCloudExecutor"] = {k: v for k, v in executor.items() if v not in (None, "", [], {})}
        rank = '"${NODE_RANK:-${PET_NODE_RANK:-${RANK:-0}}}"'
        script = launch.job_script(job, rank, cloud.before(job, s.pip_extras))
        target = f"dgxcloud at {s.base_url}"
        return cloud.preview(job, target, f"{s.pvc_nemo_run_dir}/{job.key}", request, script, s.pvcs)
