"""What a person can mend although it surfaces deep in a library: a full disk, too little memory."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _runtime.payload import PayloadError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Writers outside Python (safetensors, torch's zip files) hand the reason on as text only.
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large", "os error 28")
MEMORY_WORDS = ("DefaultCPUAllocator", "CUDA out of memory", "CUDNN_STATUS_ALLOC_FAILED", "std::bad_alloc")


@contextmanager
def told(output: Path) -> Iterator[None]:
    """Turn a full disk and exhausted memory below into a clear error; anything else passes unchanged.

    Raises:
        PayloadError: ``disk_full`` or ``oom``; whole checkpoints below ``output`` stay as they are.
    """
    try:
        yield
    except PayloadError:
        raise
    except BaseException as e:
        clear = _clear(e, output)
        if clear is None:
            raise
        raise clear from e


def _clear(error: BaseException, output: Path) -> PayloadError | None:
    for cause in _causes(error):
        words = str(cause)
        if getattr(cause, "errno", None) in FULL or any(w in words for w in FULL_WORDS):
            return PayloadError(
                "disk_full",
                f"{output}: the disk took no more: {' '.join(words.split())[:300]}",
                "Free some space or raise the quota and run again: it continues from the last whole checkpoint. "
                "Fewer checkpoints are kept where the config says so.",
            )
        out = isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError"
        if out or any(w in words for w in MEMORY_WORDS):
            return PayloadError(
                "oom",
                f"out of memory: {' '.join(words.split())[:300]}",
                "Lower the local batch size or the sequence length, train an adapter, take a smaller model, or more "
                "GPUs. A rerun continues from the last whole checkpoint.",
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and what torch's distributed checkpoint collected of each rank."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        failures = getattr(one, "failures", None)
        ranks = [f[0] for f in failures.values() if isinstance(f, tuple)] if isinstance(failures, dict) else []
        waiting += [one.__context__, one.__cause__, *(r for r in ranks if isinstance(r, BaseException))]
