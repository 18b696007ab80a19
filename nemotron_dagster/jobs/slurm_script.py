"""The batch script of a Slurm job, rendered by NeMo-Run from an executor that is never connected to anything.

NeMo-Run upper-cases and does not quote environment variables, takes `/nemo_run` anywhere in a script for the job's
directory where there is no container, and quotes neither a command's words nor srun's (`noquote` in it is `str`; for
Ray it does quote srun's). So the environment travels in setup lines of our own, such paths are masked, the command is
one file, and image, mounts and srun_args are quoted before they get there.

What is ours in the script comes before what is NeMo-Run's: a second job of the same key ends at once, and the end
leaves a mark. NeMo-Run's scripts trace themselves, and the one for Ray prints its whole environment: neither is kept.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_dagster.errors import ProfileError
from nemotron_dagster.jobs import launch
from nemotron_dagster.jobs.settings import is_auto_mount
from nemotron_dagster.jobs.target import ANY_KEY, Submission

Settings = Any  # of resources/slurm.py, which is loaded by path
TITLE, TASK = "nemotron", "job"  # of NeMo-Run's experiment: <remote_job_dir>/nemotron/nemotron_<key>/job
_MASK = ("nemo_run", "nemo@@run")
_KEY = (ANY_KEY, "@@key@@")  # braces would be quoted
_CHAINED = re.compile(r"([0-9a-f]{20})-(\d+)")  # a follow-up job of a walltime chain
_TRACES = (("set -evx\n", "set -e\n"), ("set -eoux pipefail\n", "set -euo pipefail\n"))
_RAY_ENV = re.compile(r"^env$\n", re.M)
_RAY_TRAP = "trap cleanup_cluster_info EXIT"
_SCHEMES = ("docker://", "dockerd://", "podman://", "docker-archive://", "oci-archive://")


def job_directory(settings: Settings, key: str) -> str:
    """The job's directory on the cluster, as NeMo-Run lays experiments out.

    Raises:
        ProfileError: the profile names no remote_job_dir.
    """
    if not settings.remote_job_dir:
        raise ProfileError(
            "remote_job_dir required for the slurm executor: a directory on the shared file system. Add it."
        )
    chained = _CHAINED.fullmatch(key)
    first, task = (chained[1], f"{TASK}-{chained[2]}") if chained else (key, TASK)
    return f"{settings.remote_job_dir.rstrip('/')}/{TITLE}/{TITLE}_{first}/{task}"


def run_directory(settings: Settings, key: str) -> str:
    """What the payload sees as the job's directory: a follow-up job continues in that of the first one."""
    chained = _CHAINED.fullmatch(key)
    return job_directory(settings, chained[1] if chained else key)


def script_path(job: Submission) -> str:
    """Where the job's own script lies for the job; NeMo-Run puts inline scripts there."""
    return f"{job.cwd}/scripts/{TASK}.sh"


def job_script(job: Submission) -> str:
    """What each node runs."""
    return launch.job_script(job, '"${SLURM_NODEID:-0}"')


def submit_command(settings: Settings, key: str) -> tuple[str, ...]:
    """The command that submits the batch script on the login node."""
    requeue = "--no-requeue" if settings.requeue is False else "--requeue"
    return ("sbatch", requeue, "--parsable", batch_file(settings, key))


def batch_file(settings: Settings, key: str) -> str:
    """Where the batch script lies, as NeMo-Run has it: ``<experiment>/<task>_sbatch.sh``."""
    return f"{job_directory(settings, key)}_sbatch.sh"


