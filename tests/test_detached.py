"""Jobs that nobody watches are published once, whoever was killed when: sync, the sensor, attach, hand-over."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from submissions import book, end_jobs, ended, history, instance, materialized_keys, records, until, yard

from nemotron_dagster.dagster.definitions import build_definitions
from nemotron_dagster.dagster.internals import materialized_at
from nemotron_dagster.dagster.job_metadata import job_metadata
from nemotron_dagster.dagster.sensors import NAME
from nemotron_dagster.project import Project

Run = Callable[..., subprocess.CompletedProcess[str]]
#: The data version of an output, by which consumers know that it is new, is a beta parameter of Dagster.
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `data_version`")
MAIN = [sys.executable, "-m", "nemotron_dagster.cli.main"]


@pytest.fixture
def site(project: Path, tmp_path: Path) -> Iterator[Path]:
    yard(project, tmp_path / "site")
    yield tmp_path / "site"
    end_jobs(project)


def submit(nemotron: Run, project: Path, *args: str, profile: str = "lap") -> str:
    done = nemotron("steps", "run", "rows", *args, "-b", profile, "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["key"])


def start(project: Path, environ: dict[str, str], *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*MAIN, *args],
        cwd=project,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def running(project: Path) -> str:
    """The key of the only open submission, once its job runs."""
    [record] = until(book(project).open)
    log = project / f".nemotron/jobs/{record.key}/log"
    until(lambda: log.exists() and b"starting" in log.read_bytes())
    return str(record.key)


def cancelled(project: Path, key: str) -> bool:
    return bool(json.loads((project / f".nemotron/jobs/{key}/exit.json").read_text())["cancelled"])


def statuses(project: Path) -> list[str]:
    """Of all runs, the newest first."""
    with instance(project) as found:
        return [r.status.value for r in found.get_runs()]


def sensor(project: Path, found: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    """One tick."""
    defs = build_definitions(Project(project, project / ".nemotron"))
    context = dg.build_sensor_context(instance=found, cursor=cursor, definitions=defs)
    result = defs.resolve_sensor_def(NAME)(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def requests(result: dg.SensorResult | dg.SkipReason) -> list[dg.RunRequest]:
    return list(result.run_requests or ()) if isinstance(result, dg.SensorResult) else []


def execute(project: Path, found: dg.DagsterInstance, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    """What the daemon does with a request."""
    job = build_definitions(Project(project, project / ".nemotron")).resolve_implicit_global_asset_job_def()
    tags = {**request.tags, "dagster/run_key": str(request.run_key)}
    keys = list(request.asset_selection or ())
    return job.execute_in_process(instance=found, asset_selection=keys, tags=tags, raise_on_error=False)


def test_sync_gives_every_ended_job_its_materialization_or_its_failed_or_canceled_run(
    nemotron: Run, project: Path, site: Path
) -> None:
    good, bad, stopped = (submit(nemotron, project, *a) for a in (["n=3"], ["crash=5"], ["until=/never"]))
    pid = json.loads(until(lambda: _read(project / f".nemotron/jobs/{stopped}/pid.json")))
    os.kill(pid["supervisor"], signal.SIGTERM)  # somebody cancels it at the scheduler
    ended(project)
    done = nemotron("runs", "sync", cwd=project)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "published: " in lines[good] and "failed: demo/rows: the job failed (exit code 5)" in lines[bad]
    assert "cancelled: demo/rows: the job was cancelled" in lines[stopped]
    assert {r.key: r.phase for r in records(project)} == {good: "published", bad: "failed", stopped: "cancelled"}

    [made] = history(project)
    record = book(project).get(good)
    assert record is not None and record.status is not None and made.asset_materialization is not None
    assert made.timestamp == record.status.ended, "the event has the time of the job's end"
    metadata = made.asset_materialization.metadata
    assert metadata["nemotron/job/ended"] == dg.MetadataValue.timestamp(record.status.ended)
    assert metadata["nemotron/job/state"].value == "SUCCEEDED" and metadata["nemotron/job/exit_code"].value == 0
    assert {"nemotron/job/submitted", "nemotron/job/started", "nemotron/job/elapsed", "nemotron/job/queue_wait"} <= set(
        metadata
    )
    with instance(project) as found:
        runs = {r.tags["nemotron/job"]: r for r in found.get_runs()}
        assert {k: r.status.value for k, r in runs.items()} == {good: "SUCCESS", bad: "FAILURE", stopped: "CANCELED"}
        assert found.get_runs(dg.RunsFilter(tags={"nemotron/job": bad}))[0].run_id == runs[bad].run_id
        failed = [e for e in found.all_logs(runs[bad].run_id) if e.dagster_event and e.dagster_event.is_step_failure]
        data = failed[0].get_dagster_event().step_failure_data
        assert data.user_failure_data is not None and "exit code 5" in str(data.user_failure_data.description)
        told = data.user_failure_data.metadata
        assert (told["nemotron/job/key"].value, told["nemotron/job/exit_code"].value) == (bad, 5)
        for key in (good, bad):
            log = (project / f".nemotron/jobs/{key}/log").read_text()
            assert log and log in _compute_log(found, runs[key].run_id)
    assert nemotron("runs", "sync", cwd=project).returncode == 0 and len(history(project)) == 1
    again = nemotron("runs", "sync", bad, cwd=project)
    assert again.returncode == 1 and "failed: " in again.stdout


def test_the_sensor_requests_one_run_per_ended_job_and_asks_each_cluster_once(
    nemotron: Run, project: Path, site: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    done = [submit(nemotron, project, f"n={n}", profile="yard") for n in (1, 2)]
    runs = submit(nemotron, project, f"until={release}", profile="yard")
    for key in done:
        until((project / f".nemotron/jobs/{key}/exit.json").exists)
    for file in (project / ".nemotron/board").glob("*.json"):
        file.unlink()
    (site / "questions").unlink(missing_ok=True)
    with dg.DagsterInstance.ephemeral() as found:
        asked = requests(sensor(project, found))
        assert {r.tags["nemotron/adopt"] for r in asked} == set(done)
        assert [r.run_key for r in asked] == [f"{r.tags['nemotron/adopt']}-0" for r in asked]
        assert (site / "questions").read_text() == "?"
        for request in asked:
            assert execute(project, found, request).success
        assert not requests(sensor(project, found)), "what is published is not asked for again"
        (site / "down").touch()
        for file in (project / ".nemotron/board").glob("*.json"):
            file.unlink()
        assert not requests(sensor(project, found)), "a cluster that does not answer fails no tick"
        (site / "down").unlink()
        made = found.fetch_materializations(dg.AssetKey(["demo", "rows"]), limit=9).records
        assert len(made) == 2
    release.touch()
    until((project / f".nemotron/jobs/{runs}/exit.json").exists)


def test_the_sensor_leaves_an_attached_job_to_whoever_retries_it_for_five_minutes(
    project: Path, site: Path, environ: dict[str, str]
) -> None:
    with start(project, environ, "steps", "run", "rows", "n=3", "sleep=0.2") as command:
        key = running(project)
        with dg.DagsterInstance.ephemeral() as found:
            assert not requests(sensor(project, found)), "it is watched"
        os.killpg(command.pid, signal.SIGKILL)
    ended(project)
    with dg.DagsterInstance.ephemeral() as found:
        first = sensor(project, found)
        assert isinstance(first, dg.SensorResult) and not requests(first) and key in str(first.cursor)
        long_ago = json.dumps({k: v - 301 for k, v in json.loads(str(first.cursor)).items()})
        [request] = requests(sensor(project, found, long_ago))
        assert request.tags["nemotron/adopt"] == key and execute(project, found, request).success


def test_a_tick_with_nothing_open_imports_no_nemo_run_and_looks_at_no_record(project: Path, site: Path) -> None:
    (project / ".nemotron/ledger/done").mkdir(parents=True)
    (project / ".nemotron/ledger/done/broken.json").write_text("{")
    code = f"""
