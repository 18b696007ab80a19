"""A compiled job about to be submitted, as the preflight rules see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.port_locks import Subject
from nemotron_dagster.catalog import Port
from nemotron_dagster.config.compile import JobSpec
from nemotron_dagster.config.keys import get
from nemotron_dagster.sizing.families import FAMILIES, Job
from nemotron_dagster.sizing.load import Parallel
from nemotron_dagster.sizing.models import Known
from nemotron_dagster.sizing.shape import Shape


@dataclass(frozen=True)
class Case:
    """A compiled job about to be submitted.

    Attributes:
        world: its GPUs.
        family: how its config spells sizes, of ``sizing.families``.
        recipe: what the recipe of its config sets by itself.
        tables: numbers of known models.
        subjects: what is known of its inputs, by port; empty before they are read.
    """

    spec: JobSpec
    world: int
    family: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    subjects: Mapping[str, Subject] = field(default_factory=dict)

    def value(self, key: str) -> Any:
        return get(self.spec.train, key, None)

    def port(self, name: str) -> Port:
        return next(p for p in self.spec.step.consumes if p.name == name)

    @property
    def parallel(self) -> Parallel | None:
        """How the model that is trained is spread; its shape does not matter here."""
        shape = Shape(hidden=1, vocabulary=1, blocks="*")
        job = Job(self.spec.train, self.world, lambda name: Known(name, shape, ""), self.recipe)
        phases = FAMILIES[self.family](job)
        return phases[0].loads[0].parallel if phases else None


def is_path(text: str) -> bool:
    """Whether a value is a path, not a name on the Hub."""
    return text.startswith(("/", ".", "~"))


def directory(text: str) -> Path:
    """The real path of an input; of a glob, the directory above the first wildcard."""
    path = Path(text).expanduser().absolute()
    while "*" in str(path):
        path = path.parent
    return path.resolve()
