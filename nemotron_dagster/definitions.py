"""The code location: ``dagster dev -m nemotron_dagster.definitions``, or through workspace.yaml."""

from nemotron_dagster.dagster.definitions import build_definitions
from nemotron_dagster.project import find_project

defs = build_definitions(find_project())