import sys
import dagster as dg
from pathlib import Path
from nemotron_dagster.dagster.definitions import build_definitions
from nemotron_dagster.project import Project
root = Path({str(project)!r})
sensor = build_definitions(Project(root, root / ".nemotron")).resolve_sensor_def({NAME!r})
with dg.DagsterInstance.ephemeral() as found:
    result = sensor(dg.build_sensor_context(instance=found))
assert isinstance(result, dg.SkipReason), result
assert sensor.default_status is dg.DefaultSensorStatus.RUNNING and sensor.minimum_interval_seconds == 30
assert "nemo_run" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True)


def test_sync_and_the_sensor_and_attach_at_once_record_a_job_once(
    nemotron: Run, project: Path, site: Path, environ: dict[str, str]
) -> None:
    key = submit(nemotron, project, "n=40", "sleep=0.1")
    asset = f"""
import sys
from pathlib import Path
import dagster as dg
from nemotron_dagster.dagster.definitions import build_definitions, open_instance
from nemotron_dagster.project import find_project
with open_instance(find_project()) as found:
    job = build_definitions(find_project()).resolve_implicit_global_asset_job_def()
    done = job.execute_in_process(instance=found, asset_selection=[dg.AssetKey(["demo", "rows"])],
                                  tags={{"nemotron/adopt": {key!r}}}, raise_on_error=False)
sys.exit(not done.success)
"""
    attached = start(project, environ, "runs", "attach", key)
    worker = subprocess.Popen([sys.executable, "-c", asset], cwd=project, env=environ, stdout=subprocess.DEVNULL)
    ended(project)
    synced = start(project, environ, "runs", "sync", key)
    texts = [p.communicate()[0] for p in (attached, synced)]
    assert worker.wait() == attached.returncode == synced.returncode == 0, texts
    assert materialized_keys(project) == [key] and set(statuses(project)) == {"SUCCESS"}
    assert len(list((project / ".nemotron/artifacts/demo/rows").glob("*/artifact.json"))) == 1


