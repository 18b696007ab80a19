"""What a process of ``_parallel`` runs. It imports little: starting one takes as long as checking tens of megabytes."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from typing import IO, Any


def send(stream: IO[bytes], value: Any) -> None:
    """Write a value for the process at the other end."""
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
            send(out, answer)
        except BrokenPipeError:
            return
