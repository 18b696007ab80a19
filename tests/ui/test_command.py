"""`nemotron ui` as a process, and the definitions as Dagster's own command line sees them."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ui_support import REPOSITORY, environment, nemotron, new_project


def test_ui_names_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = nemotron(new_project(tmp_path / "project"), "ui", "-p", str(port))
    assert refused.returncode == 2
    assert f"port {port}" in refused.stderr and f"-p {port + 1}" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("where", "arguments"),
    [
        ("checkout", ["-w", "workspace.yaml"]),
        ("checkout", ["-m", "nemotron_dagster.definitions"]),
        ("project", ["-w", "workspace.yaml"]),
    ],
)
def test_definitions_validate(tmp_path: Path, where: str, arguments: list[str]) -> None:
    """Deprecations are errors here, those of Dagster's names that we use among them."""
    folder = REPOSITORY if where == "checkout" else new_project(tmp_path / "project")
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", *arguments],
        cwd=folder,
        env=environment() | {"NEMOTRON_HOME": str(tmp_path / "state"), "PYTHONWARNINGS": "error::DeprecationWarning"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All code locations passed validation" in done.stdout + done.stderr
