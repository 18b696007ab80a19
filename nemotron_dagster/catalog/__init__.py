"""All steps of a project and of the bundle. A broken step folder is one named error; the other steps still work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nemotron_dagster.catalog.manifest import load_step
from nemotron_dagster.catalog.model import Parameter, Port, Runspec, Step
from nemotron_dagster.catalog.types import TypeGraph, load_types
from nemotron_dagster.errors import ConfigError, UsageError, did_you_mean
from nemotron_dagster.files import printable
from nemotron_dagster.project import Project
from nemotron_dagster.toml_positions import toml_position

__all__ = ["Catalog", "Parameter", "Port", "Runspec", "Step", "TypeGraph", "load_catalog"]


@dataclass(frozen=True)
class Catalog:
    """Steps by id in ``(category, id)`` order, the type graph, and what could not be loaded."""

    steps: dict[str, Step]
    types: TypeGraph
    broken: dict[str, ConfigError]

    def find(self, name: str) -> Step:
        """The step with this id, or with this unique folder name.

        Raises:
            ConfigError: the step is there and broken.
            UsageError: no such step, or several.
        """
        if name in self.steps:
            return self.steps[name]
        if name in self.broken:
            raise self.broken[name]
        tails = [i for i in self.steps if i.split("/")[-1] == name]
        if len(tails) == 1:
            return self.steps[tails[0]]
        hint = (
            f"\nDid you mean: {', '.join(tails)}?"
            if tails
            else did_you_mean(name, self.steps).replace(" Did you mean ", "\nDid you mean: ")
        )
        raise UsageError(f"Unknown step id: {name}{hint}\nRun `nemotron steps list` to see all available steps.")

    def select(self, category: str | None, consumes: str | None, produces: str | None, tag: str | None) -> list[Step]:
        """The steps that match every given filter exactly."""
        return [
            s
            for s in self.steps.values()
            if (category is None or s.category == category)
            and (consumes is None or any(p.type == consumes for p in s.consumes))
            and (produces is None or any(p.type == produces for p in s.produces))
            and (tag is None or tag in s.tags)
        ]


def _step_folders(root: Path, broken: dict[str, ConfigError]) -> list[Path]:
    """The folders below ``root`` that have a step.toml, whatever that is; links are followed, each place once."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def unreadable(e: OSError) -> None:
        name = Path(e.filename).relative_to(root).as_posix()
        broken[printable(name)] = ConfigError(f"{printable(e.filename)}: cannot be read ({e.strerror}). Check it.")

    for here, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        status = os.stat(here)
        again = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [] if again else sorted(f for f in folders if not f.startswith(("_", ".")) and f != "step.toml")
        if "step.toml" in names or os.path.isdir(f"{here}/step.toml"):
            found.append(Path(here))
    return sorted(f for f in found if f != root)


@cache
def load_catalog(project: Project) -> Catalog:
    """Load every step of the project's ``steps/`` and of the bundle; a project's step replaces a bundled one."""
    roots = project.folders("steps")
    types = load_types([f for r in roots if os.path.lexists(f := r / "types.toml")])
    steps: dict[str, Step] = {}
    broken: dict[str, ConfigError] = {}
    for root in roots:
        for folder in _step_folders(root, broken):
            step_id = folder.relative_to(root).as_posix()
            if step_id in steps or step_id in broken:
                continue
            try:
                step = load_step(folder, root)
                for kind, ports in (("consumes", step.consumes), ("produces", step.produces)):
                    for i, port in enumerate(ports):
                        if port.type not in types.parents:
                            file = folder / "step.toml"
                            types.check(port.type, str(toml_position(file, f"{kind}.{i}.type") or file))
                if not step.produces:
                    raise ConfigError(
                        f"{folder / 'step.toml'}: has no [[produces]] entry, and every step is an asset. "
                        "Name the artifact type that it makes."
                    )
                steps[step_id] = step
            except ConfigError as e:
                broken[printable(step_id)] = e
    order = sorted(steps.values(), key=lambda s: (s.category, s.id, str(s.directory)))
    return Catalog({s.id: s for s in order}, types, broken)
