"""Runs a function over many arguments in worker processes.

Not ``multiprocessing``: this is called in processes that have threads (so no fork) and whose main module may be
anybody's script (so no spawn, which would run it again in every worker).
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import IO, Any, TypeVar, cast

from nemotron_dagster.errors import ArtifactError

T = TypeVar("T")
R = TypeVar("R")
MOST = 8
#: glibc keeps freed memory for the next block of rows; giving it back each time costs a quarter of the speed.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(128 << 20), "MALLOC_MMAP_THRESHOLD_": str(128 << 20)}
_START = f"import pickle,sys; sys.path[:]=pickle.load(sys.stdin.buffer); from {__name__} import serve; serve()"


def processors() -> int:
    """How many processes are worth starting."""
    return min(len(os.sched_getaffinity(0)), MOST)


def each(function: Callable[[T], R], arguments: Sequence[T], workers: int, apart: bool = False) -> list[R]:
    """``[function(a) for a in arguments]``; ``function`` is a module's top-level function, its values can be pickled.

    With ``workers`` of 1 it runs here, unless ``apart``: Arrow ends the process that reads certain damaged Parquet.
    An error that ``function`` raises is raised here.

    Raises:
        ArtifactError: a worker died; names what it was reading.
    """
    workers = min(workers, len(arguments))
    if workers <= 1 and not apart:
        return [function(a) for a in arguments]
    waiting: SimpleQueue[tuple[int, T]] = SimpleQueue()
    for item in enumerate(arguments):
        waiting.put(item)
    results: list[Any] = [None] * len(arguments)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for done in [pool.submit(_feed, function, waiting, results) for _ in range(workers)]:
            done.result()
    return cast(list[R], results)


def in_threads(function: Callable[[T], R], arguments: Sequence[T]) -> list[R]:
    """``[function(a) for a in arguments]`` for what leaves the interpreter alone, as reading and numpy do."""
    if len(arguments) < 2:
        return [function(a) for a in arguments]
    with ThreadPoolExecutor(processors()) as pool:
        return list(pool.map(function, arguments))


def _feed(function: Callable[[Any], Any], waiting: SimpleQueue[tuple[int, Any]], results: list[Any]) -> None:
    """Hand arguments to one worker process until none is left."""
    argument: Any = None
    process = subprocess.Popen(
        [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **_MALLOC}
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        _send(process.stdin, sys.path)
        while True:
            index, argument = waiting.get_nowait()
            _send(process.stdin, (function.__module__, function.__qualname__, argument))
            value, error = pickle.load(process.stdout)
            if error is not None:
                while not waiting.empty():  # the other workers stop after what they have in hand
                    waiting.get_nowait()
                raise error
            results[index] = value
    except Empty:
        pass
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as e:
        subject = argument[0] if isinstance(argument, tuple) else argument
        raise ArtifactError(
            f"{subject}: the process that read it ended ({process.wait()}). It is damaged, or memory ran out. "
            "Make it again, or free some memory."
        ) from e
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()


def _send(stream: IO[bytes], value: Any) -> None:
    pickle.dump(value, stream)
    stream.flush()


def serve() -> None:
    """What a worker process does: call what it is sent until its input ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may fall among the results
    while True:
        try:
            module, name, argument = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = getattr(importlib.import_module(module), name)(argument), None
        except Exception as e:
            answer = None, e
        try:
            _send(out, answer)
        except BrokenPipeError:
            return
