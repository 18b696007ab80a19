"""Megatron's indexed datasets: a ``.bin`` of tokens and the ``.idx`` that says where each sequence lies.

    MMIDIDX\\0\\0 | u64 version 1 | u8 dtype | u64 sequences | u64 documents + 1
    | int32 length per sequence | int64 byte offset per sequence | int64 first sequence per document, and the end

Little-endian throughout. ``BinIdxWriter`` writes what megatron-core's builder writes, byte for byte.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16",
}  # fmt: skip
_CODES = {name: code for code, name in DTYPES.items()}
_UINT16_BELOW = 65_500  # megatron-core's own limit
_CHUNK = 1 << 20
_PART = 1 << 17
_SHORT = 4096


@dataclass(frozen=True)
class Index:
    """The header of an ``.idx``."""

    dtype: str
    itemsize: int
    sequences: int
    documents: int  # entries of the document index: one more than there are documents

    @property
    def size(self) -> int:
        """Bytes that the whole file has."""
        return HEADER.size + 12 * self.sequences + 8 * self.documents


def header(file: Path) -> Index:
    """The header of ``file``.

    Raises:
        ArtifactError: not an index, or one of another version, of tokens that are no integers, or of another size.
    """
    size = file.stat().st_size
    with open(file, "rb") as f:
        head = f.read(HEADER.size)
    if len(head) < HEADER.size:
        raise ArtifactError(f"{file}: has {size} bytes, fewer than its header. It is truncated: make the shard again.")
    magic, version, code, sequences, documents = HEADER.unpack(head)
    if magic != MAGIC:
        raise ArtifactError(f"{file}: is no Megatron index (it begins with {magic[:8]!r}). Name the right file.")
    if version != 1:
        raise ArtifactError(f"{file}: has version {version}; only version 1 is known. Make the shard again.")
    if code not in DTYPES or DTYPES[code].startswith("float"):
        raise ArtifactError(f"{file}: has dtype code {code}, which no token has. Make the shard again.")
    itemsize = {"8": 1, "16": 2, "32": 4, "64": 8}[DTYPES[code].lstrip("uint")]
    found = Index(DTYPES[code], itemsize, sequences, documents)
    if size not in (found.size, found.size + sequences):  # with modes, one byte per sequence, where multimodal
        raise ArtifactError(f"{file}: has {size} bytes where its header says {found.size}. Make the shard again.")
    return found


class BinIdx:
    """A shard that lies on disk: ``len()`` sequences, ``[i]`` a view of the i-th one's tokens.

    Attributes:
        dtype: of the tokens.
        lengths, pointers, document_starts: memory-mapped.
    """

    def __init__(self, prefix: Path | str) -> None:
        """Open ``prefix.idx`` and ``prefix.bin``.

        Raises:
            ArtifactError: a file is missing, or the index is none.
        """
        import numpy as np

        self.prefix = str(prefix)
        index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for file in (index, data):
            if not file.is_file():
                raise ArtifactError(f"{file}: no such file. Name a shard without its extension.")
        self.header = header(index)
        self.dtype = np.dtype(self.header.dtype)
        n, at = self.header.sequences, HEADER.size
        self.lengths = _mapped(index, "<i4", at, n)
        self.pointers = _mapped(index, "<i8", at + 4 * n, n)
        self.document_starts = _mapped(index, "<i8", at + 12 * n, self.header.documents)
        self.tokens = _mapped(data, self.dtype.newbyteorder("<"), 0, data.stat().st_size // self.header.itemsize)

    def __len__(self) -> int:
        return self.header.sequences

    def __getitem__(self, i: int) -> Array:
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.prefix} has {len(self)} sequences, no number {i}")
        first = int(self.pointers[i]) // self.header.itemsize
        view: Array = self.tokens[first : first + int(self.lengths[i])]
        return view


def _mapped(file: Path, dtype: Any, offset: int, count: int) -> Array:
    import numpy as np

    if not count:
        return np.zeros(0, dtype)
    return np.memmap(file, dtype, "r", offset, (count,))


class BinIdxWriter:
    """Writes one shard; a context manager. The files get their names when both are whole.

    Example:
        with BinIdxWriter("out/shard_000000", vocab_size=131072) as shard:
            shard.add([1, 2, 3])                   # a document
            shard.add_batch(tokens, lengths)       # many, one after the other in one array
    """

    def __init__(self, prefix: Path | str, vocab_size: int | None = None, dtype: str | None = None) -> None:
        """``dtype``: of the tokens; by default uint16 for a vocabulary of fewer than 65,500 entries, else int32.

        Raises:
            ArtifactError: an unknown dtype, or a shard that is there already.
        """
        import numpy as np

        small = vocab_size is not None and vocab_size < _UINT16_BELOW
        name = dtype or ("uint16" if small else "int32")
        if name not in _CODES or name.startswith("float"):
            raise ArtifactError(f"dtype {name!r} is none for tokens. Use uint16, int32 or int64.")
        self.prefix, self.dtype = str(prefix), np.dtype(name).newbyteorder("<")
        self._code = _CODES[name]
        fits = int(np.iinfo(name).max)
        self._largest = fits if vocab_size is None else min(fits, vocab_size - 1)
        self._lengths: list[Array] = []
        self._single: list[int] = []
        for suffix in (".bin", ".idx"):
            if os.path.lexists(self.prefix + suffix):
                raise ArtifactError(f"{self.prefix}{suffix}: exists already. Name another shard.")
        Path(self.prefix).parent.mkdir(parents=True, exist_ok=True)
        self._partial = Path(f"{self.prefix}.bin.tmp")
        self._file = open(self._partial, "wb", buffering=1 << 20)  # noqa: SIM115
        self.tokens = 0

    def add(self, document: Sequence[int] | Array) -> None:
        """Add a document of one sequence.

        Raises:
            ArtifactError: a token outside the vocabulary or the dtype.
        """
        self._single.append(self._append(document))

    def add_batch(self, tokens: Array, lengths: Sequence[int] | Array) -> None:
        """Add documents that lie one after the other in ``tokens``.

        Raises:
            ArtifactError: as ``add``, or lengths that do not add up.
        """
        import numpy as np

        sizes = np.asarray(lengths, np.int32)
        if int(sizes.sum(dtype=np.int64)) != len(tokens) or (sizes.size and sizes.min() < 0):
            raise ArtifactError(f"{self.prefix}: lengths do not add up to the {len(tokens)} tokens given. Mend them.")
        self._flush()
        self._append(tokens)
        self._lengths.append(sizes)

    def _append(self, tokens: Sequence[int] | Array) -> int:
        import numpy as np

        array = np.asarray(tokens)
        if array.size:
            if array.dtype.kind not in "iu":
                raise ArtifactError(f"{self.prefix}: tokens are {array.dtype}. Give whole numbers.")
            low, high = int(array.min()), int(array.max())
            if low < 0 or high > self._largest:
                bad = low if low < 0 else high
                raise ArtifactError(
                    f"{self.prefix}: token {bad} is outside 0 to {self._largest}. Check tokenizer and vocab_size."
                )
        array = np.ascontiguousarray(array, self.dtype)
        self._file.write(array.data if array.size else b"")
        self.tokens += array.size
        return int(array.size)

    def _flush(self) -> None:
        import numpy as np

        if self._single:
            self._lengths.append(np.asarray(self._single, np.int32))
            self._single = []

    def close(self) -> None:
        """Write the index and give both files their names."""
        import numpy as np

        self._flush()
        self._file.close()
        lengths = np.concatenate([np.zeros(0, "<i4"), *self._lengths]).astype("<i4")
        pointers = np.zeros(len(lengths), "<i8")
        np.cumsum(lengths[:-1], dtype=np.int64, out=pointers[1:])
        pointers *= self.dtype.itemsize
        index = Path(f"{self.prefix}.idx.tmp")
        with open(index, "wb") as out:
            out.write(HEADER.pack(MAGIC, 1, self._code, len(lengths), len(lengths) + 1))
            for part in (lengths, pointers, np.arange(len(lengths) + 1, dtype="<i8")):
                part.tofile(out)
        os.replace(self._partial, f"{self.prefix}.bin")
        os.replace(index, f"{self.prefix}.idx")

    def discard(self) -> None:
        """Leave nothing of the shard."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> BinIdxWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


