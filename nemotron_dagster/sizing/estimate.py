"""The memory estimate of a compiled job: what is shown, and when a run is refused for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
class PhaseEstimate:
    """GiB per GPU by part, of one phase of a job; ``share`` of the GPU is taken whatever the parts need."""

    name: str
    parts: Mapping[str, float]
    share: float = 0.0

    @property
    def sure(self) -> float:
        """GiB of weights, gradients and optimizer."""
        return sum(size for part, size in self.parts.items() if part.partition(", ")[0] in SURE)

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def told(self) -> str:
        """``training 67.7 GiB: weights 7.9, gradients 15.7, ...``."""
        named = ", ".join(f"{part} {_size(size)}" for part, size in self.parts.items() if size)
        held = f" (of the {self.share:.0%} of the GPU that vLLM takes)" if self.share else ""
        return f"{self.name} {_size(self.total)} GiB{held}: {named}"


@dataclass(frozen=True)
class Estimate:
    """What a job needs on each GPU, by phase.

    Attributes:
        models: name -> parameters.
        lacking: why it cannot be told, or what it leaves out; "" where it is whole.
    """

    phases: tuple[PhaseEstimate, ...] = ()
    models: Mapping[str, int] = field(default_factory=dict)
    lacking: str = ""

    @property
    def total(self) -> float:
        """GiB of the phase that needs most."""
        return max((p.total for p in self.phases), default=0.0)

    def told(self) -> str:
        """One line: phases with their parts, the models, and what is left out."""
        models = ", ".join(f"{name} has {count / 1e9:,.3g} B parameters" for name, count in self.models.items())
        return "; ".join(text for text in (*(p.told() for p in self.phases), models, self.lacking) if text)

    def too_large(self, memory: float) -> str:
        """Why it cannot fit a GPU of ``memory`` GiB, or "": weights, gradients and optimizer alone have no room."""
        for p in self.phases:
            room = memory * (p.share or 1)
            if p.sure > room:
                needs = f"{p.name} needs at least {_size(p.sure)} GiB per GPU for {self._sure(p)}"
                return f"{needs}, and {_size(room)} are there"
        return ""

    def tight(self, memory: float) -> str:
        """Why it may not fit, or "": with everything that is estimated there is no room left."""
        for p in self.phases:
            if p.total > memory * (p.share or 1):
                return f"{p.told()}, and a GPU has {_size(memory)} GiB"
        return ""

    def _sure(self, phase: PhaseEstimate) -> str:
        return ", ".join(f"{p} {_size(s)}" for p, s in phase.parts.items() if s and p.partition(", ")[0] in SURE)


def estimate(family: str, config: Mapping[str, Any], world: int, tables: Mapping[str, Any]) -> Estimate | None:
    """What the job needs on each GPU; None where it uses no GPU, or names no model.

    ``family`` is one of ``FAMILIES``, ``config`` the compiled one, ``world`` its GPUs, ``tables`` as ``load_tables``.
    """
    shapes: dict[str, Known] = {}

    def find(name: str) -> Known:
        if name not in shapes:
            shapes[name] = known(name, tables)
        return shapes[name]

    try:
        phases = FAMILIES[family](Job(config, world, find, recipe_of(config, tables)))
    except UnknownShape as e:
        return Estimate(lacking=f"not estimated: {e}")
    if not phases:
        return None
    models = {k.name: k.shape.parameters(mtp=True) for k in shapes.values()}
    return Estimate(tuple(map(_of_phase, phases)), models, _lacking(phases))


def recipe_of(config: Mapping[str, Any], tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the Megatron-Bridge recipe of a config sets by itself, where the tables have it."""
    section = config.get("recipe")
    target = str(section.get("_target_") or "") if isinstance(section, Mapping) else ""
    found = tables.get("recipe", {}).get(target.rpartition(".")[2], {})
    return found if isinstance(found, Mapping) else {}


def _of_phase(phase: Phase) -> PhaseEstimate:
    found: dict[str, float] = {}
    for load in phase.loads:
        suffix = f", {load.role}" if len(phase.loads) > 1 else ""
        found |= {name + suffix: size / GIB for name, size in parts(load).items()}
    return PhaseEstimate(phase.name, {**found, "framework": FRAMEWORK_GIB}, phase.share)


def _lacking(phases: list[Phase]) -> str:
    blind = any(load.training is not None and not load.training.sequence for p in phases for load in p.loads)
    return "activations are left out, since the config names no sequence length" if blind else ""


def _size(gib: float) -> str:
    return f"{gib:.3g}" if gib < 100 else f"{gib:,.0f}"
