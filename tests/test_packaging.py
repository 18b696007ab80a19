"""The wheel: one package that carries the three catalogs, and works where there is no checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPO
from repository import files

BUNDLED = ("steps", "resources", "env")


def pip(*args: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *map(str, args)]
    done = subprocess.run(command, cwd=REPO, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    pip("wheel", ".", "--no-build-isolation", "--no-deps", "--no-index", "-w", out)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment with the wheel, which borrows the dependencies of this one."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    pip("--python", home / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_holds_the_catalogs_inside_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    prefix = "nemotron_dagster/_bundled/"
    carried = {n.removeprefix(prefix) for n in names if n.startswith(prefix)}
    assert carried == {str(p.relative_to(REPO)) for p in files(*BUNDLED)}
    assert {n.partition("/")[0].partition("-")[0] for n in names} == {"nemotron_dagster"}
    assert not [n for n in names if "__pycache__" in n or n.endswith(".pyc")]
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_runs_from_anywhere(installed: Path, environ: dict[str, str], tmp_path: Path) -> None:
    def nemotron(*args: str) -> str:
        command = [str(installed / "nemotron"), *args]
        done = subprocess.run(command, cwd=tmp_path, env=environ, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    steps = json.loads(nemotron("steps", "list", "--json"))
    own = [sys.executable, "-m", "nemotron_dagster.cli.main", "steps", "list", "--json"]
    checkout = json.loads(subprocess.run(own, cwd=tmp_path, env=environ, check=True, capture_output=True).stdout)
    assert [s["id"] for s in steps] == [s["id"] for s in checkout]
    assert all(Path(s["path"]).is_relative_to(installed.parent.resolve()) for s in steps)
    assert "# config" in nemotron("steps", "run", "curate/nemo_curator", "-c", "tiny", "--dry-run")
