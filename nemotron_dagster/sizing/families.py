"""What the configs of each library say about memory, as loads: one function per family of config keys.

``guardrails.toml`` names a step's family. A function returns the models that are on a GPU at once, by phase; keys that
a config leaves out have the library's default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nemotron_dagster.config.keys import get
from nemotron_dagster.sizing.load import Load, Parallel, Share, Training, adapter, micro_batches
from nemotron_dagster.sizing.models import Known

_BYTES = {"float32": 4, "fp32": 4, "float": 4, "bfloat16": 2, "bf16": 2, "float16": 2, "fp16": 2, "half": 2}
_FULL_TARGETS = frozenset({"attention in", "attention out", "mlp in", "mlp out", "mamba in", "mamba out"})
_TARGET = {
    "linear_qkv": {"attention in"}, "q_proj": {"attention in"}, "k_proj": {"attention in"}, "v_proj": {"attention in"},
    "linear_proj": {"attention out"}, "o_proj": {"attention out"}, "linear_fc1": {"mlp in"}, "gate_proj": {"mlp in"},
    "up_proj": {"mlp in"}, "linear_fc2": {"mlp out"}, "down_proj": {"mlp out"}, "in_proj": {"mamba in"},
    "out_proj": {"mamba out"},
}  # fmt: skip
_LORA = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")  # Megatron-Bridge's own, without target_modules


@dataclass(frozen=True)
class Job:
    """What is asked of: the compiled config, its GPUs, and how to find a model.

    Attributes:
        find: name of a model -> what is known of it; raises UnknownShape.
        recipe: what the Megatron-Bridge recipe of the config sets by itself.
    """

    config: Mapping[str, Any]
    world: int
    find: Callable[[str], Known]
    recipe: Mapping[str, Any]

    def text(self, *keys: str) -> str | None:
        """The first of the keys that holds text."""
        return next((v for k in keys if isinstance(v := get(self.config, k, None), str) and v), None)

    def number(self, *keys: str) -> int | None:
        """The first of the keys that holds a whole number, also one that a variable gave as text."""
        for key in keys:
            value = get(self.config, key, None)
            if isinstance(value, str) and value.strip().isdigit():
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def flag(self, key: str, default: bool = False) -> bool:
        value = get(self.config, key, default)
        return default if value is None else value is True or str(value).lower() == "true"


@dataclass(frozen=True)
class Phase:
    """What is on a GPU at one time; ``share`` of the GPU is taken whatever the models need (vLLM)."""

    name: str
    loads: tuple[Load, ...]
    share: float = 0.0


def automodel(job: Job) -> list[Phase]:
    """NeMo AutoModel: FSDP2 shares out everything over data-parallel ranks, DDP nothing.

    Gradients and Adam's two states have the type of the weights, as torch.optim makes them; an optimizer with master
    weights keeps these and its states in float32.
    """
    name = job.text("model.pretrained_model_name_or_path", "model.config.pretrained_model_name_or_path")
    if name is None or job.world < 1:
        return []
    ddp = (
        "ddp"
        in str(get(job.config, "distributed.strategy", None) or get(job.config, "distributed._target_", "")).lower()
    )
    parallel = Parallel(
        job.world,
        tp=job.number("distributed.tp_size") or 1,
        pp=job.number("distributed.pp_size") or 1,
        cp=job.number("distributed.cp_size") or 1,
        ep=job.number("distributed.ep_size") or 1,
        replicas=job.number("distributed.dp_replicate_size") or 1,
        sequence=job.flag("distributed.sequence_parallel"),
    )
    weight = _BYTES.get(str(job.text("model.torch_dtype", "model.dtype") or "bfloat16").removeprefix("torch."), 2)
    master = job.flag("optimizer.master_weights")
    states = 1 if str(job.text("optimizer._target_") or "").lower().endswith("sgd") else 2
    found = job.find(name)
    peft = get(job.config, "peft", None)
    dim = 16 if peft == "lora" else get(peft, "dim", 8) if isinstance(peft, Mapping) else None
    micro = job.number("step_scheduler.local_batch_size") or 1
    training = Training(
        gradient=weight,
        optimizer=12 if master else states * weight,
        shared="none" if ddp else "all",
        trainable=adapter(found.shape, dim, _targets(peft)) if isinstance(dim, int) else None,
        micro=micro,
        sequence=job.number("packed_sequence.packed_sequence_size", "dataset.seq_length", "dataset.seq_len"),
        recompute="full"
        if get(job.config, "distributed.activation_checkpointing", False) not in (False, None)
        else "none",
        in_flight=micro_batches(job.number("step_scheduler.global_batch_size"), micro, parallel),
    )
    return [Phase("training", (Load("model", found.name, found.shape, parallel, weight, training, not ddp),))]


def megatron_bridge(job: Job) -> list[Phase]:
    """Megatron-Bridge: bfloat16 weights, gradients in float32 (or bfloat16), 12 bytes of optimizer per parameter.

    Float32 master weights and Adam's two states, shared out by the distributed optimizer: 6 + 12/d bytes
    (https://docs.nvidia.com/megatron-core/developer-guide/latest/api-guide/dist_optimizer.html).
    """
    given = job.text("checkpoint.pretrained_checkpoint")
    name = given or job.text("hf_model_path") or job.recipe.get("model")
    if name is None or job.world < 1:
        return []
    parallel = _megatron_sizes(job, "model", "recipe")
    found = job.find(name)
    peft = get(job.config, "peft", None) or get(job.config, "recipe.peft", None) or job.recipe.get("peft")
    rank = get(peft, "dim", 32) if isinstance(peft, Mapping) else 32 if peft == "lora" else None
    micro = job.number("train.micro_batch_size") or 1
    wide = get(job.config, "ddp.grad_reduce_in_fp32", None)
    training = Training(
        gradient=4 if (job.recipe.get("grad_reduce_in_fp32", True) if wide is None else wide) else 2,
        optimizer=12,
        shared="optimizer" if job.flag("ddp.use_distributed_optimizer", True) else "none",
        trainable=adapter(found.shape, rank, _targets(peft)) if isinstance(rank, int) else None,
        micro=micro,
        sequence=job.number("model.seq_length", "dataset.seq_length", "recipe.seq_length", "seq_length")
        or job.recipe.get("seq_length"),
        recompute=_recompute(get(job.config, "model", None) or {}, job.recipe),
        in_flight=micro_batches(job.number("train.global_batch_size"), micro, parallel),
    )
    return [Phase("training", (Load("model", found.name, found.shape, parallel, 2, training),))]


def nemo_rl(job: Job) -> list[Phase]:
    """NeMo-RL: the policy in float32 under FSDP2 (dtensor_cfg), or as Megatron trains it; vLLM's share beside it.

    The policy is loaded in float32 so that its master weights are (nemo_rl/models/policy). DPO runs each pair as two
    rows. A reference policy waits in main memory. A colocated vLLM takes its share while the policy is moved away.
    """
    name = job.text("policy.model_name")
    if name is None or get(job.config, "backend", "nemo_rl") == "trl":
        return []
    cluster = (job.number("cluster.gpus_per_node") or 0) * (job.number("cluster.num_nodes") or 1)
    world = cluster or job.world
    apart = get(job.config, "policy.generation.colocated.enabled", True) is False
    if apart:
        taken = "policy.generation.colocated.resources"
        per_node = job.number(f"{taken}.gpus_per_node") or job.number("cluster.gpus_per_node") or 0
        world -= per_node * (job.number(f"{taken}.num_nodes") or 1)
    if world < 1:
        return []
    found = job.find(name)
    micro = (job.number("policy.train_micro_batch_size") or 1) * (2 if "dpo" in job.config else 1)
    sequence = job.number("policy.max_total_sequence_length")
    if job.flag("policy.megatron_cfg.enabled"):
        load = _megatron_policy(job, found, world, micro, sequence)
    else:
        load = _dtensor_policy(job, found, world, micro, sequence)
    phases = [Phase("training", (load,))]
    vllm = get(job.config, "policy.generation.vllm_cfg", None)
    if isinstance(vllm, Mapping):
        at = "policy.generation.vllm_cfg"
        sizes = Parallel(
            job.number(f"{at}.tensor_parallel_size") or 1,
            tp=job.number(f"{at}.tensor_parallel_size") or 1,
            pp=job.number(f"{at}.pipeline_parallel_size") or 1,
        )
        share = float(vllm.get("gpu_memory_utilization") or 0.9)
        phases.append(Phase("generation", (Load("vLLM", found.name, found.shape, sizes, 2),), share))
    return phases


def convert(job: Job) -> list[Phase]:
    """Conversion by Megatron-Bridge: the weights, as they are laid out; on one process they stay in main memory."""
    name = job.text("hf_model_id", "megatron_path")
    if name is None or job.world < 1 or not job.flag("distributed", True):
        return []
    found = job.find(name)
    weight = _BYTES.get(str(job.text("torch_dtype", "dtype") or "bfloat16"), 2)
    return [Phase("conversion", (Load("model", found.name, found.shape, _sizes(job, ""), weight),))]


def modelopt(job: Job) -> list[Phase]:
    """ModelOpt's Megatron-Bridge scripts: a model that calibrates or is pruned, or a teacher beside its student."""
    student = job.text("args.student_hf_path")
    name = job.text("args.hf_model_id", "args.hf_model_name_or_path", "args.teacher_hf_path")
    if name is None or job.world < 1:
        return []
    parallel = _sizes(job, "args.")
    if student is None:
        found = job.find(name)
        return [Phase("calibration", (Load("model", found.name, found.shape, parallel, 2),))]
    teacher, taught = job.find(name), job.find(student)
    micro = job.number("args.mbs") or 1
    training = Training(
        gradient=4,
        optimizer=12,
        shared="optimizer",
        micro=micro,
        sequence=job.number("args.seq_length"),
        in_flight=micro_batches(job.number("args.gbs"), micro, parallel),
    )
    loads = (
        Load("student", taught.name, taught.shape, parallel, 2, training),
        Load("teacher", teacher.name, teacher.shape, parallel, 2),
    )
    return [Phase("distillation", loads)]


FAMILIES: Mapping[str, Callable[[Job], list[Phase]]] = {
    "automodel": automodel,
    "megatron_bridge": megatron_bridge,
    "nemo_rl": nemo_rl,
    "convert": convert,
    "modelopt": modelopt,
    "none": lambda job: [],
}


def _dtensor_policy(job: Job, found: Known, world: int, micro: int, sequence: int | None) -> Load:
    at = "policy.dtensor_cfg"
    parallel = Parallel(
        world,
        tp=job.number(f"{at}.tensor_parallel_size") or 1,
        cp=job.number(f"{at}.context_parallel_size") or 1,
        ep=job.number(f"{at}.expert_parallel_size") or 1,
        sequence=job.flag(f"{at}.sequence_parallel"),
    )
    lora = get(job.config, f"{at}.lora_cfg", None)
    tuned = isinstance(lora, Mapping) and lora.get("enabled")
    away = job.flag(f"{at}.cpu_offload")
    training = Training(
        gradient=0 if away else 4,
        optimizer=0 if away else 8,
        shared="all",
        trainable=adapter(found.shape, int(lora.get("dim") or 8), _targets(lora)) if tuned and lora else None,
        micro=micro,
        sequence=sequence,
        recompute="full" if job.flag(f"{at}.activation_checkpointing") else "none",
    )
    return Load("policy", found.name, found.shape, parallel, 0 if away else 4, training, shared=True)


def _megatron_policy(job: Job, found: Known, world: int, micro: int, sequence: int | None) -> Load:
    at = "policy.megatron_cfg"
    sized = Job(job.config, world, job.find, {})
    parallel = _megatron_sizes(sized, at)
    section = get(job.config, at, None) or {}
    recompute: Literal["none", "experts", "full"] = "none"
    if job.flag(f"{at}.activation_checkpointing"):
        recompute = _recompute(section, {"recompute_granularity": "full"})
    lora = section.get("peft") if isinstance(section, Mapping) else None
    tuned = isinstance(lora, Mapping) and lora.get("enabled")
    shared: Share = (
        "optimizer" if job.flag(f"{at}.distributed_data_parallel_config.use_distributed_optimizer", True) else "none"
    )
    training = Training(
        gradient=4,
        optimizer=12,
        shared=shared,
        trainable=adapter(found.shape, int(lora.get("dim") or 8), _targets(lora)) if tuned and lora else None,
        micro=micro,
        sequence=sequence,
        recompute=recompute,
        in_flight=parallel.pp,
    )
    return Load("policy", found.name, found.shape, parallel, 2, training)


def _megatron_sizes(job: Job, *sections: str) -> Parallel:
    """Megatron's parallel sizes, from the first of the sections that has each; recipes call context parallelism so."""

    def size(name: str, *more: str) -> int:
        keys = [f"{section}.{n}" for section in sections for n in (name, *more)]
        return job.number(*keys) or int(job.recipe.get(name) or 1)

    return Parallel(
        job.world,
        tp=size("tensor_model_parallel_size"),
        pp=size("pipeline_model_parallel_size"),
        cp=size("context_parallel_size", "context_parallelism"),
        ep=size("expert_model_parallel_size"),
        etp=size("expert_tensor_parallel_size"),
        sequence=any(job.flag(f"{s}.{k}") for s in sections for k in ("sequence_parallel", "sequence_parallelism")),
    )


def _sizes(job: Job, at: str) -> Parallel:
    """The short names of scripts' flags: tp, pp, ep, etp, and those with ``_size``."""
    tp, pp, ep, etp = (job.number(f"{at}{name}", f"{at}{name}_size") or 1 for name in ("tp", "pp", "ep", "etp"))
    return Parallel(job.world, tp=tp, pp=pp, ep=ep, etp=etp)


def _recompute(section: Mapping[str, Any], recipe: Mapping[str, Any]) -> Literal["none", "experts", "full"]:
    granularity = section.get("recompute_granularity", recipe.get("recompute_granularity"))
    modules = section.get("recompute_modules", recipe.get("recompute_modules")) or ()
    return "full" if granularity == "full" else "experts" if granularity == "selective" and "moe" in modules else "none"


def _targets(peft: Any) -> frozenset[str]:
    """Which matrices an adapter is for; all of them where the config matches every linear layer, or excludes some."""
    if not isinstance(peft, Mapping):
        return _FULL_TARGETS
    named = peft.get("target_modules")
    if peft.get("match_all_linear") or peft.get("exclude_modules"):
        return _FULL_TARGETS
    if not named:
        named = _LORA if "_target_" not in peft else ("*_proj",)
    names = [named] if isinstance(named, str) else list(named)
    found = [_TARGET.get(str(n).rpartition(".")[2], set(_FULL_TARGETS) if "*" in str(n) else set()) for n in names]
    return frozenset().union(*found)
