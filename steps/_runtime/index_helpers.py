"""The compiled functions that sample token shards, for AutoModel's Megatron data set.

AutoModel ships them as C++ source and compiles it once per user, which takes a compiler, ninja and a minute.
megatron-core's wheel holds the same source compiled: where it is installed, that is used.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from _runtime.payload import PayloadError

NEEDED = (
    "build_sample_idx_int32",
    "build_sample_idx_int64",
    "build_blending_indices",
    "build_exhaustive_blending_indices",
)
PACKAGE = "nemo_automodel.components.datasets.llm"


def enable() -> None:
    """Spare AutoModel the compiling, or see that it can compile, below the user's own cache directory.

    Raises:
        PayloadError: neither a compiled module nor a compiler.
    """
    try:
        utils: Any = importlib.import_module(f"{PACKAGE}.megatron.megatron_utils")
    except ImportError:
        return  # another AutoModel, which does this in another place
    compiled = prebuilt()
    if compiled is not None:
        for name in ("megatron.megatron_utils", "megatron.helpers", "megatron_dataset"):
            module: Any = importlib.import_module(f"{PACKAGE}.{name}")
            if hasattr(module, "compile_helper"):
                module.compile_helper = lambda: compiled
        print(f"token shards are sampled by {compiled.__file__}", flush=True)
        return
    if not shutil.which(os.environ.get("CXX", "c++")) or not shutil.which("ninja"):
        raise PayloadError(
            "compiler_missing",
            "AutoModel samples token shards with C++ functions that are not compiled here, and there is no C++ "
            "compiler or no ninja to compile them",
            "Install megatron-core (`nemotron env build train` does), or a C++ compiler and ninja.",
        )
    if hasattr(utils, "_HELPER_CACHE_ROOT"):  # below /tmp, under a name that another user could take first
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        utils._HELPER_CACHE_ROOT = cache / "nemotron" / "index_helpers"


def prebuilt() -> ModuleType | None:
    """megatron-core's compiled helpers, loaded without importing megatron.core, which needs far more; else None."""
    spec = importlib.util.find_spec("megatron")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            file = Path(root) / "core" / "datasets" / f"helpers_cpp{suffix}"
            if file.is_file():
                found = importlib.util.spec_from_file_location("helpers_cpp", file)
                assert found and found.loader
                module = importlib.util.module_from_spec(found)
                found.loader.exec_module(module)
                if all(hasattr(module, name) for name in NEEDED):
                    return module
    return None