def batch_script(settings: Settings, job: Submission) -> str:
    """The sbatch script.

    Raises:
        ProfileError: what the job needs is not in the profile.
    """
    ray = job.launch == "ray"
    needed = {"account": settings.account, "partition": _partition(settings, job), "container_image": job.image}
    lacking = [k for k, v in needed.items() if ray and not v]
    if lacking:
        raise ProfileError(f"{lacking[0]} required for {job.step} on the slurm executor: it starts a Ray cluster.")
    from nemo_run.config import RUNDIR_NAME
    from nemo_run.core.execution.slurm import SlurmBatchRequest
    from nemo_run.run.ray.slurm import SlurmRayRequest

    assert RUNDIR_NAME == "nemo_run"
    hide = _hide if job.image is None else _plain
    directory = hide(run_directory(settings, job.key))
    logs = hide(job_directory(settings, job.key)) + ("/ray/logs" if ray else "")
    executor = _executor(settings, job, directory, logs, hide)
    command = f"bash {shlex.quote(hide(script_path(job)))}"
    submit = list(submit_command(settings, job.key)[:-1])
    if ray:
        request: Any = SlurmRayRequest(
            name=TASK,
            cluster_dir=os.path.dirname(logs),
            template_name="ray.sub.j2",
            executor=executor,
            command=command,
            workdir=job.workdir or "/nemo_run/code",
            nemo_run_dir=directory,
            launch_cmd=submit,
        )
    else:
        request = SlurmBatchRequest(
            launch_cmd=submit,
            jobs=[TASK],
            command_groups=[[command]],
            executor=executor,
            max_retries=settings.retries,
            extra_env={},
            launcher=None,
        )
    return _ours(_show(request.materialize()), settings, job)


def mounts(settings: Settings, job: Submission) -> tuple[str, ...]:
    """The container's mounts: the profile's and the config's, cloned repositories, Lustre, inputs, Ray's scratch.

    Raises:
        ProfileError: a directory that the job needs cannot be mounted.
    """
    if job.image is None:
        return ()
    base = settings.remote_job_dir
    found = [str(m) for m in job.mounts if not is_auto_mount(m)]
    found += [f"{_clone(settings, url, ref)}:{path}" for url, ref, path in launch.clones(job.mounts)]
    found += [settings.lustre_mount] if settings.lustre_mount else []
    for path in job.visible:
        if re.search(r"[:,]", path):
            raise ProfileError(f"{path}: a path with : or , cannot be mounted into a container. Choose another place.")
        found.append(f"{path}:{path}")
    found += [] if settings.shares_files else [f"{base}/inputs:{base}/inputs"]
    return tuple(dict.fromkeys([*found, f"{base}/ray_temp:/ray-cluster"]))


def image_file(settings: Settings, image: str | None) -> str | None:
    """The squash file that an image is imported to; a file is taken as it is."""
    if image is None or image.startswith("/") or image.endswith(".sqsh"):
        return image
    scheme = next((s for s in _SCHEMES if image.startswith(s)), "")
    name = image.removeprefix(scheme)
    name = name.rsplit("/", 1)[-1] if "archive" in scheme else name
    return f"{settings.remote_job_dir}/{re.sub('_+', '_', re.sub('[^A-Za-z0-9_]', '_', name)).strip('_')}.sqsh"


def preparation(settings: Settings, job: Submission) -> tuple[str, ...]:
    """Commands run on the login node where what they make is missing: the image's file, cloned repositories."""
    return tuple(command for _, command in steps_before(settings, job))


def steps_before(settings: Settings, job: Submission) -> list[tuple[str, str]]:
    """The same, each with the path that it makes. None ever leaves half of it there."""
    steps = []
    file = image_file(settings, job.image)
    if job.image and file != job.image and file:
        source = job.image if job.image.startswith(_SCHEMES) else f"docker://{job.image}"
        scratch, part = f"{settings.remote_job_dir}/.enroot", f"{file}.part"
        inner = (
            f"export ENROOT_RUNTIME_PATH={scratch} ENROOT_CACHE_PATH={scratch}/cache ENROOT_DATA_PATH={scratch}/data"
            f" && mkdir -p {scratch}/cache {scratch}/data"
            f" && rm -f {shlex.quote(part)} && enroot import --output {shlex.quote(part)} {shlex.quote(source)}"
            f" && mv -f {shlex.quote(part)} {shlex.quote(file)}"
        )
        allocation = ["salloc", *_build(settings, job), "srun", "--export=ALL", "bash", "-c", inner]
        steps.append((file, shlex.join(allocation)))
    for url, ref, _ in launch.clones(job.mounts):
        path = _clone(settings, url, ref)
        part = f"{path}.part"
        command = launch.clone_command(url, ref, part)
        steps.append((path, f"{command} && mv -T {shlex.quote(part)} {shlex.quote(path)}"))
    return steps


