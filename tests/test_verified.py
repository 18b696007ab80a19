"""docs/verified.md says of every config of every ready step where it was run."""

from __future__ import annotations

import re

from helpers import REPO

from nemotron_dagster.catalog import load_catalog
from nemotron_dagster.project import Project

ROW = re.compile(r"^\| `([\w/]+)` \| `(\w+)` \| (.*) \| (.*) \| (.*) \| (.*) \|$", re.MULTILINE)
CATALOG = load_catalog(Project(None, REPO / ".nemotron"))


def test_every_config_of_every_ready_step_has_one_row_and_no_row_is_of_a_config_that_is_gone() -> None:
    rows = [(step, config) for step, config, *_ in ROW.findall((REPO / "docs/verified.md").read_text(encoding="utf-8"))]
    there = {(s.id, c) for s in CATALOG.steps.values() for c in s.configs}
    ready = {(s.id, c) for s in CATALOG.steps.values() if s.ready for c in s.configs}
    assert len(rows) == len(set(rows))
    assert ready <= set(rows) <= there


def test_a_row_says_whether_it_ran_on_a_cpu_and_on_which_gpu() -> None:
    for step, config, cpu, _, _, gpu in ROW.findall((REPO / "docs/verified.md").read_text(encoding="utf-8")):
        assert re.match(r"(tests|no)\b", cpu), f"{step} {config}: {cpu!r}"
        assert gpu.strip(), f"{step} {config}: name the device, or write `not run`"
