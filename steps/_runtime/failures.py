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
MEMORY_WORDS = ("DefaultCPUAllocator", "out of memory", "allocate memory", "STATUS_ALLOC_FAILED", "std::bad_alloc")
RECOVERY = {
    "disk_full": "Free some space or raise the quota and run again: it continues from the last whole checkpoint. "
    "Fewer checkpoints are kept where the config says so.",
    "oom": "Lower the local batch size or the sequence length, train an adapter, take a smaller model, or more "
    "GPUs. A rerun continues from the last whole checkpoint.",
}


@contextmanager
def told(output: Path, **recovery: str) -> Iterator[None]:
    """Turn a full disk and exhausted memory below into a clear error; anything else passes unchanged.

    ``recovery``: what to do about it, by the error's name, instead of the general advice.

    Raises:
        PayloadError: ``disk_full`` or ``oom``; whole checkpoints below ``output`` stay as they are.
    """
    try:
        yield
    except PayloadError:
        raise
    except BaseException as e:
        error = clear(e, output, **recovery)
        if error is None:
            raise
        raise error from e


def clear(error: BaseException, output: Path, **recovery: str) -> PayloadError | None:
    """What ``told`` raises instead of an error, or None where it lets it pass."""
    advice = {**RECOVERY, **recovery}
    for cause in _causes(error):
        words = " ".join(str(cause).split())
        name = named_in(words)
        if getattr(cause, "errno", None) in FULL or name == "disk_full":
            return PayloadError("disk_full", f"{output}: the disk took no more: {words[:300]}", advice["disk_full"])
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or name == "oom":
            return PayloadError("oom", f"out of memory: {words[:300]}", advice["oom"])
    return None


def named_in(words: str) -> str | None:
    """``disk_full`` or ``oom``, where a message or a log says so."""
    lower = words.lower()
    for name, known in (("disk_full", FULL_WORDS), ("oom", MEMORY_WORDS)):
        if any(w.lower() in lower for w in known):
            return name
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
