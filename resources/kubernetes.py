"""The ``kubernetes`` target: TrainJobs (Kubeflow Trainer 2.1) and, for Ray steps, RayClusters (KubeRay)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from nemotron_dagster.jobs.preview_only import PreviewOnly
from nemotron_dagster.jobs.settings import CommonSettings, Count, is_auto_mount


class Settings(CommonSettings):
    """Keys of a Kubernetes profile. Tables of volumes, tolerations, affinity are Kubernetes's own."""

    executor: Literal["kubernetes"] = "kubernetes"
    # where
    kubeconfig: str | None = Field(None, description="Path of the kubeconfig; default: KUBECONFIG, ~/.kube/config.")
    context: str | None = Field(None, description="Context of the kubeconfig; default: its current one.")
    namespace: str = Field("default", description="Namespace.")
    runtime_ref: str = Field("torch-distributed", description="ClusterTrainingRuntime of the TrainJob.")
    queue: str | None = Field(None, description="Kueue's LocalQueue.")
    priority_class: str | None = Field(None, description="PriorityClass of the pods.")
    # image and resources
    image: str | None = Field(None, description="The same as container_image, as Kubernetes spells it.")
    image_pull_secrets: tuple[str, ...] = Field((), description="Names of secrets that pull the image.")
    gpus: Count | None = Field(None, description="The same as gpus_per_node.")
    cpus: str | None = Field(None, description="CPUs per pod, requested and limit.", coerce_numbers_to_str=True)
    memory: str | None = Field(None, description="Memory per pod, requested and limit, e.g. 64Gi.")
    cpu_requests: str | None = Field(None, description="CPUs requested; default: cpus.", coerce_numbers_to_str=True)
    cpu_limits: str | None = Field(None, description="Limit of CPUs; default: cpus.", coerce_numbers_to_str=True)
    memory_requests: str | None = Field(None, description="Memory requested; default: memory.")
    memory_limits: str | None = Field(None, description="Limit of memory; default: memory.")
    extra_resource_requests: dict[str, str] = Field({}, description="Further resources requested, e.g. rdma/ib.")
    extra_resource_limits: dict[str, str] = Field({}, description="Their limits.")
    shared_memory: str | None = Field(None, description="Size of /dev/shm, e.g. 64Gi.")
    # storage
    workdir_pvc: str | None = Field(None, description="Claim of the volume for code and job files; required.")
    workdir_pvc_path: str = Field("/mnt/nemotron", description="Where the job sees it; not /nemo_run, a link to it.")
    volumes: tuple[dict[str, Any], ...] = Field((), description="Volumes of the pods.")
    volume_mounts: tuple[dict[str, Any], ...] = Field((), description="Where the container sees them.")
    mounts: tuple[str | dict[str, Any], ...] = Field(
        (), description='"claim:path" for a PersistentVolumeClaim; ${auto_mount:...} is cloned in the container.'
    )
    data_mover_image: str = Field("alpine:3.19", description="Image of the pod that copies code to the volume.")
    # pods
    service_account: str | None = Field(None, description="ServiceAccount of the pods.")
    labels: dict[str, str] = Field({}, description="Labels of the TrainJob.")
    annotations: dict[str, str] = Field({}, description="Annotations of the TrainJob.")
    pod_labels: dict[str, str] = Field({}, description="Labels of the pods.")
    pod_annotations: dict[str, str] = Field({}, description="Annotations of the pods.")
    node_selector: dict[str, str] = Field({}, description="Labels that the nodes must have.")
    tolerations: tuple[dict[str, Any], ...] = Field((), description="Taints that the pods tolerate.")
    affinity: dict[str, Any] = Field({}, description="Affinity of the pods.")
    env_list: tuple[dict[str, Any], ...] = Field((), description="Variables in full, e.g. with valueFrom.")
    secret_vars: dict[str, str] = Field({}, description='Variable -> "secret/key" that fills it.')
    pod_spec_overrides: dict[str, Any] = Field({}, description="Fields merged into the pods' spec.")
    spec_kwargs: dict[str, Any] = Field({}, description="Fields merged into the TrainJob's spec.")
    container_kwargs: dict[str, Any] = Field({}, description="Fields merged into its trainer.")
    pip_extras: tuple[str, ...] = Field((), description="Packages installed with pip before the step.")
    # Ray
    ray_version: str = Field("2.48.0", description="Ray version of a Ray cluster.")
    head_cpu: str = Field("1", description="CPUs of its head.", coerce_numbers_to_str=True)
    head_memory: str = Field("8Gi", description="Memory of its head.")

    @field_validator("mounts")
    @classmethod
    def _mounts(cls, mounts: tuple[Any, ...]) -> tuple[Any, ...]:
        for mount in mounts:
            claim, _, path = mount.partition(":") if isinstance(mount, str) else ("", "", "")
            if not is_auto_mount(mount) and (not claim or "/" in claim or not path.startswith("/")):
                raise ValueError(f'{mount!r}: must be "claim:/path" for a PersistentVolumeClaim')
        return mounts

    @field_validator("secret_vars")
    @classmethod
    def _secrets(cls, names: dict[str, str]) -> dict[str, str]:
        for variable, source in names.items():
            if source.count("/") != 1 or not all(source.split("/")):
                raise ValueError(f'{variable} = {source!r}: must be "secret/key"')
        return names

    @property
    def job_image(self) -> str | None:
        return super().job_image or self.image

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.gpus is not None and self.gpus_per_node is not None and self.gpus != self.gpus_per_node:
            raise ValueError(f"gpus = {self.gpus} and gpus_per_node = {self.gpus_per_node} differ. Keep one")
        if self.workdir_pvc_path.rstrip("/") in ("", "/nemo_run"):
            raise ValueError("workdir_pvc_path must not be /nemo_run: that is a link into it. Use /mnt/nemotron")
        return self


def make_target(settings: Settings, state: Path) -> KubernetesTarget:
    return KubernetesTarget(settings)


class KubernetesTarget(PreviewOnly):
    """Shows what would be submitted."""

    executor = "kubernetes"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
