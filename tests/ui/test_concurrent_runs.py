"""Several command lines at once on one SQLite instance that none of them has made before."""

from __future__ import annotations

import subprocess
from pathlib import Path

import dagster as dg
from ui_support import NEMOTRON, environment, new_project

_RUNS = [
    ["steps", "run", "demo/numbers", "n=9"],
    ["steps", "run", "demo/train", "dataset=rows.jsonl"],
    ["steps", "run", "demo/score", "model=org/model"],
    ["pipelines", "run", "learn"],
]


def test_runs_at_once_are_all_recorded(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project")
    (project / "rows.jsonl").write_text('{"text": "one"}\n')
    started = [
        subprocess.Popen(
            [*NEMOTRON, *arguments],
            cwd=project,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for arguments in _RUNS
    ]
    printed = [p.communicate(timeout=180)[0] for p in started]
    assert [p.returncode for p in started] == [0] * len(_RUNS), "\n".join(printed)
    with dg.DagsterInstance.from_config(str(project / ".nemotron" / "dagster")) as instance:
        runs = instance.get_runs()
        assert [r.status for r in runs] == [dg.DagsterRunStatus.SUCCESS] * len(_RUNS)
        assert sorted(r.job_name for r in runs) == ["__ASSET_JOB"] * 3 + ["learn"]
        for asset in ("demo/numbers", "demo/train", "demo/score", "learn/numbers", "learn/model", "learn/scores"):
            assert instance.get_latest_materialization_event(dg.AssetKey(asset.split("/"))) is not None
