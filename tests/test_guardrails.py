"""Guardrails: what cannot work is an error, what is doubtful a warning, what hangs on an unset variable neither."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import REPO

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.config.guardrail_facts import image_family, memory_gb, minutes, quantity, shape_gpus
from nemotron_dagster.config.guardrails import Finding, check_profile
from nemotron_dagster.config.profiles import Environment, read_environment
from nemotron_dagster.errors import ConfigError
from nemotron_dagster.project import Project

BUNDLED = Project(None, REPO / ".nemotron")
CATALOG = load_catalog(BUNDLED)

SLURM: dict[str, Any] = {
    "executor": "slurm", "remote_job_dir": "/l/jobs", "account": "a", "partition": "p", "nodes": 2,
    "gpus_per_node": 8, "ntasks_per_node": 8, "cpus_per_task": 8, "time": "04:00:00",
    "container_image": "nvcr.io/nvidia/nemo-automodel:26.04",
}  # fmt: skip
LEPTON: dict[str, Any] = {
    "executor": "lepton", "nemo_run_dir": "/m/jobs", "resource_shape": "gpu.8xh100-80gb", "node_group": "g",
    "nodes": 1, "gpus_per_node": 8, "container_image": "nvcr.io/nvidia/nemo:26.04",
    "mounts": [{"path": "/x", "mount_path": "/m", "from": "node-nfs:x"}],
}  # fmt: skip
CLOUD: dict[str, Any] = {
    "executor": "dgxcloud", "base_url": "https://h/api/v1", "kube_apiserver_url": "https://h/k8s", "app_id": "i",
    "app_secret": "${oc.env:RUNAI_SECRET,''}", "project_name": "p", "pvc_nemo_run_dir": "/w/jobs", "gpus_per_node": 8,
    "nodes": 1, "pvcs": [{"name": "v", "path": "/w"}], "container_image": "nvcr.io/nvidia/nemo:26.04",
}  # fmt: skip


def found(profile: dict[str, Any], step: str | None = None, config: str | None = None) -> list[Finding]:
    return check_profile(BUNDLED, Environment(None, {"p": profile}), "p", CATALOG.find(step) if step else None, config)


def told(profile: dict[str, Any], step: str | None = None, config: str | None = None) -> list[str]:
    return [f"{f.level}: {f.message}" for f in found(profile, step, config)]


# ---- the profiles that env/env_toml writes ----


@pytest.mark.parametrize("cloud", ["slurm", "lepton", "dgxcloud"])
def test_the_generated_profiles_have_no_error_alone_nor_with_the_step_they_are_for(
    cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "me")
    document = yaml.safe_load((REPO / f"steps/env/env_toml/config/{cloud}.yaml").read_text(encoding="utf-8"))
    environment = Environment(None, document["sections"])
    uses = re.findall(r"steps run (\S+) -c (\S+)\s+-b (\S+)", document["preamble"])
    assert len(uses) == 23
    findings = [f for name in environment.profiles for f in check_profile(BUNDLED, environment, name)]
    for step, config, name in uses:
        findings += check_profile(BUNDLED, environment, name, CATALOG.find(step), config)
    assert [f for f in findings if f.level == "error"] == []
    assert any("looks like a template's" in f.message for f in findings)


@pytest.mark.parametrize("cloud", ["slurm", "lepton", "dgxcloud"])
def test_the_generated_profiles_are_judged_without_any_variable_set(
    cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("USER", raising=False)
    sections = yaml.safe_load((REPO / f"steps/env/env_toml/config/{cloud}.yaml").read_text())["sections"]
    environment = Environment(None, sections)
    findings = [f for name in environment.profiles for f in check_profile(BUNDLED, environment, name)]
    assert [f for f in findings if f.level == "error"] == []


def test_the_built_in_profile_suits_every_ready_step_on_a_laptop() -> None:
    for step in CATALOG.steps.values():
        if step.ready:
            assert [f for f in found({"executor": "local"}, step.id, "tiny") if f.level == "error"] == []


# ---- profiles that are right ----


@pytest.mark.parametrize(
    ("profile", "step"),
    [(SLURM, "sft/automodel"), (LEPTON, "convert/hf_to_megatron"), (CLOUD, "convert/hf_to_megatron")],
)
def test_a_good_profile_has_no_finding(profile: dict[str, Any], step: str) -> None:
    assert told(profile, step, "default") == []


# ---- a step's needs: one change to a good profile, one finding ----


@pytest.mark.parametrize(
    ("base", "change", "step", "config", "finding"),
    [
        (SLURM, {"gpus_per_node": 0}, "sft/automodel", "default", "error: sft/automodel needs GPUs"),
        (SLURM, {"nodes": 1, "gpus_per_node": 6, "ntasks_per_node": 6}, "sft/automodel", "default", "error: ep_size 8"),
        (SLURM, {"ntasks_per_node": 16}, "sft/automodel", "default", "error: ntasks_per_node = 16 processes share 8"),
        (SLURM, {"ntasks_per_node": 4}, "sft/automodel", "default", "warning: ntasks_per_node = 4 leaves 4 of 8"),
        (SLURM, {"mem": "16G"}, "sft/automodel", "default", "warning: 16 GiB per node is little"),
        (SLURM, {"mem": "64"}, "sft/automodel", "default", "warning: mem = 64 is 64 MiB"),
        (SLURM, {"time": "04:00"}, "sft/automodel", "default", "warning: time = 04:00 is 4 minutes"),
        (
            {k: v for k, v in SLURM.items() if k != "container_image"},
            {"container_image": "nvcr.io/nvidia/nemo-rl:v0.6.0"},
            "data_prep/sft_packing",
            "default",
            "error: nvcr.io/nvidia/nemo-rl:v0.6.0 lacks the libraries of data_prep/sft_packing",
        ),
        (
            SLURM,
            {"container_image": "reg.corp/mirror/nvidia/nemo:1", "startup_commands": ["pip install x"]},
            "curate/nemo_curator",
            "default",
            "warning: reg.corp/mirror/nvidia/nemo:1 lacks the libraries of curate/nemo_curator",
        ),
        (SLURM, {}, "data_prep/sft_packing", "default", "warning: data_prep/sft_packing uses no GPU; 8 per node"),
        (SLURM, {"cpus_per_task": 1, "ntasks_per_node": 1}, "data_prep/rl_prep", "default", "error: .* needs 2 CPUs"),
        (SLURM, {"cpus_per_task": 3, "ntasks_per_node": 1}, "data_prep/rl_prep", "default", "warning: .* below 4 CPUs"),
        (
            {k: v for k, v in SLURM.items() if k != "cpus_per_task"},
            {},
            "curate/nemo_curator",
            "default",
            "warning: no cpus_per_task: Slurm gives one CPU, curate/nemo_curator wants 4",
        ),
        (SLURM, {"nodes": 5}, "curate/nemo_curator", "default", "warning: .* uses 1 node; the other 4 would stay idle"),
        (SLURM, {"nodes": 1}, "rl/nemo_rl/rlhf", "default", "error: .* needs 2 nodes .cluster.num_nodes"),
        (SLURM, {"nodes": 3}, "rl/nemo_rl/rlhf", "default", "warning: .* with 3 nodes is short; 4 are recommended"),
        (SLURM, {"gpus_per_node": 4}, "rl/nemo_rl/rlvr", "nemo_gym", "error: the config's cluster.gpus_per_node = 8"),
        (SLURM, {}, "sdg/data_designer", "default", "warning: sdg/data_designer wants NVIDIA_API_KEY"),
        (LEPTON, {"gpus_per_node": 8, "resource_shape": "gpu.4xh100-80gb"}, "convert/hf_to_megatron", "default",
         "error: gpus_per_node = 8, but a gpu.4xh100-80gb has 4"),
        (LEPTON, {"resource_shape": "cpu.small", "gpus_per_node": 0}, "data_prep/rl_prep", "default",
         "error: data_prep/rl_prep needs 2 CPUs per node, this profile gives 1. Raise resource_shape"),
        (LEPTON, {"shared_memory_size": 1024}, "sft/megatron_bridge", "default", "warning: shared_memory_size = 1024"),
        (LEPTON, {"container_image": ""}, "sdg/data_designer", "default", "error: lepton runs containers; neither"),
        ({**LEPTON, "ray_version": "2.48.0"}, {"ray_version": ""}, "rl/nemo_rl/dpo", "default",
         "warning: lepton usually needs ray_version or existing_ray_cluster"),
        ({"executor": "local"}, {}, "rl/nemo_rl/dpo", "default", "warning: local runs a Ray step as one process group"),
        ({"executor": "local"}, {"nodes": 2, "gpus_per_node": 8}, "sft/automodel", "default", "error: local has one"),
    ],
)  # fmt: skip
def test_a_profile_that_does_not_suit_the_step_is_told(
    base: dict[str, Any], change: dict[str, Any], step: str, config: str, finding: str
) -> None:
    good, bad = told(base, step, config), told({**base, **change}, step, config)
    assert any(re.match(finding, text) for text in bad), bad
    assert not change or not any(re.match(finding, text) for text in good), "the base profile has it already"
    assert all(text.endswith(".") for text in bad)


def test_the_config_wins_over_the_profile_as_when_the_job_runs() -> None:
    assert told({**SLURM, "gpus_per_node": 0}, "convert/hf_to_megatron", "tiny") == told(
        SLURM, "convert/hf_to_megatron", "tiny"
    )


def test_the_models_own_need_is_told(tmp_path: Path) -> None:
    big = "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16"
    config = tmp_path / "big.yaml"
    config.write_text(f"hf_model_path: {big}\n")
    texts = told(SLURM, "sft/megatron_bridge", str(config))
    assert any(text.startswith(f"warning: {big} needs 32 GPUs, this profile has 16") for text in texts)


# ---- a profile on its own ----


@pytest.mark.parametrize(
    ("profile", "finding"),
    [
        ({"nodes": 1}, "error: names no executor"),
        ({"executor": "slrum"}, "error: executor: no target named 'slrum'.*Did you mean slurm"),
        ({"executor": "slurm", "partition": "p", "account": "a"}, "error: slurm needs remote_job_dir"),
        ({"executor": "slurm", "remote_job_dir": "/x", "account": "a"}, "warning: slurm usually needs partition or"),
        ({k: v for k, v in CLOUD.items() if k != "app_id"}, "error: dgxcloud needs client_id or app_id"),
        ({**LEPTON, "nemo_run_dir": "/elsewhere"}, "error: nemo_run_dir = /elsewhere lies on no volume of mounts"),
        ({**CLOUD, "pvc_nemo_run_dir": "/workspace2"}, "error: pvc_nemo_run_dir = /workspace2 lies on no volume"),
        ({**LEPTON, "node_group": "lepton-node-group"}, "warning: node_group = lepton-node-group looks like a templ"),
        ({**SLURM, "x": "${nope}"}, "error: x: the profile has no key 'nope'"),
        ({**SLURM, "env_vars": {"HF_TOKEN": "hf_" + "a1" * 12}}, "warning: env_vars.HF_TOKEN holds a secret in clear"),
        ({**SLURM, "extends": "nowhere"}, "error: unknown profile 'nowhere'"),
    ],
)
def test_a_wrong_profile_is_told(profile: dict[str, Any], finding: str) -> None:
    assert any(re.match(finding, text) for text in told(profile)), told(profile)


def test_every_wrong_key_is_told_not_only_the_first() -> None:
    texts = told({**SLURM, "partitoin": "q", "nodes": "many", "time": 5})
    assert any("no key 'partitoin'. Did you mean" in t and "partition" in t for t in texts)
    assert any(t.startswith("error: nodes = 'many'") for t in texts)
    assert any(t.startswith("error: time = 5") for t in texts)


def test_a_secret_is_in_no_finding() -> None:
    token, password = "hf_" + "a1" * 12, "pass<word-planted"
    assert not any(token in text for text in told({**SLURM, "env_vars": {"HF_TOKEN": token}, "qos": [token]}))
    assert not any(token in text for text in told({**LEPTON, "nemo_run_dir": token, "executor": token}))
    texts = told({**CLOUD, "app_secret": password})
    assert any("app_secret holds a secret" in text for text in texts)
    assert not any(password in text for text in texts)


def test_a_base_that_others_extend_need_not_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"base": {"account": "a"}, "child": {**SLURM, "extends": "base"}}
    assert check_profile(BUNDLED, Environment(None, tables), "base") == []
    assert [f.level for f in check_profile(BUNDLED, Environment(None, {"base": {"account": "a"}}), "base")] == ["error"]


# ---- unknown is never wrong ----


@pytest.mark.parametrize(
    "key", ["nodes", "gpus_per_node", "cpus_per_task", "remote_job_dir", "container_image", "time", "mem", "account"]
)
@pytest.mark.parametrize("step", ["sft/automodel", "data_prep/sft_packing"])
def test_a_value_that_hangs_on_an_unset_variable_is_no_error(
    key: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SURELY_UNSET", raising=False)
    before = {t for t in told(SLURM, step, "default") if t.startswith("error")}
    findings = found({**SLURM, key: "${oc.env:SURELY_UNSET}"}, step, "default")
    assert {f"error: {f.message}" for f in findings if f.level == "error"} <= before
    assert any(f.message.startswith(f"SURELY_UNSET is not set here; {key} refer") for f in findings)


def test_one_unset_variable_is_one_warning_with_all_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SURELY_UNSET", raising=False)
    reference = "${oc.env:SURELY_UNSET}/x"
    profile = {**SLURM, "remote_job_dir": reference, "env_vars": {"A": reference, "B": reference}}
    texts = [t for t in told(profile) if "SURELY_UNSET" in t]
    assert len(texts) == 1 and "remote_job_dir, env_vars.A, env_vars.B" in texts[0]


def test_a_finding_says_where_the_value_stands_in_the_chain(tmp_path: Path) -> None:
    (tmp_path / "env.toml").write_text('[base]\nexecutor = "slurm"\npartitoin = "p"\n\n[a]\nextends = "base"\n')
    findings = check_profile(BUNDLED, read_environment(tmp_path / "env.toml"), "a")
    assert any(f.where == f"{tmp_path}/env.toml:3:1" and f.key == "partitoin" for f in findings)


# ---- a project's own rules ----


def own_rules(tmp_path: Path, text: str) -> Project:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "guardrails.toml").write_text(text)
    return Project(tmp_path, tmp_path / "state")


def test_a_projects_own_rules_add_to_ours_and_override_them(tmp_path: Path) -> None:
    text = '[rule.big]\nsteps = ["sft/*"]\nnodes = 4\n[rule.data-prep]\ngpus = "any"\n'
    text += '[executor.slurm]\nrequired = ["qos"]\n'
    project = own_rules(tmp_path, text)
    environment = Environment(None, {"p": SLURM})
    sft = check_profile(project, environment, "p", CATALOG.find("sft/automodel"), "default")
    assert {f.message.partition(",")[0] for f in sft if f.level == "error"} == {
        "sft/automodel needs 4 nodes",
        "slurm needs qos. Set qos in this profile or its parent.",
    }
    prep = check_profile(project, environment, "p", CATALOG.find("data_prep/rl_prep"), "default")
    assert not any("uses no GPU" in f.message for f in prep)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rules.x]\n", r"unknown \[rules\]\. Did you mean rule"),
        ("[rule.x]\nnodez = 1\n", r"\[rule\.x\]: unknown key 'nodez'\. Did you mean"),
        ('[rule.x]\nnodes = "4"\n', r"\[rule\.x\]: nodes = '4' is no int or float"),
        ('[rule.x]\ngpus = "some"\n', r"gpus = 'some'\. Write one of required, none, any"),
    ],
)
def test_a_malformed_rule_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_profile(own_rules(tmp_path, text), Environment(None, {"p": SLURM}), "p")


def test_every_step_of_the_catalog_has_a_rule() -> None:
    from nemotron_dagster.config.guardrail_rules import load_rules

    rules = load_rules(BUNDLED)
    assert [s for s in CATALOG.steps if not rules.of_step(s).get("gpus")] == []


# ---- units ----


@pytest.mark.parametrize(
    ("text", "unit", "gigabytes"),
    [("64G", "m", 64), ("65536", "m", 64), ("500MB", "m", 0.488), ("1T", "m", 1024), ("64Gi", "", 64),
     ("64G", "", 59.6), ("68719476736", "", 64), ("lots", "m", None)],
)  # fmt: skip
def test_memory_is_read_as_its_executor_means_it(text: str, unit: str, gigabytes: float | None) -> None:
    got = memory_gb(text, unit)
    assert got is None if gigabytes is None else got == pytest.approx(gigabytes, rel=0.01)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("30", 30),
        ("04:00", 4),
        ("04:00:00", 240),
        ("1-12", 2160),
        ("1-00:30:00", 1470),
        ("UNLIMITED", None),
        ("x", None),
    ],
)
def test_slurm_times_are_minutes(text: str, wanted: float | None) -> None:
    assert minutes(text) == wanted


@pytest.mark.parametrize(
    ("shape", "gpus"),
    [("gpu.8xh100-80gb", 8), ("gpu.a100-80gb", 1), ("cpu.large", 0), ("gpu.2xa100-80gb", 2), ("ours", None)],
)
def test_lepton_shapes_tell_their_gpus(shape: str, gpus: int | None) -> None:
    assert shape_gpus(shape) == gpus


def test_cpus_may_be_kubernetes_millicores() -> None:
    assert (quantity("500m"), quantity(4), quantity("many")) == (0.5, 4, None)


@pytest.mark.parametrize(
    ("image", "family"),
    [
        ("nvcr.io/nvidia/nemo:26.04", "nemo"),
        ("nvcr.io/nvidia/nemo-automodel:26.04", "nemo-automodel"),
        ("docker://nvcr.io#nvidia/nemo", None),
        ("reg.corp:5000/mirror/nvidia/nemo-rl@sha256:0", "nemo-rl"),
        ("anyscale/ray:2.49.2-py312", "ray"),
        ("ours/nemo-automodel:1", None),
        ("/lustre/images/x.sqsh", None),
    ],
)
def test_images_are_told_by_their_repository(image: str, family: str | None) -> None:
    from nemotron_dagster.config.guardrail_rules import load_rules

    assert image_family(image, load_rules(BUNDLED).table("images")) == family


# ---- on a run ----


@pytest.fixture
def guarded(project: Path) -> Path:
    (project / "env").mkdir()
    (project / "env" / "guardrails.toml").write_text('[rule.rows]\nsteps = ["demo/rows"]\ngpus = "none"\nnodes = 3\n')
    return project


def test_a_run_on_a_profile_that_cannot_work_is_refused_with_every_error_and_leaves_nothing(
    guarded: Path, nemotron: Callable
) -> None:
    (guarded / "env.toml").write_text('[p]\nexecutor = "local"\nnodes = 2\n')
    for how in ("-r", "-b"):
        done = nemotron("steps", "run", "demo/rows", how, "p", cwd=guarded)
        assert done.returncode == 4 and done.stdout == "", done.stderr
        assert "env.toml:3:1: profile 'p': demo/rows needs 3 nodes, this profile has 2" in done.stderr, done.stderr
        assert "env.toml:3:1: profile 'p': local has one node, this asks for 2" in done.stderr
    assert not (guarded / ".nemotron").exists()
    shown = nemotron("steps", "run", "demo/rows", "-r", "p", "-d", cwd=guarded)
    assert shown.returncode == 0 and "# submission" in shown.stdout
    assert "Warning: " in shown.stderr and "this asks for 2" in shown.stderr and "would be refused" in shown.stderr


def test_an_override_mends_what_the_guardrails_refuse_and_a_warning_is_told_once(
    guarded: Path, nemotron: Callable
) -> None:
    (guarded / "env.toml").write_text('[p]\nexecutor = "local"\nnodes = 2\ngpus_per_node = 1\n')
    done = nemotron("steps", "run", "demo/rows", "-r", "p", "run.env.nodes=3", "n=2", "-d", cwd=guarded)
    assert done.stderr.count("uses no GPU; 1 per node would stay idle") == 1 and "needs 3" not in done.stderr
    plain = nemotron("steps", "run", "demo/rows", "-d", cwd=guarded)
    assert plain.stderr == "", "a run without a profile has nothing to check"
