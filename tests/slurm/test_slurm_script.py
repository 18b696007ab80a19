"""The batch scripts for containers and Ray, which need more than the tests' Slurm has: as they are rendered."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nemotron_dagster.errors import ProfileError
from nemotron_dagster.jobs import slurm_script
from nemotron_dagster.jobs.target import Submission, make_target
from nemotron_dagster.project import Project

KEY = "0123456789abcdef0123"


def script(job: Submission, **settings: Any) -> str:
    profile = {"executor": "slurm", "account": "a", "partition": "p", "remote_job_dir": "/jobs", **settings}
    text = make_target(Project(None, Path("/x")), "p", profile).preview(job).script
    assert text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    return text


def test_what_a_job_reads_and_writes_is_mounted_into_its_container() -> None:
    job = Submission(KEY, "a/b", ("python", "s.py"), cwd="/nemo_run", image="i.sqsh", visible=("/data/my set", "/out"))

    def mounts(**settings: Any) -> list[str]:
        srun = next(line for line in script(job, **settings).splitlines() if line.startswith("srun --output"))
        words = shlex.split(srun)
        return words[words.index("--container-mounts") + 1].split(",")

    directory = f"/jobs/nemotron/nemotron_{KEY}/job:/nemo_run"
    shared = ["/lustre:/lustre", "/data/my set:/data/my set", "/out:/out", "/jobs/ray_temp:/ray-cluster", directory]
    assert mounts() == shared
    copied = mounts(host="login")
    assert set(copied) == {*shared, "/jobs/inputs:/jobs/inputs"}
    for path in ("/a:b", "/a,b"):
        with pytest.raises(ProfileError, match="cannot be mounted into a container"):
            script(dataclasses.replace(job, visible=(path,)))


def test_a_follow_up_job_sees_the_directory_of_the_first_and_logs_into_its_own() -> None:
    job = Submission(f"{KEY}-2", "a/b", ("python", "s.py"), cwd="/nemo_run", image="i.sqsh")
    text = script(job)
    base = f"/jobs/nemotron/nemotron_{KEY}"
    assert f"{base}/job:/nemo_run" in text and f"{base}/job-2:/nemo_run" not in text
    assert f"#SBATCH --output={base}/job-2/sbatch_" in text and f"srun --output {base}/job-2/log-" in text
    assert f"_job={base}/job-2\n" in text


@pytest.mark.parametrize("launch", ["python", "ray"])
def test_neither_script_traces_itself_or_prints_its_environment(launch: str) -> None:
    """NeMo-Run's do: `set -x`, and `env` where Ray starts, in logs that everybody may read."""
    text = script(Submission(KEY, "a/b", ("python", "s.py"), cwd="/nemo_run", image="i.sqsh", launch=launch))
    lines = [line.strip() for line in text.splitlines()]
    assert "env" not in lines
    assert not [line for line in lines if line.startswith("set -") and "x" in line.split()[1]]


def test_the_end_of_a_ray_job_leaves_its_mark_beside_ray_s_own_clean_up() -> None:
    job = Submission(KEY, "a/b", ("python", "s.py"), cwd="/nemo_run", image="i.sqsh", launch="ray", secrets={"T": "x"})
    text = script(job)
    traps = [line for line in text.splitlines() if line.startswith("trap ")]
    assert traps == ["trap '_end $?' EXIT", "trap '_code=$?; cleanup_cluster_info; _end $_code' EXIT"]
    assert text.index("ln -s") < text.index(traps[0]) < text.index("set -euo pipefail") < text.index(traps[1])
    assert text.index("#SBATCH") < text.index("ln -s"), "Slurm reads its options before the first command only"


def test_a_secret_file_is_removed_at_once_only_where_nothing_starts_the_job_again() -> None:
    job = Submission(KEY, "a/b", ("python", "s.py"), cwd="/j", secrets={"A_TOKEN": "planted"})
    at_once = 'rm -f "$_secrets"\n'
    assert at_once in script(job, requeue=False)
    for settings in ({}, {"requeue": True}, {"requeue": False, "retries": 1}):
        assert f"\n{at_once}" not in script(job, **settings)
    assert "planted" not in script(job)


def test_names_of_nemo_run_that_we_depend_on_are_there() -> None:
    from nemo_run.config import RUNDIR_NAME
    from nemo_run.core.execution.slurm import SlurmBatchRequest, SlurmExecutor, SlurmJobDetails
    from nemo_run.run.ray.slurm import SlurmRayRequest

    assert RUNDIR_NAME == "nemo_run"
    fields = {f.name for f in dataclasses.fields(SlurmExecutor)}
    assert set(slurm_script._PLAIN) <= fields
    assert {"job_details", "setup_lines", "srun_args", "additional_parameters", "retries", "packager"} <= fields
    assert {"job_name", "folder"} <= {f.name for f in dataclasses.fields(SlurmJobDetails)}
    assert {"launch_cmd", "jobs", "command_groups", "max_retries"} <= {
        f.name for f in dataclasses.fields(SlurmBatchRequest)
    }
    assert {"cluster_dir", "command", "workdir"} <= {f.name for f in dataclasses.fields(SlurmRayRequest)}