def test_a_run_that_finds_the_job_recorded_makes_nothing_downstream_run(
    nemotron: Run, project: Path, site: Path
) -> None:
    key = submit(nemotron, project, "n=1")
    ended(project)
    assert nemotron("runs", "sync", cwd=project).returncode == 0
    with instance(project) as found:
        request = dg.RunRequest(
            run_key="x", asset_selection=[dg.AssetKey(["demo", "rows"])], tags={"nemotron/adopt": key}
        )
        assert execute(project, found, request).success
    assert materialized_keys(project) == [key] and statuses(project) == ["SUCCESS", "SUCCESS"]
    assert not history(project, "demo/count")


def test_a_job_with_inputs_is_published_though_its_input_is_gone_by_then(
    nemotron: Run, project: Path, site: Path
) -> None:
    assert nemotron("steps", "run", "rows", cwd=project).returncode == 0
    done = nemotron("steps", "run", "count", "-b", "lap", "--json", cwd=project)
    key = json.loads(done.stdout)["key"]
    ended(project)
    for file in (project / ".nemotron/artifacts/demo/rows").glob("*/artifact.json"):
        file.unlink()
    done = nemotron("runs", "sync", cwd=project)
    assert done.returncode == 0 and "published" in done.stdout, done.stdout + done.stderr
    assert materialized_keys(project, "demo/count") == [key]
    with instance(project) as found:
        [run] = found.get_runs(dg.RunsFilter(tags={"nemotron/adopt": key}))
        events = [r.dagster_event for r in found.all_logs(run.run_id) if r.dagster_event is not None]
        checks = [e.event_specific_data for e in events if e.event_type_value == "ASSET_CHECK_EVALUATION"]
    by_name = {c.check_name: c for c in checks if isinstance(c, dg.AssetCheckEvaluation)}
    assert not by_name["inputs_unchanged"].passed and "Cannot be told" in str(by_name["inputs_unchanged"].description)
    assert by_name["manifest_and_files"].passed


