"""A resource per profile: what it shows, what it never shows, whom a run obeys; pools."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_shared.serdes import serialize_value
from submissions import YARD, records, yard

from nemotron_dagster.dagster.definitions import build_definitions
from nemotron_dagster.dagster.profile_resources import ProfileResource
from nemotron_dagster.project import Project

Run = Callable[..., subprocess.CompletedProcess[str]]

PLANTED = "planted-5ecret-value"
TOKEN = "hf_" + "a1B2" * 8
ENV = f"""
[base]
executor = "slurm"
account = "acme"
partition = "batch"
host = "login.example"
user = "${{oc.env:PLANTED_USER}}"
workspace = "https://me:{PLANTED}@store.example/x"
startup_commands = ["export OTHER={PLANTED}"]
api_key = "{PLANTED}"
[base.env_vars]
HF_TOKEN = "{TOKEN}"
OTHER = "{PLANTED}"

[a-b]
extends = "base"
nodes = 2
mounts = ["/data:/data"]

["a.b"]
extends = "a-b"

[orphan]
extends = "nobody"

[odd]
executor = "mainframe"

[lap]
executor = "local"
"""


@pytest.fixture
def resources(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ProfileResource]:
    (project / "env.toml").write_text(ENV)
    monkeypatch.chdir(project)
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    monkeypatch.setenv("PLANTED_USER", PLANTED)
    found = build_definitions(Project(project, project / ".nemotron")).resources or {}
    return {k: v for k, v in found.items() if isinstance(v, ProfileResource)}


def shown(resource: ProfileResource) -> dict[str, object]:
    return {n: getattr(resource, n) for n in type(resource).model_fields}


def test_every_profile_is_a_resource_with_its_settings_and_a_broken_one_with_its_error(
    resources: dict[str, ProfileResource],
) -> None:
    assert set(resources) == {f"profile_{n}" for n in ("base", "a_b", "a_b_2", "orphan", "odd", "lap", "local")}
    found = shown(resources["profile_a_b"])
    assert (found["profile"], found["executor"], found["nodes"]) == ("a-b", "slurm", 2)
    assert found["env_vars"] == "HF_TOKEN, OTHER" and found["mounts"] == '["/data:/data"]'
    assert found["user"] == "${oc.env:PLANTED_USER}", "as it is written"
    assert "env.toml:" in str(type(resources["profile_a_b"]).__doc__)
    assert "unknown profile 'nobody'" in str(shown(resources["profile_orphan"])["error"])
    assert "no target named 'mainframe'" in str(shown(resources["profile_odd"])["error"])


def test_no_secret_is_in_the_snapshot_that_the_webserver_gets(
    project: Path, resources: dict[str, ProfileResource]
) -> None:
    repository = build_definitions(Project(project, project / ".nemotron")).get_repository_def()
    text = serialize_value(RepositorySnap.from_def(repository))
    assert "profile_a_b" in text and "login.example" in text and "HF_TOKEN" in text
    assert PLANTED not in text and TOKEN not in text


def test_a_resource_gives_an_asset_of_ones_own_its_target(project: Path, resources: dict[str, ProfileResource]) -> None:
    @dg.asset(required_resource_keys={"profile_lap"})
    def mine(context) -> str:
        return str(context.resources.profile_lap.target().job_directory("k"))

    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize([mine], resources=dict(resources), instance=instance)
    assert done.output_for_node("mine") == str(project / ".nemotron/jobs/k")


def test_the_op_config_wins_over_the_run_tag_and_that_over_the_resource(project: Path, tmp_path: Path) -> None:
    """Told by the profile that the run complains of: none of them exists."""
    job = build_definitions(Project(project, project / ".nemotron")).resolve_implicit_global_asset_job_def()
    resource = {"resources": {"profile": {"config": {"name": "of_resource"}}}}
    op = {"ops": {"demo__rows": {"config": {"profile": "of_op"}}}}
    for config, tags, wins in (
        (resource, {}, "of_resource"),
        (resource, {"nemotron/profile": "of_tag"}, "of_tag"),
        ({**resource, **op}, {"nemotron/profile": "of_tag"}, "of_op"),
    ):
        with dg.DagsterInstance.ephemeral() as instance:
            done = job.execute_in_process(
                instance=instance,
                run_config=config,
                tags=tags,
                asset_selection=[dg.AssetKey(["demo", "rows"])],
                raise_on_error=False,
            )
        [failed] = [e for e in done.all_events if e.is_step_failure]
        data = failed.step_failure_data.user_failure_data
        assert data is not None and f"unknown profile '{wins}'" in str(data.description), (wins, data)


def test_nodes_that_always_run_on_one_cluster_share_its_pool(project: Path, tmp_path: Path) -> None:
    yard(project, tmp_path / "site")
    (project / "pipelines").mkdir()
    nodes = "a: {step: demo/rows, profile: yard}, b: {step: demo/rows, profile: lap}, c: {step: demo/rows}"
    (project / "pipelines/p.yaml").write_text(f"nodes: {{{nodes}}}\n")
    defs = build_definitions(Project(project, project / ".nemotron"))
    pools = {"/".join(a.key.path): a.op.pool for a in defs.assets or () if isinstance(a, dg.AssetsDefinition)}
    assert 'cluster = "yard.example"' in YARD
    assert (pools["p/a"], pools["p/b"], pools["p/c"], pools["demo/rows"]) == ("yard_example", None, None, None)


def test_a_pool_of_one_lets_one_job_of_the_cluster_run_at_a_time(
    project: Path, tmp_path: Path, environ: dict[str, str]
) -> None:
    """Two commands at once, each a run of its own; the limit is the instance's."""
    yard(project, tmp_path / "site")
    (project / "pipelines").mkdir()
    for name in ("p", "q"):
        node = f"{{step: demo/rows, profile: yard, overrides: {{n: {len(name)}, sleep: 1.5}}}}"
        (project / f"pipelines/{name}.yaml").write_text(f"nodes: {{a: {node}}}\n")
    home = project / ".nemotron/dagster"
    home.mkdir(parents=True)
    (home / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 1, granularity: op}}\n"
    )
    argv = [sys.executable, "-m", "nemotron_dagster.cli.main", "pipelines", "run"]
    both = [subprocess.Popen([*argv, n], cwd=project, env=environ, stdout=subprocess.DEVNULL) for n in ("p", "q")]
    assert [p.wait() for p in both] == [0, 0]
    spans = sorted((r.status.started, r.status.ended) for r in records(project) if r.status)
    assert len(spans) == 2 and spans[1][0] >= spans[0][1], spans
