"""Megatron's indexed datasets: tokens one after the other in ``.bin``, where each document lies in ``.idx``.

    MMIDIDX\\0\\0 | u64 version 1 | u8 dtype | u64 sequences | u64 documents + 1
    | int32 length per sequence | int64 byte offset per sequence | int64 first sequence per document, and the end

Little-endian throughout, a sequence per document: the bytes that megatron-core's own builder writes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

_HEADER = struct.Struct("<9sQBQQ")
_CODES = {"int32": 4, "int64": 5, "uint16": 8}
Tokens = np.ndarray[Any, Any]


class Writer:
    """Writes ``.bin`` as documents come, ``.idx`` at the end; a context manager, which leaves the files as they are.

    Only lengths are kept in memory, 4 bytes a document.
    """

    def __init__(self, bin_file: str, idx_file: str, dtype: str) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._code, self._idx = _CODES[dtype], idx_file
        self._lengths: list[Tokens] = []
        self._out = open(bin_file, "wb", buffering=1 << 20)  # noqa: SIM115 - closed by __exit__
        self.documents = self.tokens = 0

    def add(self, documents: Sequence[Tokens]) -> None:
        """Append documents, an array of ids each; those that do not have the file's dtype are cast."""
        if not documents:
            return
        tokens = np.ascontiguousarray(np.concatenate(documents), self.dtype)
        self._out.write(tokens.data)
        self._lengths.append(np.fromiter(map(len, documents), "<i4", len(documents)))
        self.documents += len(documents)
        self.tokens += len(tokens)

    def finish(self) -> None:
        """Write the index."""
        self._out.close()
        lengths = np.concatenate([np.zeros(0, "<i4"), *self._lengths])
        offsets = np.zeros(len(lengths), "<i8")
        np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
        offsets *= self.dtype.itemsize
        with open(self._idx, "wb") as out:
            out.write(_HEADER.pack(b"MMIDIDX\x00\x00", 1, self._code, len(lengths), len(lengths) + 1))
            for part in (lengths, offsets, np.arange(len(lengths) + 1, dtype="<i8")):
                out.write(part.data)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
