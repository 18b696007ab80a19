"""Lets NeMo AutoModel train where there is no CUDA device, for models small enough to make that sensible.

AutoModel takes its CPU branches by itself where it asks for a device first. In a few places it does not ask: those,
and only those, are replaced here. Where CUDA exists nothing is touched.
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from _runtime.payload import PayloadError

WRITTEN_FOR = "0.7.0"
MAX_PARAMETERS = 300_000_000
ONE_THREAD_PARAMETERS = 2_000_000

# Modules that call apply_model_infrastructure(device=<CUDA device number>) through their own global name.
PLACERS = ("nemo_automodel._transformers.auto_model", "nemo_automodel.recipes.llm.train_ft")


def has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def enable(say: Callable[[str], None] = print) -> bool:
    """Make AutoModel's recipe run on the CPU; returns False, having changed nothing, where CUDA is available.

    Call it before the recipe is imported for the first time.

    Raises:
        PayloadError: another AutoModel is installed, in which the places to replace may differ.
    """
    if has_cuda():
        return False
    check_version("nemo-automodel", WRITTEN_FOR, "automodel_missing")
    import torch

    # torch raises in both where it was built without CUDA; two functions, since torch.compile tells them apart by id.
    torch.cuda.reset_peak_memory_stats = lambda device=None: None
    torch.cuda.current_device = lambda: 0  # only ever handed on as a device number, which _place_on_cpu discards
    for name in PLACERS:
        module = importlib.import_module(name)
        module.apply_model_infrastructure = _place_on_cpu(module.apply_model_infrastructure)  # type: ignore[attr-defined]
    say(f"no CUDA device: CPU compatibility for nemo-automodel {WRITTEN_FOR} is on")
    return True


def check_version(package: str, version: str, missing: str) -> None:
    """Refuse any version of a library but the one whose places to replace are known.

    Raises:
        PayloadError: ``cpu_unsupported``; called ``missing`` where the package is not installed.
    """
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise PayloadError(
            missing, f"{sys.executable}: {package} is not installed", "Run `nemotron env build train`."
        ) from None
    if found != version:
        raise PayloadError(
            "cpu_unsupported",
            f"{package} {found} is installed; running on the CPU is adapted to {version} only",
            f"Install {package}=={version} (`nemotron env build train`), or run where CUDA is available.",
        )


def _place_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def apply_model_infrastructure(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "device": torch.device("cpu")})

    return apply_model_infrastructure


def refuse_large(
    model: str, trust_remote_code: bool = False, key: str = "model.pretrained_model_name_or_path", done: str = "trained"
) -> int | None:
    """Count a model's parameters without loading it; refuse one that is too large for a CPU.

    ``key`` is what names it in the config, ``done`` what would be done with it. Returns None where the count cannot be
    known from the model's config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    try:
        with torch.device("meta"):
            count = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).num_parameters()
    except (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        ImportError,
        OSError,
    ) as e:  # remote code may do anything
        print(f"{model}: parameters not counted ({type(e).__name__}: {e})", file=sys.stderr)
        return None
    if count > MAX_PARAMETERS:
        raise PayloadError(
            "cpu_model_too_large",
            f"{key}={model}: {count / 1e6:,.0f} M parameters; "
            f"without a CUDA device at most {MAX_PARAMETERS / 1e6:,.0f} M are {done}",
            "Run it with a profile whose target has GPUs, or take the `tiny` config to try the step out.",
        )
    return int(count)


def choose_threads(parameters: int | None) -> None:
    """One thread for a toy model, unless ``OMP_NUM_THREADS`` says otherwise.

    Its matrices are too small to share: threads that wait for each other burn a busy machine's time.
    """
    import torch

    if parameters is not None and parameters <= ONE_THREAD_PARAMETERS and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def peak_memory_mib() -> float:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024**2)