@dataclass
class ShardFacts:
    """What a (part of a) shard holds."""

    prefix: str
    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    empty: int = 0
    largest: int = 0
    dtype: str = ""
    lengths: Counter[int] = field(default_factory=Counter)
    problem: str = ""


def check_index(prefix: str) -> ShardFacts:
    """Check a shard's index against itself and against the size of its tokens, some of it at a time."""
    import numpy as np

    facts = ShardFacts(prefix)
    try:
        shard = BinIdx(prefix)
        facts.dtype, facts.sequences = shard.header.dtype, len(shard)
        facts.documents = shard.header.documents - 1
        at = 0
        for first in range(0, len(shard), _CHUNK):
            lengths = np.asarray(shard.lengths[first : first + _CHUNK])
            bad = np.flatnonzero(lengths < 0)
            if bad.size:
                raise ArtifactError(f"{prefix}.idx: sequence {first + bad[0]} has a negative length. Make it again.")
            ends = np.cumsum(lengths, dtype=np.int64) + at
            begins = (ends - lengths) * shard.header.itemsize
            wrong = np.flatnonzero(shard.pointers[first : first + _CHUNK] != begins)
            if wrong.size:
                raise ArtifactError(
                    f"{prefix}.idx: sequence {first + wrong[0]} does not begin where the one before it ends. Make it "
                    "again."
                )
            at = int(ends[-1])
            facts.empty += int(np.count_nonzero(lengths == 0))
            _count_lengths(lengths, facts.lengths)
        facts.tokens = at
        _check_documents(shard, prefix)
        size = os.path.getsize(f"{prefix}.bin")
        if size != at * shard.header.itemsize:
            raise ArtifactError(
                f"{prefix}.bin: has {size} bytes where its index says {at * shard.header.itemsize}. It is "
                f"{'truncated' if size < at * shard.header.itemsize else 'not this index’s'}: make the shard again."
            )
    except ArtifactError as e:
        facts.problem = str(e)
    except (OSError, ValueError) as e:
        facts.problem = f"{prefix}: cannot be read ({e}). Make the shard again."
    return facts


