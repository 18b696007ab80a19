"""Lets Megatron-Bridge convert and train where there is no CUDA device, for models small enough to make that sensible.

Megatron names "cuda" as a device in hundreds of places. They are left as they are: torch is made to take the CPU for
it, in this process. What is computed, and how checkpoints are written, is all Megatron's own. Where CUDA exists
nothing is touched.

A payload that uses it needs ``if __name__ == "__main__"``: checkpoints are written by processes of their own.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable
from typing import Any

from _runtime import cpu, cpu_megatron_imports
from _runtime.payload import PayloadError

WRITTEN_FOR = {"megatron-core": "0.19.2", "megatron-bridge": "0.6.2"}

#: Settings of a model that ask for kernels of the GPU, and what does without.
WITHOUT_KERNELS = {
    "use_cpu_initialization": True,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "bias_dropout_fusion": False,
    "bias_activation_fusion": False,
    "apply_rope_fusion": False,
    "cross_entropy_loss_fusion": False,
    "persist_layer_norm": False,
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    "tp_comm_overlap": False,
    "cuda_graph_impl": "none",
}

_cuda_is_cpu: Any = None


def enable(say: Callable[[str], None] = print) -> bool:
    """Make megatron.core and megatron.bridge importable and run on the CPU, before either is imported.

    Models that AutoBridge describes have layers of plain PyTorch from then on; any other goes through ``local_spec``.
    Returns False, having changed nothing, where CUDA is available; a second call changes nothing more.

    Raises:
        PayloadError: other versions are installed, in which the places to replace may differ.
    """
    global _cuda_is_cpu
    if cpu.has_cuda():
        return False
    if _cuda_is_cpu is not None:
        return True
    for package, version in WRITTEN_FOR.items():
        cpu.check_version(package, version, "megatron_missing")
    cpu_megatron_imports.install()
    _compile_nothing()
    # It shows a traceback for each name of Transformer Engine that it does without.
    logging.getLogger("megatron.bridge.utils.import_utils").addFilter(lambda record: False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*(Apex|Transformer Engine|transformer-engine|modelopt).*")
        _adapt_megatron()
    _adapt_torch()
    _cuda_is_cpu = _redirection()
    _cuda_is_cpu.__enter__()
    versions = ", ".join(f"{package} {version}" for package, version in WRITTEN_FOR.items())
    say(f"no CUDA device: CPU compatibility for {versions} is on")
    return True


def _compile_nothing() -> None:
    """Megatron hands its fused functions to torch.compile, which takes longer than a tiny model's whole training, asks
    for a C++ compiler and leaves worker processes behind.
    """
    import torch._dynamo.config

    torch._dynamo.config.disable = True


def local_spec(provider: Any) -> None:
    """Describe a model's layers in plain PyTorch instead of Transformer Engine.

    Args:
        provider: a GPTModelProvider of Megatron-Bridge, changed in place.

    Raises:
        PayloadError: the architecture has layers that exist for the GPU only.
    """
    from megatron.bridge.models import gpt_provider

    spec = getattr(provider, "transformer_layer_spec", None)
    if spec is None:
        raise PayloadError(
            "cpu_unsupported",
            f"{type(provider).__name__}: Megatron has the layers of this architecture for CUDA devices only",
            "Run where CUDA is available.",
        )
    if spec in (gpt_provider.default_layer_spec, gpt_provider.transformer_engine_layer_spec):
        provider.transformer_layer_spec = gpt_provider.local_layer_spec  # run_config.yaml stores it by its name
    for name, value in WITHOUT_KERNELS.items():
        if hasattr(provider, name):
            setattr(provider, name, value)


def _adapt_megatron() -> None:
    """Replace what Megatron itself decides by asking for CUDA devices, or for Transformer Engine in the wrong way."""
    import megatron.bridge.peft.utils as adapters
    import megatron.bridge.training.initialize as start
    import megatron.bridge.training.post_training.checkpointing as post_training
    import megatron.bridge.training.setup as preparation
    import megatron.core.tensor_parallel.random as randomness
    import torch
    from megatron.bridge import AutoBridge

    describe = AutoBridge.to_megatron_provider

    def to_megatron_provider(self: Any, *args: Any, **kwargs: Any) -> Any:
        provider = describe(self, *args, **kwargs)
        local_spec(provider)
        return provider

    AutoBridge.to_megatron_provider = to_megatron_provider

    # megatron.core has names for the layers of Transformer Engine even without it, so that bridge believes it is there.
    adapters.HAVE_TE, adapters.TECL, adapters.TERL = False, (), ()

    # A loader restores ModelOpt's scales before it reads the weights, and measures what memory happens to hold.
    restore = post_training.load_modelopt_state

    def load_modelopt_state(model: Any, *args: Any, **kwargs: Any) -> None:
        for part in model:
            for weight in part.parameters():
                torch.nan_to_num_(weight.data)
        restore(model, *args, **kwargs)

    post_training.load_modelopt_state = load_modelopt_state

    # The wheel holds the compiled index builder and not the Makefile that this would run.
    start.compile_helpers = lambda: None

    # Training never hands on that it may go without CUDA.
    initialize = start.initialize_megatron

    def initialize_megatron(*args: Any, **kwargs: Any) -> Any:
        return initialize(*args, **{**kwargs, "allow_no_cuda": True})

    preparation.initialize_megatron = initialize_megatron

    # Without a device the states of the parallel random numbers are not made, and weights and dropout need them.
    seed = start._set_random_seed

    def _set_random_seed(*args: Any, **kwargs: Any) -> None:
        count = torch.cuda.device_count
        torch.cuda.device_count = lambda: 1
        try:
            seed(*args, **kwargs)
        finally:
            torch.cuda.device_count = count

    start._set_random_seed = _set_random_seed

    randomness._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)


def _adapt_torch() -> None:
    """Replace the calls of torch.cuda that Megatron makes without asking, and NCCL, by what does that on a CPU."""
    import torch

    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")
    cuda.set_device = lambda device: None
    cuda.synchronize = lambda device=None: None
    cuda.empty_cache = lambda: None
    cuda.reset_peak_memory_stats = lambda device=None: None
    cuda.memory_stats = lambda device=None: {}
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, _no_memory())
    cuda.current_stream = lambda device=None: _Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.Stream = _Stream

    def manual_seed(seed: int) -> None:
        torch.manual_seed(seed)

    for module in (cuda, cuda.random):
        module.get_rng_state = lambda device="cuda": torch.get_rng_state()
        module.set_rng_state = lambda state, device="cuda": torch.set_rng_state(state)
        module.manual_seed = manual_seed

    join = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        join("gloo" if backend in (None, "nccl") else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group


def _no_memory() -> Callable[..., int]:
    return lambda device=None: 0


class _Stream:
    """All work of a CPU is in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _redirection() -> Any:
    """A mode of torch in which "cuda" means the CPU."""
    import torch
    from torch.overrides import TorchFunctionMode

    here = torch.device("cpu")

    def on_cpu(value: Any) -> Any:
        named = isinstance(value, str | torch.device) and str(value).partition(":")[0] == "cuda"
        return here if named else value

    class CudaIsCpu(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.Tensor.cuda:
                return args[0]
            if func is torch.Tensor.type and len(args) == 1 and not kwargs:
                return func(*args).replace("torch.", "torch.cuda.", 1)  # the optimizers accept these only
            if "device" in kwargs:
                kwargs = {**kwargs, "device": on_cpu(kwargs["device"])}
            if func is torch.Tensor.to:
                args = tuple(on_cpu(a) for a in args)
            return func(*args, **kwargs)

    return CudaIsCpu()