def secrets_file(settings: Settings, key: str) -> str:
    """The private file (mode 0600) that holds a job's secrets; the batch script names it and nothing else."""
    return f"{settings.remote_job_dir}/.nemotron-secrets/{key}.env"


def name(settings: Settings, job: Submission) -> str:
    """The Slurm job's name: unique by its key, so that a job is found again by it."""
    account = settings.account or "nemotron"
    first = settings.job_name or f"{account}-{account.split('_')[-1]}.{launch.slug(job.step)}"
    return f"{first}.{job.key}"


def _executor(settings: Settings, job: Submission, directory: str, logs: str, hide: Any) -> Any:
    from nemo_run.core.execution.slurm import SlurmExecutor, SlurmJobDetails
    from nemo_run.core.packaging.base import Packager

    shown = {k: hide(v) if isinstance(v, str) else v for k, v in _parameters(settings).items()}
    given = {k: getattr(settings, k) for k in _PLAIN if getattr(settings, k) is not None}
    image = image_file(settings, job.image)
    executor = SlurmExecutor(
        account=settings.account,
        partition=_partition(settings, job),
        job_name_prefix="-",  # unused, as job_details names the job, but without it an account is taken for granted
        time=settings.time,
        nodes=job.nodes,
        ntasks_per_node=1,  # torchrun starts the others
        gpus_per_node=job.gpus_per_node or None,
        exclusive=settings.exclusive or None,
        container_image=None if image is None else shlex.quote(image),
        container_mounts=[shlex.quote(m) for m in mounts(settings, job)],
        srun_args=[hide(a if job.launch == "ray" else shlex.quote(a)) for a in settings.srun_args] or None,
        additional_parameters=shown or None,
        job_details=SlurmJobDetails(job_name=hide(name(settings, job)), folder=logs),
        setup_lines=hide("\n".join(_setup(settings, job))),
        packager=Packager(),
        retries=settings.retries,
        **given,
    )
    executor.tunnel.job_dir = os.path.dirname(directory)
    executor.job_dir = directory
    return executor


_PLAIN = (
    *("cpus_per_task", "cpus_per_gpu", "gpus_per_task", "mem", "mem_per_cpu", "mem_per_gpu", "qos", "constraint"),
    *("gres", "exclude", "segment", "network", "signal", "comment"),
)


def _parameters(settings: Settings) -> dict[str, Any]:
    """sbatch options that NeMo-Run's executor has no field for, and the user's own."""
    options: dict[str, Any] = {
        k: getattr(settings, k) for k in ("nodelist", "reservation", "dependency", "mail_user", "mail_type")
    }
    return {k: v for k, v in (options | settings.additional_parameters).items() if v is not None and v is not False}


def _setup(settings: Settings, job: Submission) -> list[str]:
    lines = [f'export MASTER_ADDR="${{head_node_ip%% *}}" {_PORT}']
    lines += ["export SLURM_OPEN_MODE=a"]  # a restart must not cut what was read already
    if job.launch == "ray":  # its template takes eight GPUs for granted
        lines += [f"gpus_per_node={job.gpus_per_node}", 'CPUS_PER_WORKER="${SLURM_CPUS_ON_NODE:-$CPUS_PER_WORKER}"']
        lines += launch.exports(job.env)  # for the workers too, not only for the driver
    if job.secrets:
        lines += [
            f"# {', '.join(sorted(job.secrets))}",
            "_flags=$-",
            "set +vx",
            'if ! . "$_secrets"; then echo "cannot read $_secrets" >&2; exit 1; fi',
            'case "$_flags" in *v*) set -v ;; esac',
            'case "$_flags" in *x*) set -x ;; esac',
        ]
        if settings.requeue is False and not settings.retries:  # nothing starts it again
            lines.append('rm -f "$_secrets"')
    return [*lines, *([settings.setup_lines] if settings.setup_lines else [])]