def _count_lengths(lengths: Array, into: Counter[int]) -> None:
    """Count them; long ones in steps of a sixty-fourth, so that there are few counts."""
    import numpy as np

    short = lengths <= _SHORT
    counts = np.bincount(lengths[short], minlength=1)
    found = np.flatnonzero(counts)
    into.update(dict(zip(found.tolist(), counts[found].tolist(), strict=True)))
    long = lengths[~short]
    shift = np.log2(np.maximum(long, 1)).astype(np.int64) - 6
    found, counts = np.unique(long >> shift << shift, return_counts=True)
    into.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def _check_documents(shard: BinIdx, prefix: str) -> None:
    import numpy as np

    starts = shard.document_starts
    if not len(starts) or starts[0] != 0 or starts[-1] != len(shard):
        raise ArtifactError(f"{prefix}.idx: its documents do not cover its sequences. Make the shard again.")
    for first in range(0, len(starts), _CHUNK):
        if (np.diff(starts[first : first + _CHUNK + 1]) < 0).any():
            raise ArtifactError(f"{prefix}.idx: its documents are out of order. Make the shard again.")


def largest_token(task: tuple[str, str, int, int]) -> tuple[int, int]:
    """(smallest, largest) of some tokens of a ``.bin``: (file, dtype, first token, how many).

    It reads and compares without the interpreter's lock, so several threads are as good as processes.
    """
    import numpy as np

    file, dtype, first, count = task
    some = np.empty(_PART, np.dtype(dtype).newbyteorder("<"))  # stays in the cache
    low = high = 0
    with open(file, "rb", buffering=0) as f:
        f.seek(first * some.itemsize)
        while count > 0:
            got = f.readinto(some[: min(count, _PART)].data) // some.itemsize
            if not got:
                break
            high = max(high, int(some[:got].max()))
            if some.dtype.kind == "i":
                low = min(low, int(some[:got].min()))
            count -= got
    return low, high