def test_attach_shows_the_job_and_ctrl_c_cancels_it_or_leaves_it_as_asked(
    nemotron: Run, project: Path, site: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    release = tmp_path / "release"
    key = submit(nemotron, project, "n=2", f"until={release}")
    with start(project, environ, "runs", "attach", key[:8], "--detach-on-interrupt") as command:
        assert command.stdout and any("starting at 0" in line for line in iter(command.stdout.readline, ""))
        os.kill(command.pid, signal.SIGINT)
        text = command.stdout.read()
    assert command.returncode == 130 and f"`nemotron runs attach {key}`" in text and "Traceback" not in text, text
    assert not (project / f".nemotron/jobs/{key}/exit.json").exists() and statuses(project) == ["CANCELED"]
    with start(project, environ, "runs", "attach", key) as command:
        assert command.stdout and any("starting at 0" in line for line in iter(command.stdout.readline, ""))
        os.kill(command.pid, signal.SIGTERM)
        text = command.stdout.read()
    assert command.returncode == 7 and f"job {key} was cancelled" in text and "Traceback" not in text, text
    assert cancelled(project, key) and statuses(project) == ["CANCELED", "CANCELED"]
    record = book(project).get(key)
    assert record is not None and record.phase == "cancelled"
    done = nemotron("runs", "attach", key, cwd=project)
    assert done.returncode == 7 and "cancelled" in done.stderr


def test_ctrl_c_with_detach_on_interrupt_leaves_the_job_of_steps_run_for_sync(
    nemotron: Run, project: Path, site: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    release = tmp_path / "release"
    with start(project, environ, "steps", "run", "rows", f"until={release}", "--detach-on-interrupt") as command:
        key = running(project)
        os.kill(command.pid, signal.SIGINT)
        text = command.stdout.read() if command.stdout else ""
    assert command.returncode == 130 and f"left job {key} running" in text, text
    record = book(project).get(key)
    assert record is not None and record.phase == "submitted" and record.detached
    release.touch()
    ended(project)
    assert nemotron("runs", "sync", cwd=project).returncode == 0
    assert materialized_keys(project) == [key]


def test_a_second_ctrl_c_does_not_wait_for_a_job_that_ends_slowly_and_says_so(
    project: Path, site: Path, environ: dict[str, str]
) -> None:
    script = project / "steps/demo/rows/step.py"
    script.write_text(script.read_text().replace("import json, os", "import signal, json, os").replace(
        "    out = Path", "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    out = Path", 1
    ))  # fmt: skip
    with start(project, environ, "steps", "run", "rows", "until=/never") as command:
        key = running(project)
        os.kill(command.pid, signal.SIGINT)
        assert command.stdout and any("Ctrl-C again" in line for line in iter(command.stdout.readline, ""))
        os.kill(command.pid, signal.SIGINT)
        text = command.stdout.read()
    assert command.returncode == 7 and "its end was not waited for" in text and "Traceback" not in text, text
    ended(project)
    assert cancelled(project, key)


def test_a_worker_that_is_told_to_stop_leaves_its_job_which_is_published_then(
    nemotron: Run, project: Path, site: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    release = tmp_path / "release"
    code = f"""
import dagster as dg
from nemotron_dagster.dagster.definitions import build_definitions, open_instance
from nemotron_dagster.project import find_project
with open_instance(find_project()) as found:
    job = build_definitions(find_project()).resolve_implicit_global_asset_job_def()
    overrides = {{"until": {str(release)!r}}}
    job.execute_in_process(instance=found, asset_selection=[dg.AssetKey(["demo", "rows"])], raise_on_error=False,
                           run_config={{"ops": {{"demo__rows": {{"config": {{"overrides": overrides}}}}}}}})
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", code], cwd=project, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    key = running(project)
    worker.send_signal(signal.SIGTERM)
    worker.wait()
    assert not (project / f".nemotron/jobs/{key}/exit.json").exists() and statuses(project) == ["FAILURE"]
    release.touch()
    ended(project)
    assert nemotron("runs", "sync", cwd=project).returncode == 0
    assert materialized_keys(project) == [key]


def test_a_deliberate_new_run_adopts_nothing_and_both_publish(
    nemotron: Run, project: Path, site: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    first = submit(nemotron, project, "n=2", f"until={release}")
    assert submit(nemotron, project, "n=2", f"until={release}") == first
    second = submit(nemotron, project, "n=2", f"until={release}", "--new")
    assert second != first
    release.touch()
    ended(project)
    done = nemotron("steps", "run", "rows", "n=2", f"until={release}", "--new", cwd=project)
    assert done.returncode == 0 and "adopting" not in done.stdout, done.stderr
    assert nemotron("runs", "sync", cwd=project).returncode == 0
    keys = materialized_keys(project)
    assert len(keys) == len(set(keys)) == 3 and {first, second} < set(keys)
    assert {r.phase for r in records(project)} == {"published"}


def test_an_artifact_published_by_a_run_that_died_before_recording_it_gets_into_the_history(
    nemotron: Run, project: Path, site: Path
) -> None:
    code = """
import os, signal
from nemotron_dagster.dagster import assets, handover
from nemotron_dagster.cli.main import main
handover.Bond.recording = lambda self: os.kill(os.getpid(), signal.SIGKILL)
main(["steps", "run", "rows", "n=2"])
"""
    subprocess.run([sys.executable, "-c", code], cwd=project, check=False, capture_output=True)
    [record] = records(project)
    assert record.phase == "published" and not history(project)
    done = nemotron("runs", "sync", cwd=project)
    assert done.returncode == 0 and record.key in done.stdout, done.stdout + done.stderr
    assert materialized_keys(project) == [record.key] and not book(project).owed()
    assert nemotron("runs", "sync", cwd=project).stdout == ""


def test_commands_killed_at_any_instant_lose_no_job_submit_none_twice_and_record_each_once(
    nemotron: Run, project: Path, site: Path, environ: dict[str, str]
) -> None:
    """Each command is a fork of one process that has imported everything, so that what is killed is our work.

    The instants are fractions of what one whole command takes on this machine at this time.
    """
    code = """
import os, signal, sys, time
import nemotron_dagster.dagster.materialize
from nemotron_dagster.dagster.definitions import project_definitions
from nemotron_dagster.project import find_project
from nemotron_dagster.cli.main import main
project_definitions(find_project())
def command(n):
    pid = os.fork()
    if not pid:
        os.setsid()
        main(["steps", "run", "rows", f"n={n}", "sleep=0.02"])
    return pid
begun = time.monotonic()
assert os.waitpid(command(1), 0)[1] == 0
whole = time.monotonic() - begun
for n, fraction in enumerate(map(float, sys.argv[1:]), 2):
    pid = command(n)
    time.sleep(fraction * whole)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""
    chance = random.Random()
    instants = [f"{chance.uniform(0.05, 1.1):.3f}" for _ in range(20)]
    with open(project / "out", "wb") as out:
        subprocess.run([sys.executable, "-c", code, *instants], cwd=project, env=environ, check=True, stdout=out)
    settle(project)
    for _ in range(2):
        done = nemotron("runs", "sync", cwd=project)
        assert done.returncode == 0, (instants, done.stdout, done.stderr)
    jobs = sorted(p.name for p in (project / ".nemotron/jobs").iterdir())
    found = {r.key: r for r in records(project)}
    assert set(jobs) <= set(found), instants
    assert sorted(materialized_keys(project)) == jobs, (instants, "every job's artifact is in the history once")
    assert [found[k].phase for k in jobs] == ["published"] * len(jobs)
    rows = [m.asset_materialization.metadata["dagster/row_count"].value for m in history(project)]  # type: ignore[union-attr]
    assert len(rows) == len(set(rows)), "no spec ran twice"


def settle(project: Path) -> None:
    """Wait for the jobs; one whose submitter was killed between its directory and its process has not begun."""
    jobs = list((project / ".nemotron/jobs").iterdir())
    until(lambda: all((j / "exit.json").exists() or not (j / "pid.json").exists() for j in jobs))
    time.sleep(1)
    until(lambda: all((j / "exit.json").exists() or not (j / "pid.json").exists() for j in jobs))


def test_the_metadata_of_a_job_are_flat_and_have_their_types(nemotron: Run, project: Path, site: Path) -> None:
    key = submit(nemotron, project, "n=1")
    ended(project)
    assert nemotron("runs", "sync", cwd=project).returncode == 0
    record = book(project).get(key)
    assert record is not None
    found = job_metadata(record)
    assert all(name.startswith("nemotron/job/") for name in found)
    kinds = {n.removeprefix("nemotron/job/"): type(v).__name__ for n, v in found.items()}
    assert kinds["ended"] == kinds["submitted"] == "TimestampMetadataValue" and kinds["log"] == "PathMetadataValue"
    assert kinds["gpu_hours"] == kinds["elapsed"] == "FloatMetadataValue" and kinds["restarts"] == "IntMetadataValue"


def test_the_time_of_a_materialization_is_never_before_the_one_that_it_follows() -> None:
    @dg.asset
    def made(context) -> int:
        with materialized_at(context.instance, dg.AssetKey("made"), float(context.run.tags["at"])):
            context.log_event(dg.AssetMaterialization("made"))
        return 1

    with dg.DagsterInstance.ephemeral() as found:
        for at in (1000.0, 500.0):
            assert dg.materialize([made], instance=found, tags={"at": str(at)}).success
        rows = found.fetch_materializations(dg.AssetKey("made"), limit=9, ascending=True).records
        times = [r.timestamp for r in rows]
        assert times[0] == 1000.0 and times == sorted(times), times
        found.wipe_assets([dg.AssetKey("made")])
        assert dg.materialize([made], instance=found, tags={"at": "500"}).success
        assert found.get_latest_materialization_event(dg.AssetKey("made")) is not None, "it is seen after a wipe"


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _compute_log(found: dg.DagsterInstance, run_id: str) -> str:
    events = [e.dagster_event for e in found.all_logs(run_id) if e.dagster_event is not None]
    [captured] = [e.logs_captured_data for e in events if e.event_type_value == "LOGS_CAPTURED"]
    data = found.compute_log_manager.get_log_data([run_id, "compute_logs", captured.file_key])
    return (data.stdout or b"").decode()
