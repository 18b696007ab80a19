"""All steps of a project and of the bundle. A broken step folder is one named error; the other steps still work."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

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

    def select(
        self,
        category: str | None,
        consumes: str | None,
        produces: str | None,
        tag: str | None,
        compatible: bool = False,
    ) -> list[Step]:
        """The steps that match every given filter exactly.

        With ``compatible`` a type matches along ``is_a``: steps that accept an artifact of the type ``consumes``, steps
        whose product is accepted where ``produces`` is asked for.
        """

        def accepts(wanted: str, offered: str) -> bool:
            return wanted == offered or (compatible and self.types.accepts(wanted, offered))

        return [
            s
            for s in self.steps.values()
            if (category is None or s.category == category)
            and (consumes is None or any(accepts(p.type, consumes) for p in s.consumes))
            and (produces is None or any(accepts(produces, p.type) for p in s.produces))
            and (tag is None or tag in s.tags)
        ]


def _step_folders(
    root: str, prefix: str = "", followed: frozenset[str] = frozenset()
) -> Iterator[tuple[str, OSError | None]]:
    """Ids of the folders below ``root`` that hold a step.toml, and those that cannot be listed, with the error.

    Names that begin with ``_`` or ``.`` are left out, and the ``config`` folder of a step. Links are followed, but not
    in a circle.
    """
    here = f"{root}/{prefix}" if prefix else root
    try:
        with os.scandir(here) as found:
            entries = sorted(found, key=lambda e: e.name)
    except OSError as e:
        yield prefix, e
        return
    of_step = any(e.name == "step.toml" for e in entries)
    for entry in entries:
        name = entry.name
        if name == "step.toml":
            if prefix:
                yield prefix, None
        elif name[0] in "._" or (of_step and name == "config") or not _is_folder(entry):
            continue
        elif entry.is_symlink():
            real = os.path.realpath(entry.path)
            if real not in followed and not f"{os.path.realpath(here)}/".startswith(f"{real}/"):
                yield from _step_folders(root, f"{prefix}/{name}" if prefix else name, followed | {real})
        else:
            yield from _step_folders(root, f"{prefix}/{name}" if prefix else name, followed)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


@cache
def load_catalog(project: Project) -> Catalog:
    """Load every step of the project's ``steps/`` and of the bundle; a project's step replaces a bundled one."""
    collecting = gc.isenabled()
    gc.disable()  # everything made here is kept; looking for garbage meanwhile is a third of the time
    try:
        return _load(project)
    finally:
        if collecting:
            gc.enable()


def _load(project: Project) -> Catalog:
    roots = project.folders("steps")
    own = project.root / "artifacts" if project.root else None
    types = load_types([f for r in roots if os.path.lexists(f := r / "types.toml")], own)
    steps: dict[str, Step] = {}
    broken: dict[str, ConfigError] = {}
    for root in roots:
        for step_id, unlisted in _step_folders(str(root)):
            if step_id in steps or step_id in broken:
                continue
            folder = root / step_id
            try:
                if unlisted is not None:
                    raise ConfigError(f"{printable(folder)}: cannot be read ({unlisted.strerror}). Check it.")
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
    order = sorted(steps.values(), key=lambda s: (s.category, s.id))
    return Catalog({s.id: s for s in order}, types, broken)
