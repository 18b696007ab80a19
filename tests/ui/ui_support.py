"""Helpers of the UI tests: a project, its `nemotron ui`, processes, and what a browser page saw."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SHOTS = REPOSITORY / "tests" / ".screenshots"
NEMOTRON = [sys.executable, "-m", "nemotron_dagster.cli.main"]
_OFFLINE = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def environment() -> dict[str, str]:
    """This process's, without what names another project or instance, and with this checkout first."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NEMOTRON_", "DAGSTER_"))}
    return kept | {"PYTHONPATH": str(REPOSITORY)}


def new_project(folder: Path) -> Path:
    """A copy of the demo project."""
    ignore = shutil.ignore_patterns("__pycache__", ".nemotron")
    return Path(shutil.copytree(Path(__file__).parent / "project", folder, ignore=ignore))


def nemotron(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NEMOTRON, *arguments],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def processes_of_group(group: int) -> list[int]:
    """Living processes of a process group or session, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z" and group in (int(fields[2]), int(fields[3])):
            found.append(int(stat.parent.name))
    return found


def wait_for(what: str, check: Callable[[], Any], seconds: float = 60) -> Any:
    """Poll until ``check`` returns something true; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


@dataclass
class UI:
    """A running `nemotron ui`."""

    url: str
    project: Path
    process: subprocess.Popen[str]

    def get(self, path: str) -> str:
        with _OFFLINE.open(self.url + path, timeout=60) as answer:
            return str(answer.read().decode())

    def query(self, query: str, **variables: Any) -> Any:
        """The data of a GraphQL answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with _OFFLINE.open(request, timeout=60) as answer:
            data = json.load(answer)
        assert "errors" not in data, data["errors"]
        return data["data"]

    def run(self, run_id: str) -> dict[str, Any]:
        query = "query($id: ID!) {runOrError(runId: $id) {... on Run {runId status jobName tags {key value}}}}"
        return dict(self.query(query, id=run_id)["runOrError"])

    def launch(self, asset: list[str], overrides: dict[str, Any]) -> str:
        """Materialize one asset as the Launchpad does; the run's id."""
        query = """mutation($p: ExecutionParams!) {launchPipelineExecution(executionParams: $p) {
            __typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}
            ... on RunConfigValidationInvalid {errors {message}}}}"""
        selector = {
            "repositoryLocationName": "nemotron_dagster.definitions",
            "repositoryName": "__repository__",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": asset}],
        }
        ops = {"__".join(asset): {"config": {"overrides": overrides}}}
        params = {"mode": "default", "selector": selector, "runConfigData": json.dumps({"ops": ops})}
        answer = self.query(query, p=params)["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])


def start_ui(project: Path, port: int) -> UI:
    """`nemotron ui` once it has printed its address."""
    process = subprocess.Popen(
        [*NEMOTRON, "ui", "-p", str(port)],
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=(project / "ui.err").open("w"),
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line, (line, (project / "ui.err").read_text())
    return UI(f"http://127.0.0.1:{port}", project, process)


def stop_ui(ui: UI, number: int = signal.SIGINT) -> float:
    """Stop it as Ctrl-C does; the seconds that took. Asserts that none of its processes is left."""
    children = Path(f"/proc/{ui.process.pid}/task/{ui.process.pid}/children").read_text().split()
    assert len(children) == 1, children  # dagster dev, leader of the session that all others are in
    began = time.monotonic()
    ui.process.send_signal(number)
    code = ui.process.wait(timeout=30)
    left = processes_of_group(int(children[0]))
    assert not left, [Path(f"/proc/{p}/cmdline").read_text() for p in left]
    assert code == 0
    assert (ui.project / "ui.err").read_text() == "", "it is quiet"
    return time.monotonic() - began


@dataclass
class Visit:
    """One browser page, and what went on in it."""

    page: Any
    ui: UI
    requests: list[str]
    problems: list[str]

    def open(self, path: str) -> Any:
        self.page.goto(self.ui.url + path)
        return self.page

    def shot(self, name: str) -> None:
        SHOTS.mkdir(exist_ok=True)
        self.page.wait_for_timeout(300)  # fonts and fades
        self.page.screenshot(path=SHOTS / f"{name}.png")
