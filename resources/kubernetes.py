"""The ``kubernetes`` target: TrainJobs (Kubeflow Trainer 2.1) and, for Ray steps, RayClusters (KubeRay)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from nemotron_dagster.config.compile import Relocation
from nemotron_dagster.jobs import cloud, launch
from nemotron_dagster.jobs.preview_only import PreviewOnly
from nemotron_dagster.jobs.settings import CommonSettings, Count, is_auto_mount
from nemotron_dagster.jobs.target import Preview, Submission


class Settings(CommonSettings):
    """Keys of a Kubernetes profile. Tables of volumes, tolerations, affinity are Kubernetes's own."""

    executor: Literal["kubernetes"] = "kubernetes"
    # where
    kubeconfig: str | None = Field(None, description="Path of the kubeconfig; default: KUBECONFIG, ~/.kube/config.")
    context: str | None = Field(None, description="Context of the kubeconfig; default: its current one.")
    namespace: str = Field("default", description="Namespace.")
    runtime_ref: str = Field("torch-distributed", description="ClusterTrainingRuntime of the TrainJob.")
    queue: str | None = Field(None, description="Kueue's LocalQueue.")
    priority_class: str | None = Field(None, description="Kueue's WorkloadPriorityClass.")
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


def relocation(settings: Settings) -> Relocation:
    return cloud.NEMO_RUN


def make_target(settings: Settings, state: Path) -> KubernetesTarget:
    return KubernetesTarget(settings)


class KubernetesTarget(PreviewOnly):
    """TrainJobs and RayClusters whose files lie on the volume ``workdir_pvc``."""

    executor = "kubernetes"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def preview(self, job: Submission) -> Preview:
        s, name = self.settings, cloud.job_name(job)
        cloud.require("kubernetes", {"container_image": job.image, "workdir_pvc": s.workdir_pvc})
        request: dict[str, Any] = {"name": name}
        if job.secrets:
            request["secret_object"] = {"name": name, "namespace": s.namespace, "keys": sorted(job.secrets)}
        if job.launch == "ray":
            request["KubeRayExecutor"] = _filled(_ray_cluster(s, job))
        else:
            request["KubeflowExecutor"] = _filled(_train_job(s, job, name))
        script = launch.job_script(job, '"${PET_NODE_RANK:-0}"', cloud.before(job, s.pip_extras))
        where = f"context {s.context}, namespace {s.namespace}" if s.context else f"namespace {s.namespace}"
        mounts = (f"{s.workdir_pvc}:{s.workdir_pvc_path}", *(m for m in s.mounts if not is_auto_mount(m)))
        directory = f"{s.workdir_pvc_path}/{job.key}"
        return cloud.preview(job, f"kubernetes, {where}", directory, request, script, (*mounts, *s.volume_mounts))


def _train_job(s: Settings, job: Submission, name: str) -> dict[str, Any]:
    volumes, volume_mounts = _storage(s)
    references = {k: (name, k) for k in job.secrets}
    references |= {k: (v.partition("/")[0], v.partition("/")[2]) for k, v in s.secret_vars.items()}
    secrets = [
        {"name": k, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for k, (secret, key) in sorted(references.items())
    ]
    kueue = {"kueue.x-k8s.io/queue-name": s.queue, "kueue.x-k8s.io/priority-class": s.priority_class}
    pods = {"serviceAccountName": s.service_account, "nodeSelector": s.node_selector}
    return {
        "runtime_ref": s.runtime_ref,
        "namespace": s.namespace,
        "image": job.image,
        "num_nodes": job.nodes,
        "nprocs_per_node": job.processes_per_node,
        "gpus_per_node": job.gpus_per_node or None,
        **_resources(s),
        "extra_resource_requests": s.extra_resource_requests,
        "extra_resource_limits": s.extra_resource_limits,
        "volumes": volumes,
        "volume_mounts": volume_mounts,
        "labels": {**s.labels, **_filled(kueue)},
        "annotations": s.annotations,
        "pod_labels": s.pod_labels,
        "pod_annotations": s.pod_annotations,
        "tolerations": list(s.tolerations),
        "affinity": s.affinity,
        "env_vars": dict(job.env),
        "env_list": [*s.env_list, *secrets],
        "pod_spec_overrides": {**_filled(pods), **s.pod_spec_overrides},
        "data_mover_image": s.data_mover_image,
        "image_pull_secrets": list(s.image_pull_secrets),
        "spec_kwargs": s.spec_kwargs,
        "container_kwargs": s.container_kwargs,
        "workdir_pvc": s.workdir_pvc,
        "workdir_pvc_path": s.workdir_pvc_path,
        "train_job_basename": name,
    }


def _ray_cluster(s: Settings, job: Submission) -> dict[str, Any]:
    volumes, volume_mounts = _storage(s)
    workers = {"group_name": "workers", "replicas": job.nodes, "gpus_per_worker": job.gpus_per_node, **_resources(s)}
    return {
        "namespace": s.namespace,
        "ray_version": s.ray_version,
        "image": job.image,
        "head_cpu": s.head_cpu,
        "head_memory": s.head_memory,
        "worker_groups": [_filled(workers)],
        "labels": s.labels,
        "volumes": [{"name": "workdir", "persistentVolumeClaim": {"claimName": s.workdir_pvc}}, *volumes],
        "volume_mounts": [{"name": "workdir", "mountPath": s.workdir_pvc_path}, *volume_mounts],
        "env_vars": cloud.variables(job),
        "spec_kwargs": s.spec_kwargs,
        "container_kwargs": s.container_kwargs,
    }


def _resources(s: Settings) -> dict[str, str | None]:
    return {
        "cpu_requests": s.cpu_requests or s.cpus,
        "cpu_limits": s.cpu_limits or s.cpus,
        "memory_requests": s.memory_requests or s.memory,
        "memory_limits": s.memory_limits or s.memory,
    }


def _storage(s: Settings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts: the profile's own, one for each ``claim:path``, and /dev/shm."""
    volumes, mounts = list(s.volumes), list(s.volume_mounts)
    for mount in s.mounts:
        if isinstance(mount, str) and not is_auto_mount(mount):
            claim, _, path = mount.partition(":")
            if claim not in [v.get("name") for v in volumes]:
                volumes.append({"name": claim, "persistentVolumeClaim": {"claimName": claim}})
            mounts.append({"name": claim, "mountPath": path})
    if s.shared_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": s.shared_memory}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return volumes, mounts


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if v not in (None, "", [], {}, ())}