#: Where rank 0 listens: jobs that share a node, as small ones may, must not meet there.
_PORT = "MASTER_PORT=$((10000 + SLURM_JOB_ID % 10000))"

#: Before anything else the job claims its key; at its end it leaves its exit status, and how often it was restarted.
#: Who lost the claim never touches the marks of who won it.
_HEAD = """\
_done=
_job=@job
_secrets=@secrets
if ! ln -s "$SLURM_JOB_ID" "$_job/claim" 2>/dev/null && [ "$(readlink "$_job/claim")" != "$SLURM_JOB_ID" ]; then
  echo "job $(readlink "$_job/claim") does this very work already; job $SLURM_JOB_ID ends without running anything"
  exit 75
fi
# with an exit status of its own and no retry left, nothing starts the job again
_over() { [ "$1" -lt 128 ] && { [ "$1" -eq 0 ] || [ "$2" -ge @retries ]; }; }
if [ -r "$_job/ended" ] && read -r _code _starts _at <"$_job/ended" && _over "$_code" "$_starts"; then
  echo "job $SLURM_JOB_ID has ended already with exit code $_code; Slurm missed that, and starts it again for nothing"
  exit "$_code"
fi
_end() {
  [ "$1$_done" != 0 ] || set -- 143  # a signal ended the script: what bash hands on is the status of the command before
  if _over "$1" "${SLURM_RESTART_COUNT:-0}"; then rm -f "$_secrets"; fi
  echo "$1 ${SLURM_RESTART_COUNT:-0} $(date +%s)" >"$_job/.ended" && mv -f "$_job/.ended" "$_job/ended"
}
rm -f "$_job/ended" "$_job/missing"
trap '_end $?' EXIT

"""


def _ours(script: str, settings: Settings, job: Submission) -> str:
    """The rendered script with our head, and without what it would write into logs by itself."""
    trace = next((t for t in _TRACES if t[0] in script), None)
    assert trace, "NeMo-Run's batch script has another head than the one that is known here"
    head = _HEAD.replace("@job", shlex.quote(job_directory(settings, job.key)))
    head = head.replace("@secrets", shlex.quote(secrets_file(settings, job.key)))
    head = head.replace("@retries", str(settings.retries))
    script = script.replace(trace[0], head + trace[1], 1)
    if job.launch == "ray":
        assert _RAY_TRAP in script and _RAY_ENV.search(script), "NeMo-Run's Ray script is not the one known here"
        script = _RAY_ENV.sub("", script)
        script = script.replace(_RAY_TRAP, "trap '_code=$?; cleanup_cluster_info; _end $_code' EXIT")
    return f"{script.rstrip()}\n_done=1\n"


def _build(settings: Settings, job: Submission) -> Sequence[str]:
    """The allocation that imports an image: a CPU job, unless the partition wants GPUs."""
    partition = settings.build_partition or settings.run_partition or settings.partition
    gpus = settings.build_gpus_per_node if settings.build_gpus_per_node is not None else job.gpus_per_node
    found: Mapping[str, Any] = {"account": settings.account, "partition": partition}
    options = [f"--{k}={v}" for k, v in found.items() if v]
    options += ["--nodes=1", "--ntasks-per-node=1"]
    options += [f"--gpus-per-node={gpus}"] if settings.build_include_gpus and gpus else []
    return [*options, f"--time={settings.build_time or settings.time}"]


def _partition(settings: Settings, job: Submission) -> str | None:
    named: str | None = settings.batch_partition if job.mode == "batch" else settings.run_partition
    return named or settings.partition


def _clone(settings: Settings, url: str, ref: str) -> str:
    """One clone for each commit: jobs that want another must not change what a running one sees."""
    repository = url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git")
    return f"{settings.remote_job_dir}/git-cache/{re.sub(r'[^A-Za-z0-9_.-]', '_', f'{repository}-{ref[:12]}')}"


def _plain(text: str) -> str:
    return text.replace(*_KEY)


def _hide(text: str) -> str:
    return text.replace(*_MASK).replace(*_KEY)


def _show(script: str) -> str:
    for there, mask in (_MASK, _KEY):
        script = script.replace(mask, there)
    return script
