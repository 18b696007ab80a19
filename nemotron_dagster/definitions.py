"""The code location: ``dagster dev -m nemotron_dagster.definitions``, or through workspace.yaml.

A project's own ``definitions.py`` takes its place.
"""

from nemotron_dagster.dagster.definitions import project_definitions
from nemotron_dagster.project import find_project

defs = project_definitions(find_project())
