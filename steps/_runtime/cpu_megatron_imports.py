"""Imports megatron-core and megatron-bridge where Triton, Transformer Engine and two services of clusters are absent.

Some of their modules import one of these packages as soon as they are imported themselves, and use it only on a GPU or
when a config asks for it. While such a module is imported, and only then, a stand-in takes the place of the package:
whoever asks at any other time whether the package is there is told the truth and takes its own way round it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import typing
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

#: Modules (with all below them), and the packages that they cannot be imported without.
NEEDS = {
    "megatron.core": ("triton",),  # kernels are compiled when first called; only their decorators run at import
    "megatron.bridge.peft.lora_layers": ("transformer_engine",),  # names layer types that only its own models have
    "megatron.bridge.data.energon": ("megatron.energon",),  # loads images and video
    "megatron.bridge.models.qwen_vl.data.energon": ("megatron.energon",),
    "megatron.bridge.diffusion": ("diffusers", "megatron.energon", "imageio", "easydict", "ftfy", "av"),
    "megatron.bridge.training.pretrain": ("nvidia_resiliency_ext",),  # restarts a process that hangs, where that is on
    "megatron.bridge.training.inprocess_restart": ("nvidia_resiliency_ext",),
}


def install() -> None:
    """Let megatron.core and megatron.bridge be imported from now on."""
    if any(isinstance(finder, _Needy) for finder in sys.meta_path):
        return
    if not hasattr(typing, "override"):  # of Python 3.12; it marks a method for type checkers
        typing.override = lambda method: method  # type: ignore[attr-defined]
    # torch looks for Triton while these are imported, and must find that it is absent.
    for name in ("torch._dynamo", "torch._inductor.runtime.triton_compat"):
        importlib.import_module(name)
    sys.meta_path.insert(0, _Needy())


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


class _Needy(MetaPathFinder):
    """Finds the modules of ``NEEDS`` where they are, and has the stand-in in place while they run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        absent = [package for module, packages in NEEDS.items() if _within(name, module) for package in packages]
        spec = PathFinder.find_spec(name, path, target) if absent else None
        if spec and spec.loader:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with ExitStack() as stand_ins:
                    for package in absent:
                        stand_ins.enter_context(_standing_in(package))
                    run(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def _standing_in(package: str) -> Iterator[None]:
    """Let ``package`` and any module below it be imported, unless it is there."""
    if any(isinstance(f, _Absent) and f.package == package for f in sys.meta_path) or _is_there(package):
        yield
        return
    finder = _Absent(package)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if _within(n, package)]:
            del sys.modules[name]


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package around it
        return False


class _Absent(MetaPathFinder, Loader):
    """Makes empty modules below the name of an absent package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if _within(name, self.package) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__version__"] = "0"  # some compare it


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {"__module__": self.__name__})


class _Name(ABCMeta):
    """Whatever is taken from a stand-in: good for annotations, as a base class and as a decorator."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {"__module__": cls.__module__})

    def __getitem__(cls, item: object) -> _Name:
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], FunctionType | type) and not kwargs:
            return args[0]
        return lambda decorated: decorated  # these were the decorator's own arguments
