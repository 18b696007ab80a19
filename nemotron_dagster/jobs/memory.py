"""Whether a compiled job fits its GPUs: the estimate, beside what the profile says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemotron_dagster.config.compile import JobSpec
from nemotron_dagster.config.guardrail_rules import load_rules
from nemotron_dagster.errors import PreflightError
from nemotron_dagster.jobs.submission import gpus_per_node, node_count
from nemotron_dagster.project import Project
from nemotron_dagster.sizing.estimate import Estimate, estimate
from nemotron_dagster.sizing.gpus import gpu_memory
from nemotron_dagster.sizing.models import load_tables

#: What to change, by family; the manifest's own word on it, where it has one, comes before.
_FIXES = {
    "automodel": "More GPUs (nodes; distributed.tp_size, distributed.ep_size) share it further.",
    "megatron_bridge": "Use more GPUs (nodes: the optimizer is shared), raise model.tensor_model_parallel_size, "
    "pipeline_ or expert_model_parallel_size, or train an adapter.",
    "nemo_rl": "Use more GPUs, or raise policy's tensor parallel size and that of policy.generation.vllm_cfg.",
    "convert": "Raise tp, pp or ep, and the GPUs with them.",
    "modelopt": "Raise args.tp, args.pp or args.ep (args.tp_size, args.pp_size), and the GPUs with them.",
}


@dataclass(frozen=True)
class Memory:
    """An estimate and the GPU it is for. ``gib`` is None where the profile does not say what its GPUs have."""

    estimate: Estimate
    gib: float | None
    source: str
    fix: str

    def refusal(self) -> str:
        """Why the job cannot fit, with what to change; "" where it may."""
        why = self.estimate.too_large(self.gib) if self.gib is not None else ""
        return f"It does not fit: {why} ({self.source}); this is an estimate of the least. {self.fix}" if why else ""

    def doubt(self) -> str:
        """What may not fit; "" where nothing speaks against it."""
        why = self.estimate.tight(self.gib) if self.gib is not None and not self.refusal() else ""
        return f"It may not fit, by an estimate: {why} ({self.source}). {self.fix}" if why else ""

    def told(self) -> str:
        """One line for a person: the parts, and what speaks against them."""
        here = f"; a GPU has {self.gib:g} ({self.source})" if self.gib is not None else ""
        return " ".join(text for text in (f"{self.estimate.told()}{here}.", self.refusal(), self.doubt()) if text)

    def data(self) -> dict[str, Any]:
        """The same as data, GiB rounded to a hundredth."""
        return {
            "estimate": True,
            "gpu_gib": self.gib,
            "gpu_from": self.source or None,
            "phases": {
                p.name: {"total": round(p.total, 2), "share_of_gpu": p.share or None}
                | {"parts": {k: round(v, 2) for k, v in p.parts.items() if v}}
                for p in self.estimate.phases
            },
            "parameters": dict(self.estimate.models),
            "refusal": self.refusal() or None,
            "doubt": self.doubt() or None,
            "lacking": self.estimate.lacking or None,
        }


def memory_of(project: Project, spec: JobSpec) -> Memory | None:
    """What the job needs on each GPU; None where it uses none, or its step says nothing of memory.

    Raises:
        ConfigError: a guardrails.toml or models.toml is malformed.
    """
    rules = load_rules(project)
    family = str(rules.of_step(spec.step.id).get("memory", "none"))
    world = node_count(spec) * gpus_per_node(spec)
    if family == "none" or world == 0:
        return None
    found = estimate(family, spec.train, world, load_tables(project))
    if found is None:
        return None
    size = gpu_memory(spec.environment, rules.table("gpus"))
    own = next((str(e["recovery"]) for e in spec.step.errors if "memory" in e.get("check", ())), "")
    fix = f"{own} {_FIXES.get(family, '')}".strip()
    return Memory(found, size[0] if size else None, size[1] if size else "", fix)


def check_memory(project: Project, spec: JobSpec) -> Memory | None:
    """``memory_of``, refused where it cannot fit.

    Raises:
        PreflightError: weights, gradients and optimizer alone are larger than the profile's GPU.
    """
    found = memory_of(project, spec)
    if found is not None and (why := found.refusal()):
        raise PreflightError(f"{spec.step.id} -c {spec.config}: {why}")
    return found
