"""Rules that a reviewer would otherwise have to look for in every change."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import REPO
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import files

HEAVY = ["dagster", "omegaconf", "pyarrow", "nemo_run", "torch", "pydantic", "matplotlib"]
#: In two parts, so that this file does not break its own rule.
NEVER = {"/w": "ork/", "/r": "oot/", "/opt/w": "heels", "/opt/p": "ypi", "python": "hosted.org", "pypi.org": "/simple"}
LOCKS = ["requirements.lock", "requirements-dev.lock"]


def imports(file: Path) -> set[str]:
    """Top-level names of every package imported anywhere in a file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return {name.partition(".")[0] for name in found}


def pins(lock: str) -> dict[str, list[str]]:
    """Requirement -> its hashes; fails on a line that is neither."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in (REPO / lock).read_text(encoding="utf-8").splitlines():
        if line.startswith("    --hash=sha256:"):
            found[current].append(line.strip(" \\"))
        else:
            current = line.removesuffix("\\").strip()
            assert "==" in current, f"{lock}: {line!r} is no pin"
            found[current] = []
    return found


def test_payloads_are_independent_of_the_engine() -> None:
    scripts = files("steps/**/*.py", "examples/**/steps/**/*.py")
    assert len(scripts) > 24
    for file in scripts:
        wrong = imports(file) & {"dagster", "nemo_run", "nemotron_dagster"}
        assert not wrong, f"{file}: imports {wrong}; payloads are shipped into containers without them"


def test_listing_steps_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import json, sys
from nemotron_dagster.cli.main import main
try:
    main(["steps", "list", "--json"])
except SystemExit as e:
    assert not e.code, e.code
print(json.dumps([m for m in {HEAVY} if m in sys.modules]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert len(json.loads(done.stdout)) >= 24
    assert json.loads(done.stderr.splitlines()[-1]) == []


def test_no_file_names_this_machine_or_an_index() -> None:
    for file in files():
        text = file.read_bytes().decode("utf-8", errors="ignore")
        for word in (start + rest for start, rest in NEVER.items()):
            at = text.find(word)
            assert at < 0, f"{file}:{text.count(chr(10), 0, at) + 1}: names {word}"


@pytest.mark.parametrize("folder", ["nemotron_dagster", "resources", "steps", ".ci", "examples"])
def test_public_modules_say_what_they_are(folder: str) -> None:
    modules = [p for p in files(f"{folder}/**.py") if p.name == "__init__.py" or not p.name.startswith("_")]
    assert modules
    for file in modules:
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), f"{file}: has no docstring"


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_are_whole(lock: str) -> None:
    locked = pins(lock)
    assert [r for r, hashes in locked.items() if not hashes] == []
    assert "://" not in (REPO / lock).read_text(encoding="utf-8")
    versions: dict[str, list[str]] = {}
    for text in locked:
        requirement = Requirement(text)
        versions.setdefault(canonicalize_name(requirement.name), []).append(str(requirement.specifier)[2:])
    doc = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*doc["build-system"]["requires"], *doc["project"]["dependencies"]]
    if "dev" in lock:
        wanted += doc["project"]["optional-dependencies"]["dev"]
    for text in wanted:
        requirement = Requirement(text)
        found = versions.get(canonicalize_name(requirement.name), [])
        assert found and all(requirement.specifier.contains(v) for v in found), f"{lock}: {text}: run `make lock`"


def test_dev_lock_holds_the_runtime_lock() -> None:
    runtime, dev = ({r.partition(" ;")[0] for r in pins(lock)} for lock in LOCKS)
    assert runtime <= dev


def test_nemo_run_can_be_imported(environ: dict[str, str], tmp_path: Path) -> None:
    """Newer releases of one of its dependencies break it; the pin in pyproject.toml holds them back."""
    subprocess.run([sys.executable, "-c", "import nemo_run"], cwd=tmp_path, env=environ, check=True)
