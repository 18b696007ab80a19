"""The dry run: what would be submitted, on every target, without touching anything."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import REPO, add_step

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.cli.preview import preview
from nemotron_dagster.config.compile import JobSpec, compile_job
from nemotron_dagster.config.profiles import Environment
from nemotron_dagster.errors import ProfileError, TargetError
from nemotron_dagster.jobs.submission import compile_on, here, moved, submission
from nemotron_dagster.jobs.target import Submission, make_target, relocation_of
from nemotron_dagster.project import Project

NASTY = {
    "SPACES": "a  b",
    "DOLLAR": "$HOME $(id) `id`",
    "QUOTES": """it's "quoted" \\ back""",
    "NEWLINE": "one\ntwo\n",
    "lower_Case": "kept",
    "STAR": "*.parquet",
    "IN_JOB": "/nemo_run/code/src:/data/nemo_run_x",
    "EMPTY": "",
}
PLANTED = "planted-s3cret"
#: What a config wants to be given before it compiles at all.
GIVEN = {
    "translate/nemo_curator": ["source_language=en", "target_language=de"],
}
CONFIG = {"eval/model_eval": "tiny_chat"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SFT_OUTPUT_DIR", "SFT_PACKED_DIR", "PRETRAIN_BLEND_PATH", "MEGATRON_PRETRAIN_PATH"):
        monkeypatch.setenv(name, f"/given/{name.lower()}")
    for name in ("HF_TOKEN", "WANDB_API_KEY", "DGXCLOUD_CLIENT_SECRET", "NVIDIA_API_KEY"):
        monkeypatch.setenv(name, PLANTED)
    monkeypatch.setenv("USER", "someone")


def profiles() -> Environment:
    """The generated base profiles of every platform, and one for Kubernetes."""
    tables: dict[str, Any] = {"local_base": {"executor": "local"}}
    for executor in ("slurm", "lepton", "dgxcloud"):
        file = REPO / "steps" / "env" / "env_toml" / "config" / f"{executor}.yaml"
        tables |= yaml.safe_load(file.read_text())["sections"]
    tables["kubernetes_base"] = {
        "executor": "kubernetes",
        "container_image": "nvcr.io/nvidia/nemo:26.04",
        "workdir_pvc": "work",
        "mounts": ["data:/data"],
        "shared_memory": "64Gi",
        "queue": "team",
        "env_vars": {"HF_TOKEN": "${oc.env:HF_TOKEN}"},
        "secret_vars": {"NGC_API_KEY": "ngc/key"},
    }
    return Environment(None, tables)


def spec_of(step: str, profile: str, *overrides: str, config: str | None = None, **settings: Any) -> JobSpec:
    project = Project(None, Path("/nonexistent"))
    environment = profiles()
    tables = dict(environment.tables)
    tables["p"] = {"extends": profile, **settings}
    return compile_on(
        project,
        load_catalog(project).steps[step],
        config or CONFIG.get(step),
        [*GIVEN.get(step, []), *overrides],
        profile="p",
        mode="run",
        environment=Environment(None, tables),
        submitting=False,
    )


def shown(spec: JobSpec) -> dict[str, Any]:
    return preview(Project(None, Path("/nonexistent")), spec)


@pytest.mark.parametrize("executor", ["local", "slurm", "lepton", "dgxcloud", "kubernetes"])
def test_every_step_has_a_preview_without_a_secret(executor: str, tmp_path: Path) -> None:
    steps = load_catalog(Project(None, tmp_path)).steps
    assert len(steps) >= 24
    for step in steps:
        data = shown(spec_of(step, f"{executor}_base"))
        text = json.dumps(data, default=str)
        assert PLANTED not in text, f"{step} on {executor}"
        submitted = data["submission"]
        assert submitted["command"]
        if executor != "local":
            assert executor == "slurm" or submitted["refused"]
            assert submitted["image"] and submitted["job_script"]
            for text in (submitted["job_script"], json.dumps(data["config"], default=str)):
                assert str(REPO) not in text, f"{step} on {executor} names a path of this machine"
            assert data["output"]["directory"].startswith("/nemo_run/") or not data["output"]["managed"]
        if executor == "slurm":
            for script in (submitted["script"], submitted["job_script"]):
                subprocess.run(["bash", "-n"], input=script, text=True, check=True, capture_output=True)


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_slurm_directives_are_the_profiles() -> None:
    spec = spec_of(
        "sft/automodel",
        "slurm_sft_automodel",
        account="acct_team",
        qos="high",
        gres="gpu:h100:8",
        constraint="a&b",
        exclude="n[1-3]",
        signal="B:USR1@300",
        reservation="r1",
        dependency="afterok:7",
        mail_user="a@b.c",
        mail_type="END",
        comment="it's here",
        exclusive=True,
        mem="0",
        cpus_per_task=12,
        time="1-00:00:00",
        additional_parameters={"wckey": "w k", "overcommit": True, "spread_job": False},
        srun_args=["--label", "a b"],
        requeue=False,
        retries=2,
    )
    data = shown(spec)["submission"]
    script = data["script"]
    found = directives(script)
    assert found | {"output": ""} == {
        "account": "acct_team",
        "comment": """'it'"'"'s here'""",
        "constraint": "'a&b'",
        "cpus-per-task": "12",
        "dependency": "afterok:7",
        "exclude": "'n[1-3]'",
        "exclusive": "",
        "gpus-per-node": "8",
        "gres": "gpu:h100:8",
        "job-name": "acct_team-team.sft-automodel.{key}",
        "mail-type": "END",
        "mail-user": "a@b.c",
        "mem": "0",
        "nodes": "2",
        "ntasks-per-node": "1",
        "open-mode": "append",
        "output": "",
        "overcommit": "",
        "partition": "batch",
        "qos": "high",
        "reservation": "r1",
        "signal": "B:USR1@300",
        "time": "1-00:00:00",
        "wckey": "'w k'",
    }
    assert "export TORCHX_MAX_RETRIES=2" in script
    assert "--label 'a b' bash /nemo_run/scripts/job.sh" in script
    assert data["command"][:3] == ["sbatch", "--no-requeue", "--parsable"]
    assert "--nproc_per_node=8" in data["job_script"] and "--nnodes=2" in data["job_script"]


def test_slurm_mounts_image_and_allocation_that_imports_it() -> None:
    mount = "${auto_mount:git+https://example.com/a/Megatron-LM.git@0123456789abcdef,/opt/megatron}"
    spec = spec_of(
        "sft/automodel",
        "slurm_base",
        container_image="nvcr.io/nvidia/nemo:26.04",
        mounts=["/data:/data:ro", "/a $(b):/c d"],
        lustre_mount="/lustre:/lustre",
        build_partition="cpu",
        build_time="00:30:00",
        remote_job_dir="/lustre/jobs",
    )
    settings = {**spec.environment, "mounts": [*spec.environment["mounts"], mount], "container_image": "a/b:1.0"}
    target = make_target(Project(None, Path("/x")), "p", settings)
    job = Submission("k", "sft/automodel", ("python", "s.py"), image="a/b:1.0", mounts=tuple(settings["mounts"]))
    seen = target.preview(job)
    assert seen.image == "/lustre/jobs/a_b_1_0.sqsh"
    assert seen.mounts == (
        "/data:/data:ro",
        "/a $(b):/c d",
        "/lustre/jobs/git-cache/Megatron-LM-0123456789ab:/opt/megatron",
        "/lustre:/lustre",
        "/lustre/jobs/inputs:/lustre/jobs/inputs",
        "/lustre/jobs/ray_temp:/ray-cluster",
        "/lustre/jobs/nemotron/nemotron_k/job:/nemo_run",
    )
    srun = shlex.split(next(line for line in (seen.script or "").splitlines() if line.startswith("srun")))
    assert srun[srun.index("--container-mounts") + 1] == ",".join(seen.mounts)
    assert "'/a $(b):/c d'" in (seen.script or "")
    words = shlex.split(seen.before[0])
    assert words[:6] == [
        "salloc", "--account=nemotron", "--partition=cpu", "--nodes=1", "--ntasks-per-node=1", "--time=00:30:00",
    ]  # fmt: skip
    file = "/lustre/jobs/a_b_1_0.sqsh"
    assert words[-1].endswith(f"enroot import --output {file}.part docker://a/b:1.0 && mv -f {file}.part {file}")
    assert "fetch -q --depth 1 https://example.com/a/Megatron-LM.git 0123456789abcdef" in seen.before[1]


@pytest.mark.parametrize(("mode", "queue"), [("run", "interactive"), ("batch", "night")])
def test_slurm_partition_follows_the_mode(mode: str, queue: str) -> None:
    settings = {
        "executor": "slurm",
        "account": "a",
        "partition": "shared",
        "run_partition": "interactive",
        "batch_partition": "night",
        "remote_job_dir": "/jobs",
        "container_image": "i.sqsh",
    }
    project = Project(None, Path("/x"))
    job = Submission("k", "a/b", ("python", "s.py"), image="i.sqsh", mode=mode)
    assert directives(make_target(project, "p", settings).preview(job).script or "")["partition"] == queue
    settings.pop(f"{mode}_partition")
    assert directives(make_target(project, "p", settings).preview(job).script or "")["partition"] == "shared"


DUMP = '''\
# /// script
# [tool.runspec]
# name = "steps/demo/dump"
# [tool.runspec.env]
# FROM_RUNSPEC = "yes"
# [tool.runspec.run]
# launch = "python"
# [tool.runspec.resources]
# gpus_per_node = 0
# ///
"""Writes down what it was started with."""
import json, os, sys
from pathlib import Path

Path(os.environ["DUMP"]).write_text(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}))
'''
DUMP_TOML = '[step]\nid = "demo/dump"\nname = "Dump"\ncategory = "demo"\ndescription = "Dumps."\n'
DUMP_TOML += '[[produces]]\ntype = "raw_jsonl"\nbind = "output_dir"\n'

#: srun as a batch script uses it: drops its options and runs the command here.
SRUN = """\
#!/usr/bin/env bash
while [ $# -gt 0 ]; do
  case "$1" in
    hostname) echo "127.0.0.1 10.0.0.1"; exit 0 ;;
    --output|--chdir|--container-image|--container-mounts|--container-workdir|-w) shift 2 ;;
    -*) shift ;;
    *) exec "$@" ;;
  esac
done
"""


def test_a_batch_script_hands_everything_on_exactly(project: Path, tmp_path: Path) -> None:
    """Runs the script that NeMo-Run rendered, in a directory whose name it would mangle."""
    add_step(project, "demo/dump", DUMP_TOML, DUMP, default="output_dir: ./out\n")
    own = Project(project, project / ".nemotron")
    base = tmp_path / "nemo_run_home" / "nemo_run"
    dump = tmp_path / "dump.json"
    settings = {
        "executor": "slurm",
        "remote_job_dir": str(base),
        "python": sys.executable,
        "env_vars": {**NASTY, "DUMP": str(dump), "API_TOKEN": "${oc.env:HF_TOKEN}"},
        "startup_commands": ["export STARTED='in order'", "false || true", "echo a # comment"],
        "setup_lines": "export FROM_SETUP=1",
    }
    words = ["--flag", "a b", "$HOME", "it's", '"', "x\ny", "*"]
    spec = compile_on(
        own,
        load_catalog(own).steps["demo/dump"],
        None,
        [],
        profile="p",
        mode="run",
        environment=Environment(None, {"p": settings}),
        submitting=False,
        passthrough=words,
    )
    relocation = relocation_of(own, "p", spec.environment, None)
    assert relocation is not None and relocation.run == f"{base}/nemotron/nemotron_{{key}}/job"
    layout = moved(spec, relocation, "k1")
    job = submission(spec, "k1", sys.executable, layout, dict(spec.train))
    seen = make_target(own, "p", spec.environment).preview(job)
    directory = base / "nemotron" / "nemotron_k1" / "job"
    assert seen.directory == str(directory)
    for name, text in seen.files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    (directory / "code").mkdir()
    (directory / "code" / "steps").symlink_to(project / "steps")
    secrets = base / ".nemotron-secrets" / "k1.env"
    secrets.parent.mkdir()
    secrets.write_text("".join(f"export {k}={shlex.quote(v)}\n" for k, v in job.secrets.items()))
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/sh\necho node1\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    assert seen.script is not None
    done = subprocess.run(
        ["bash", "-s"],
        input=seen.script,
        env={"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(dump.read_text())
    assert found["argv"] == ["--config", f"{directory}/configs/config.yaml", *words]
    expected = {**NASTY, "IN_JOB": f"{directory}/code/src:/data/nemo_run_x"}
    assert {k: found["env"].get(k) for k in NASTY} == expected
    assert found["env"]["STARTED"] == "in order"
    assert found["env"]["FROM_RUNSPEC"] == "yes"
    assert found["env"]["FROM_SETUP"] == "1"
    assert found["env"]["MASTER_ADDR"] == "127.0.0.1"
    assert found["env"]["API_TOKEN"] == PLANTED
    assert found["cwd"] == str(directory / "code")
    assert PLANTED not in seen.script + "".join(seen.files.values()) + done.stdout + done.stderr
    assert not secrets.exists(), "a job that succeeded removes its secrets"


def test_local_preview_is_what_a_job_is_started_with(project: Path) -> None:
    own = Project(project, project / ".nemotron")
    step = load_catalog(own).steps["demo/rows"]
    spec = compile_job(step, None, ["run.env.startup_commands=[echo a]"], passthrough=["a b"])
    seen = preview(own, spec)["submission"]
    directory = f"{project}/.nemotron/jobs/{{key}}"
    payload = shlex.join([sys.executable, f"{step.directory}/step.py", "--config", f"{directory}/config.yaml", "a b"])
    assert seen["command"] == ["bash", "-c", "{ echo a; } && exec " + payload]
    assert seen["workdir"] == directory
    assert seen["refused"] is None


def test_several_processes_here_run_under_torchrun(tmp_path: Path) -> None:
    target = make_target(Project(None, tmp_path), None, {})
    job = Submission("k", "a/b", ("py", "s.py", "--x"), python="py", launch="torchrun", processes_per_node=2)
    torchrun = ("py", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    assert target.preview(job).command == (*torchrun, "s.py", "--x")
    job = dataclasses.replace(job, argv=("bash", "-c", "run"))
    assert target.preview(job).command == (*torchrun, "--no-python", "bash", "-c", "run")
    assert target.preview(dataclasses.replace(job, processes_per_node=1)).command == ("bash", "-c", "run")


def test_a_command_template_quotes_what_it_is_given(project: Path) -> None:
    text = DUMP.replace('launch = "python"', 'launch = "python"\n# cmd = "uv run {script} --config {config} --n ${N}"')
    add_step(project, "demo/cmd", DUMP_TOML.replace("demo/dump", "demo/cmd"), text, default="output_dir: ./out\n")
    own = Project(project, project / ".nemotron")
    spec = compile_job(load_catalog(own).steps["demo/cmd"], passthrough=["a b", "$x"])
    job = submission(spec, "k", "py", here(own, spec, Path("/a b"), Path("/o"), Path("/m")), {})
    script = spec.step.directory / "step.py"
    assert job.argv == ("bash", "-c", f"uv run {script} --config '/a b/config.yaml' --n ${{N}} 'a b' '$x'")


@pytest.mark.parametrize(
    ("executor", "drop", "message"),
    [
        ("slurm", "remote_job_dir", "remote_job_dir required for the slurm executor"),
        ("lepton", "nemo_run_dir", "nemo_run_dir required for the lepton executor"),
        ("dgxcloud", "base_url", "base_url required for the dgxcloud executor"),
        ("dgxcloud", "kube_apiserver_url", "kube_apiserver_url required"),
        ("dgxcloud", "client_id", "client_id .or app_id. required"),
        ("dgxcloud", "client_secret", "client_secret .or app_secret. required"),
        ("dgxcloud", "project_name", "project_name required"),
        ("dgxcloud", "pvc_nemo_run_dir", "pvc_nemo_run_dir required"),
        ("kubernetes", "workdir_pvc", "workdir_pvc required for the kubernetes executor"),
    ],
)
def test_a_target_names_the_key_that_it_cannot_do_without(executor: str, drop: str, message: str) -> None:
    spec = spec_of("sft/automodel", f"{executor}_base", **{drop: ""})
    with pytest.raises(ProfileError, match=message):
        shown(spec)


def test_requests_have_the_fields_of_nemo_runs_executors() -> None:
    from nemo_run.core.execution.dgxcloud import DGXCloudExecutor
    from nemo_run.core.execution.kubeflow import KubeflowExecutor
    from nemo_run.core.execution.kuberay import KubeRayExecutor, KubeRayWorkerGroup
    from nemo_run.core.execution.lepton import LeptonExecutor

    for executor, classes in {
        "lepton": [LeptonExecutor],
        "dgxcloud": [DGXCloudExecutor],
        "kubernetes": [KubeflowExecutor, KubeRayExecutor],
    }.items():
        seen = set()
        for step in ("sft/automodel", "rl/nemo_rl/dpo"):
            request = shown(spec_of(step, f"{executor}_base"))["submission"]["request"]
            for cls in classes:
                fields = {f.name for f in dataclasses.fields(cls)}
                given = request.get(cls.__name__, {})
                assert set(given) <= fields, f"{cls.__name__} has no {set(given) - fields}"
                seen |= {cls.__name__} if given else set()
                for group in given.get("worker_groups", []):
                    assert set(group) <= {f.name for f in dataclasses.fields(KubeRayWorkerGroup)}
        assert seen == {cls.__name__ for cls in classes}


def test_kubernetes_request() -> None:
    request = shown(spec_of("sft/automodel", "kubernetes_base"))["submission"]["request"]
    job = request["KubeflowExecutor"]
    assert request["secret_object"] == {"name": "sft-automodel-{key}", "namespace": "default", "keys": ["HF_TOKEN"]}
    assert job["env_list"] == [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "sft-automodel-{key}", "key": "HF_TOKEN"}}},
        {"name": "NGC_API_KEY", "valueFrom": {"secretKeyRef": {"name": "ngc", "key": "key"}}},
    ]
    assert job["volume_mounts"] == [{"name": "data", "mountPath": "/data"}, {"name": "shm", "mountPath": "/dev/shm"}]
    assert job["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert job["gpus_per_node"] == 4 and job["num_nodes"] == 1


@pytest.mark.parametrize("executor", ["lepton", "dgxcloud", "kubernetes"])
def test_submitting_where_it_is_not_built_is_refused_at_once(executor: str) -> None:
    spec = spec_of("sft/automodel", f"{executor}_base")
    target = make_target(Project(None, Path("/nonexistent")), "p", spec.environment)
    for refused in (target.check, lambda: target.submit(Submission("k", "a/b", ("x",)))):
        with pytest.raises(TargetError, match=f"submitting to {executor} is not built yet"):
            refused()


def test_preview_says_where_inputs_and_output_are(project: Path) -> None:
    own = Project(project, project / ".nemotron")
    step = load_catalog(own).steps["demo/count"]
    bound = compile_job(step, inputs={"training_jsonl": "/up/stream"})
    data = preview(own, bound)
    assert list(data) == [
        "step", "config_name", "profile", "mode", "run", "config", "compiled", "inputs", "output", "memory",
        "submission",
    ]  # fmt: skip
    row = {"port": "training_jsonl", "type": "training_jsonl", "key": "data"}
    assert data["inputs"] == [{**row, "path": "/up/stream", "source": "bound"}]
    assert data["output"]["managed"] and data["output"]["directory"] == data["config"]["output_dir"]
    given = compile_job(step, overrides=["data=/my/rows.jsonl", "output_dir=/my/out"])
    data = preview(own, given)
    assert data["inputs"] == [{**row, "path": "/my/rows.jsonl", "source": "external"}]
    assert data["output"] == {
        "type": "training_jsonl", "key": "output_dir", "directory": "/my/out", "managed": False,
    }  # fmt: skip
    json.dumps(data)
