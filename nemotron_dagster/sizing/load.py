"""What one model costs on each GPU of a job: the parts of its memory, in bytes.

Every formula is a published one; each function names its own. The result is an estimate: allocators, communication
buffers and kernels' workspaces are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from nemotron_dagster.sizing.shape import Shape

GIB = 1024**3
Share = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class Parallel:
    """How a model is spread. ``world`` is the number of GPUs, ``replicas`` of data-parallel groups that hold a copy."""

    world: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    replicas: int = 1
    sequence: bool = False

    @property
    def data(self) -> int:
        """Ranks over which one copy of the dense weights may be shared: data and context parallel, without replicas."""
        return max(self.world // (self.tp * self.pp * self.replicas), 1)

    @property
    def expert_data(self) -> int:
        """The same of routed experts."""
        return max(self.world // (self.ep * self.etp * self.pp * self.replicas), 1)


@dataclass(frozen=True)
class Training:
    """What training adds: bytes per trainable parameter, and what is kept for the backward pass.

    Attributes:
        shared: what data-parallel ranks share out: nothing (DDP), the optimizer (ZeRO-1), or all (ZeRO-3, FSDP).
        trainable: parameters that are trained where that is not all (LoRA): dense ones, and those of routed experts.
        micro: rows per forward pass; ``sequence`` is their length in tokens.
        recompute: what of the activations is computed anew: nothing, the mixtures of experts, all.
        in_flight: micro batches that the first pipeline stage holds.
    """

    gradient: float = 2
    optimizer: float = 12
    shared: Share = "none"
    trainable: tuple[int, int] | None = None
    micro: int = 1
    sequence: int | None = None
    recompute: Literal["none", "experts", "full"] = "none"
    in_flight: int = 1


@dataclass(frozen=True)
class Load:
    """One model of a job, e.g. what it is to the job (``policy``), and how it is held; ``weight`` is bytes each."""

    role: str
    name: str
    shape: Shape
    parallel: Parallel
    weight: float = 2
    training: Training | None = None
    shared: bool = False


def parts(load: Load) -> dict[str, float]:
    """Bytes per GPU: weights, and for a model that is trained gradients, optimizer, activations, gathered weights."""
    held = weights_held(load)
    found = {"weights": held * load.weight}
    if load.training is None:
        return found
    t = load.training
    p, own = load.parallel, t.trainable is None
    dense, routed = _first_stage(load) if t.trainable is None else _spread(t.trainable, p)
    whole = dense / (p.data if t.shared == "all" else 1) + routed / (p.expert_data if t.shared == "all" else 1)
    slices = dense / (p.data if t.shared != "none" else 1) + routed / (p.expert_data if t.shared != "none" else 1)
    found["weights"] += 0 if own else whole * 2
    found["gradients"] = whole * t.gradient
    found["optimizer"] = slices * t.optimizer
    if load.shared and load.parallel.data > 1:
        found["gathered weights"] = gathered(load)
    if t.sequence:
        found["activations"] = activations(load.shape, load.parallel, t)
    return found


def weights_held(load: Load) -> float:
    """Parameters that a GPU of the fullest pipeline stage keeps.

    Sharded over data-parallel ranks they are ZeRO-3 (https://arxiv.org/abs/1910.02054); expert parallelism shares out
    routed experts only, tensor parallelism everything else (Megatron Core's parallelism guide).
    """
    dense, routed = _first_stage(load)
    if load.shared:
        return dense / load.parallel.data + routed / load.parallel.expert_data
    return dense + routed


def _first_stage(load: Load) -> tuple[float, float]:
    """Dense and routed parameters of a GPU, of a stage with an embedding, before data-parallel ranks share them."""
    s, p = load.shape, load.parallel
    blocks = s.blocks + s.mtp
    dense = sum(s.dense(b) for b in blocks) / p.pp
    ends = 1 if s.tied or p.pp > 1 else 2
    routed = sum(s.routed(b) for b in blocks) / p.pp
    return (dense + ends * s.embedding) / p.tp, routed / (p.ep * p.etp)


def _spread(trainable: tuple[int, int], p: Parallel) -> tuple[float, float]:
    return trainable[0] / (p.tp * p.pp), trainable[1] / (p.ep * p.etp * p.pp)


def gathered(load: Load) -> float:
    """Bytes that FSDP gathers for its computation, in bfloat16: two blocks (one is prefetched), and the embeddings.

    The embedding and the output layer belong to the root, which stays gathered from forward to backward
    (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).
    """
    s, p = load.shape, load.parallel
    largest = max(s.dense(b) / p.tp + s.routed(b) / (p.ep * p.etp) for b in s.blocks)
    return 2 * (2 * largest + s.embedding * (1 if s.tied else 2) / p.tp)


def activations(shape: Shape, parallel: Parallel, training: Training) -> float:
    """Bytes kept for the backward pass, with bfloat16 activations and an attention that keeps no s x s matrix.

    Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models
    (https://arxiv.org/abs/2205.05198), equations 1 to 6, written for any width and without dropout: what each block's
    matrices read is kept, 2 bytes each; for its transformer layer of 4h that is their 34 sbh less the masks. Tensor
    parallelism divides what lies between the matrices (equation 2), with sequence parallelism all of it (equation 4).
    Full recomputation keeps the input of each layer, and one block at work. Logits take 4 sbv (section 4.3) in float32.
    """
    tokens = training.micro * (training.sequence or 0) / parallel.cp
    split = parallel.tp
    outside = split if parallel.sequence else 1
    sizes = {b: 4 * shape.hidden / outside + _inside(shape, b) / split for b in set(shape.blocks + shape.mtp)}
    inputs, largest = 2 * shape.hidden / outside, max(sizes.values())
    if training.recompute == "full":
        kept = inputs * (shape.layers + len(shape.mtp))
    else:
        again = "E" if training.recompute == "experts" else ""
        kept = sum(inputs if b == again else sizes[b] for b in shape.blocks + shape.mtp)
    stage = kept / parallel.pp * training.in_flight + (largest if training.recompute != "none" else 0)
    heads = 1 + len(shape.mtp) // 2
    logits = 4 * shape.vocabulary * heads / split if parallel.pp == 1 else 0
    return tokens * (stage + logits)


def _inside(s: Shape, block: str) -> float:
    """Bytes per token between the first and the last matrix of a block."""
    if block == "*":
        return 2 * (2 * s.queries + 2 * s.keys)
    if block == "-":
        return 2 * s.matrices * s.ffn
    if block == "E":
        wide = s.latent or s.hidden
        return 2 * (s.active * (2 * wide + s.matrices * s.expert_ffn) + s.matrices * s.shared_ffn) + 4 * s.experts
    return 2 * (3 * s.mamba_width + 2 * s.convolved + s.mamba_heads)


def adapter(shape: Shape, rank: int, targets: frozenset[str]) -> tuple[int, int]:
    """Parameters of a LoRA adapter: rank x (inputs + outputs) of each matrix (https://arxiv.org/abs/2106.09685).

    ``targets`` are groups of matrices: ``attention in``, ``attention out``, ``mlp in``, ``mlp out``, ``mamba in``,
    ``mamba out``. The second number is what routed experts have, each an adapter of its own.
    """
    h, dense, routed = shape.hidden, 0, 0
    up, down = (shape.matrices - 1) * ("mlp in" in targets), 1 * ("mlp out" in targets)
    for block in shape.blocks:
        if block == "*":
            dense += (3 * h + shape.queries + 2 * shape.keys) * ("attention in" in targets)
            dense += (shape.queries + h) * ("attention out" in targets)
        elif block == "M":
            dense += (h + shape.mamba_width + shape.convolved + shape.mamba_heads) * ("mamba in" in targets)
            dense += (shape.mamba_width + h) * ("mamba out" in targets)
        else:
            width = shape.ffn if block == "-" else shape.shared_ffn
            dense += (h + width) * (up + down) if width else 0
            routed += shape.experts * ((shape.latent or h) + shape.expert_ffn) * (up + down) * (block == "E")
    return rank * dense, rank * routed


def micro_batches(batch: int | None, micro: int, parallel: Parallel) -> int:
    """Micro batches that one data-parallel rank runs per step; the first of ``pp`` stages holds at most ``pp`` of them.

    One forward, one backward: Narayanan et al., https://arxiv.org/abs/2104.04473.
    """
    ranks = max(parallel.world // (parallel.tp * parallel.pp * parallel.cp), 1)
    count = ceil(batch / (micro * ranks)) if batch else parallel.pp
    return max(1, min(parallel.pp, count))
