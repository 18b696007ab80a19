"""The tables of the README say what the code says."""

from __future__ import annotations

import re

from conftest import REPO

from nemotron_dagster import errors
from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.project import Project

README = (REPO / "README.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its header, back quotes removed."""
    section = re.split(r"^#+ ", README.partition(f"## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 2, f"README.md has no table under {heading!r}"
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


def test_exit_codes() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.NemotronError)]
    told = [
        [str(c.exit_code), c.__name__, (c.__doc__ or "").splitlines()[0].rstrip(".")]
        for c in classes
        if c is not errors.NemotronError
    ]
    assert table("Exit codes")[1:] == told
    assert table("Exit codes")[0][:2] == ["0", ""]


def test_status() -> None:
    catalog = load_catalog(Project(None, REPO / ".nemotron"))
    told = {step: (payload, env) for step, payload, env in table("Status")}
    assert told == {s.id: ("ready" if s.ready else "planned", s.env if s.ready else "") for s in catalog.steps.values()}


def test_targets() -> None:
    assert [row[0] for row in table("Execution targets")] == sorted(p.stem for p in REPO.glob("resources/[!_]*.py"))
