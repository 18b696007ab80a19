"""A Hugging Face model as Megatron's, through Megatron-Bridge: made, run, and saved in Megatron's format.

One process, no parallelism. On a CPU it is made possible by ``cpu_megatron``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _runtime import cpu, cpu_megatron
from _runtime.payload import PayloadError


def enable() -> None:
    """Make Megatron importable; call it before ModelOpt is imported, which looks for Megatron once."""
    cpu_megatron.enable()


@contextlib.contextmanager
def imported(hf: str, seed: int, trust: bool = False) -> Iterator[Any]:
    """The model of a Hugging Face directory as a Megatron model in float32, in evaluation mode.

    Only within the context has Megatron the process group that it needs.

    Raises:
        PayloadError: an architecture that Megatron-Bridge has no counterpart of, or none for a CPU.
    """
    import torch
    from megatron.bridge import AutoBridge
    from megatron.bridge.training.model_load_save import temporary_distributed_context
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.utils import unwrap_model

    with temporary_distributed_context(backend="nccl" if cpu.has_cuda() else "gloo"):
        model_parallel_cuda_manual_seed(seed)
        try:
            bridge = AutoBridge.from_hf_pretrained(hf, torch_dtype=torch.float32, trust_remote_code=trust)
        except ValueError as e:
            reason = " ".join(str(e).split())[:300]
            raise PayloadError("architecture_unsupported", f"{hf}: {reason}", "Take a Llama or Qwen3 model.") from None
        provider = bridge.to_megatron_provider(load_weights=True)
        provider.params_dtype = provider.pipeline_dtype = torch.float32
        provider.bf16 = provider.fp16 = False
        provider.finalize()
        [model] = unwrap_model(provider.provide_distributed_model(wrap_with_ddp=False))
        yield model.eval()


def logits(model: Any, batch: Any) -> Any:
    """Logits of a batch of token ids (rows, tokens): float32, (rows, tokens, vocabulary as it is padded)."""
    import torch

    rows, length = batch.shape
    places = torch.arange(length, device=batch.device).expand(rows, length)
    future = torch.ones(1, 1, length, length, dtype=torch.bool, device=batch.device).triu(1)
    with torch.no_grad():
        return model(batch, places, future).float()


def save(model: Any, directory: Path, hf: str, step: int = 0, trust: bool = False) -> None:
    """Write ``directory/iter_<step>``: weights, state of ModelOpt, tokenizer, run_config.yaml; no optimizer.

    ``hf`` is the model of whose shape and tokenizer it is; run_config.yaml names it.
    """
    from megatron.bridge.training.checkpointing import get_checkpoint_name, save_checkpoint, save_tokenizer_assets
    from megatron.bridge.training.config import CheckpointConfig, ConfigContainer, LoggerConfig
    from megatron.bridge.training.model_load_save import OptimizerConfig
    from megatron.bridge.training.state import GlobalState
    from megatron.bridge.training.tokenizers.config import TokenizerConfig
    from megatron.bridge.training.tokenizers.tokenizer import build_tokenizer
    from megatron.core.utils import get_model_config

    config = get_model_config(model)
    config.hf_model_id = hf
    words = TokenizerConfig(
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=hf,
        hf_tokenizer_kwargs={"trust_remote_code": True} if trust else {},
    )
    state = GlobalState()
    state.cfg = ConfigContainer(
        model=config,
        train=None,
        optimizer=OptimizerConfig(use_distributed_optimizer=False),
        ddp=None,
        scheduler=None,
        dataset=None,
        dist=None,
        logger=LoggerConfig(),
        tokenizer=words,
        checkpoint=CheckpointConfig(
            save=str(directory), save_optim=False, save_rng=False, async_save=False, ckpt_format="torch_dist"
        ),
    )
    state.train_state.step = step
    save_checkpoint(
        state=state,
        model=[model],
        optimizer=None,
        opt_param_scheduler=None,
        num_floating_point_operations_so_far=0,
    )
    save_tokenizer_assets(build_tokenizer(words), words, get_checkpoint_name(str(directory), step, release=False))
