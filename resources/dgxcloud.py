"""The ``dgxcloud`` target: workloads of NVIDIA DGX Cloud (Run:ai)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from nemotron_dagster.jobs.preview_only import PreviewOnly
from nemotron_dagster.jobs.settings import CommonSettings, Positive, is_auto_mount

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


def make_target(settings: Settings, state: Path) -> DGXCloudTarget:
    return DGXCloudTarget(settings)


class DGXCloudTarget(PreviewOnly):
    """Shows what would be submitted."""

    executor = "dgxcloud"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
