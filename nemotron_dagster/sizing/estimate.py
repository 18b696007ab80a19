"""The memory estimate of a compiled job: what is shown, and when a run is refused for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_dagster.sizing.families import FAMILIES, Job, Phase
from nemotron_dagster.sizing.load import GIB, parts
from nemotron_dagster.sizing.models import Known, known
from nemotron_dagster.sizing.shape import UnknownShape

#: What the driver, CUDA's context and NCCL's buffers take: about 3 GiB by NVIDIA's sizing guide of Nemotron 3 Nano.
FRAMEWORK_GIB = 3.0
#: Parts that are sure to be there: without room for them a run cannot work.
SURE = ("weights", "gradients", "optimizer")


@dataclass(frozen=True)
class Estimate:
    """GiB per GPU by part, of the phase of the job that needs most.

    Attributes:
        phase: training, generation, ...
        parts: in the order in which they are shown.
        models: name -> parameters.
        unknown: what the estimate leaves out, and why.
    """

    phase: str
    parts: Mapping[str, float]
    models: Mapping[str, int]
    unknown: str = ""

    @property
    def sure(self) -> float:
        """GiB of weights, gradients and optimizer."""
        return sum(v for k, v in self.parts.items() if k.split(", ")[0] in SURE)

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def estimate(family: str, config: Mapping[str, Any], world: int, tables: Mapping[str, Any]) -> Estimate | str:
    """What the job needs on each GPU, or why that cannot be told; "" where the job uses no GPU.

    ``family`` is one of ``FAMILIES``, ``config`` the compiled one, ``world`` its GPUs, ``tables`` as ``load_tables``.
    """
    shapes: dict[str, Known] = {}

    def find(name: str) -> Known:
        if name not in shapes:
            shapes[name] = known(name, tables)
        return shapes[name]

    target = str((config.get("recipe") or {}).get("_target_") or "") if isinstance(config.get("recipe"), Mapping) else ""
    recipe = tables.get("recipe", {}).get(target.rpartition(".")[2], {})
    try:
        phases = FAMILIES[family](Job(config, world, find, recipe))
    except UnknownShape as e:
        return f"not known: {e}"
    if not phases:
        return ""
    models = {k.name: k.shape.parameters(mtp=True) for k in shapes.values()}
    return max((_of_phase(p, models) for p in phases), key=lambda e: e.sure)


def _of_phase(phase: Phase, models: Mapping[str, int]) -> Estimate:
    found: dict[str, float] = {}
    for load in phase.loads:
        suffix = f", {load.role}" if len(phase.loads) > 1 else ""
        for name, size in parts(load).items():
            found[name + suffix] = size / GIB
    lacks = any(load.training is not None and not load.training.sequence for load in phase.loads)
    unknown = "activations: the config names no sequence length" if lacks else ""
    return Estimate(phase.name, {**found, "framework": FRAMEWORK_GIB}, models, unknown)
