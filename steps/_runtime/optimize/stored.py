"""Reads quantized weights as ModelOpt has exported them, to see what they are worth.

transformers has no loader for ModelOpt's format; vLLM, TensorRT-LLM and SGLang have, on GPUs. Beside a quantized
``X.weight`` lie ``X.weight_scale`` (one, per row, per group of a row, or per square block), ``X.pre_quant_scale``, by
which the input is multiplied, and what concerns activations only. int4 comes as two rows to a byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

BLOCK = 128
KINDS = ("weight_scale", "pre_quant_scale")
OF_ACTIVATIONS = ("input_scale", "weight_scale_2")


def weights(directory: Path) -> dict[str, Any]:
    """Name -> float32 tensor of every weight, scales multiplied back in."""
    from safetensors.torch import load_file

    files = sorted(directory.glob("*.safetensors"))
    held = {name: tensor for file in files for name, tensor in load_file(file).items()}
    scales = {n.rpartition(".")[0] for n in held if n.endswith(".weight_scale")}
    made = {}
    for name, tensor in held.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module in scales:
            made[name] = _restored(tensor, {k: held.get(f"{module}.{k}") for k in KINDS})
        elif kind not in (*KINDS, *OF_ACTIVATIONS):
            made[name] = tensor.float()
    return made


def formats(directory: Path) -> dict[str, int]:
    """Number format -> how many weights are stored in it."""
    from safetensors import safe_open

    found: dict[str, int] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as held:
            for name in held.keys():  # noqa: SIM118 - the handle is no mapping
                if name.endswith(".weight"):
                    kind = str(held.get_slice(name).get_dtype())
                    found[kind] = found.get(kind, 0) + 1
    return found


def _restored(stored: Any, scales: dict[str, Any]) -> Any:
    import torch

    values = _unpacked(stored) if stored.dtype == torch.uint8 else stored.float()
    rows, columns = values.shape
    scale = scales["weight_scale"].float()
    if scale.dim() == 4:  # (row blocks, 1, column blocks, 1)
        scale = scale[:, 0, :, 0].repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    elif scale.dim() == 2:  # (rows, groups)
        scale = scale.repeat_interleave(columns // scale.shape[1], 1)
    elif scale.dim() == 1:
        scale = scale[:, None]
    values = values * scale
    if scales["pre_quant_scale"] is not None:
        values = values * scales["pre_quant_scale"].float()[None, :]
    return values


def _unpacked(packed: Any) -> Any:
    """int4 of two output rows in each byte, the even row in the low half: (rows / 2, columns) -> (rows, columns)."""
    import torch

    low, high = (packed & 0x0F).to(torch.int8), (packed >> 4).to(torch.int8)
    both = torch.stack([low, high], dim=1).view(-1, packed.shape[1])
    return torch.where(both > 7, both - 16, both).float()
