"""Headers of safetensors files, read without torch: u64 length, JSON, then the tensors without a gap.

The checks are those of the format's own readers, so that what passes here loads there. Weights themselves are read by
``nonfinite`` only; a flipped bit in them is what the digests of ``artifact.json`` are for.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from nemotron_dagster.artifacts.types import _files
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.files import printable

MAX_HEADER = 100_000_000
#: Bits per element.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
#: dtype -> the integer of its size, and the bits that are all set in NaN (and infinity, where it has one).
_NOT_FINITE = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}
_MOST_DIMENSIONS = 64
_AGAIN = "Save or copy it again."


class Tensor(NamedTuple):
    """``start`` and ``stop`` count from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    file: Path
    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]
    size: int


class _Malformed(Exception):
    pass


def read_header(file: Path, problems: Problems) -> Header | None:
    """The header of a regular file; None where it is damaged, which is then among ``problems``."""
    try:
        if not file.is_file():  # to open a pipe could wait for ever
            problems.add(_files.why(file) if not file.exists() else f"{file}: is no regular file. {_AGAIN}")
            return None
        with open(file, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            data = _object(_json(f.read(8), f.read, size))
            begin = f.tell()
    except OSError as e:
        problems.add(f"{file}: cannot be read ({e.strerror}). Check its permissions.")
        return None
    except _Malformed as e:
        problems.add(f"{file}: {e}. {_AGAIN}")
        return None
    before = problems.count
    metadata = _metadata(data.pop("__metadata__", None), file, problems)
    tensors = [t for name, entry in data.items() if (t := _tensor(file, name, entry, begin, problems))]
    if problems.count > before:
        return None
    end = begin
    for tensor in sorted(tensors, key=lambda t: (t.start, t.stop)):
        if tensor.start != end:
            what = "overlaps the tensor before it" if tensor.start < end else f"leaves {tensor.start - end:,} bytes out"
            problems.add(f"{file}: tensor {_named(tensor.name)} {what}. {_AGAIN}")
            return None
        end = tensor.stop
    if end != size:
        short = "it was truncated" if end > size else "something was appended"
        problems.add(f"{file}: holds {size:,} bytes where its header says {end:,}: {short}. {_AGAIN}")
        return None
    return Header(file, tuple(tensors), metadata, size)


def _json(head: bytes, read: Any, size: int) -> bytes:
    if len(head) < 8:
        raise _Malformed(f"is truncated: {size} bytes are no safetensors file")
    length = struct.unpack("<Q", head)[0]
    if length > MAX_HEADER:
        raise _Malformed(f"is no safetensors file: its header would be {length:,} bytes long")
    if length > size - 8:
        raise _Malformed(f"is truncated: its header of {length:,} bytes does not fit in {size:,}")
    text: bytes = read(length)
    if not text.startswith(b"{"):
        raise _Malformed("is no safetensors file: its header does not begin with {")
    return text


def _object(text: bytes) -> dict[str, Any]:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) < len(found):
            twice = Counter(name for name, _ in found).most_common(1)[0][0]
            raise _Malformed(f"its header names {_named(twice)} twice")
        return made

    try:
        data = json.loads(text.decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as e:
        raise _Malformed(f"its header is damaged ({printable(e, 200)})") from e
    if not isinstance(data, dict):
        raise _Malformed("its header is no JSON object")
    return data


def _metadata(found: Any, file: Path, problems: Problems) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        problems.add(f"{file}: __metadata__ in its header does not map text to text. {_AGAIN}")
        return {}
    return found


def _tensor(file: Path, name: str, entry: Any, begin: int, problems: Problems) -> Tensor | None:
    wrong = _wrong(entry)
    if wrong is not None:
        problems.add(f"{file}: tensor {_named(name)} {wrong}. {_AGAIN}")
        return None
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    return Tensor(name, entry["dtype"], shape, prod(shape), begin + start, begin + stop)


def _wrong(entry: Any) -> str | None:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "has no dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"has the dtype {printable(dtype, 40)!r}, which safetensors does not know"
    if not _naturals(shape) or len(shape) > _MOST_DIMENSIONS:
        return f"has the shape {printable(shape, 80)}, which is none"
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"has the offsets {printable(offsets, 80)}, which are none"
    held = offsets[1] - offsets[0]
    if prod(shape) * BITS[dtype] != held * 8:
        return f"has the wrong size: {dtype} of {printable(shape, 80)} in {held:,} bytes"
    return None


def _naturals(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 2**63 for n in found)


def _named(name: str) -> str:
    return printable(name, 200) or "''"


def nonfinite(header: Header) -> Iterator[tuple[str, int]]:
    """(name, how many) of the tensors with elements that are NaN or infinite; reads every weight.

    Packed and exotic dtypes (F4, F6, FNUZ, complex) are passed over.
    """
    import numpy as np

    with open(header.file, "rb") as f:
        for tensor in sorted(header.tensors, key=lambda t: t.start):
            if tensor.dtype not in _NOT_FINITE:
                continue
            kind, bits = _NOT_FINITE[tensor.dtype]
            f.seek(tensor.start)
            left, bad = tensor.stop - tensor.start, 0
            while left:
                block = f.read(min(left, 8 << 20))
                if not block:
                    raise OSError(0, "the file became shorter", os.fspath(header.file))
                mask = np.array(bits, dtype=kind)
                bad += int(np.count_nonzero((np.frombuffer(block, kind) & mask) == mask))
                left -= len(block)
            if bad:
                yield tensor.name, bad
