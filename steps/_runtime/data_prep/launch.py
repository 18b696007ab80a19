"""Where shards are made: in this process, in worker processes of this machine, or as Ray tasks."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from _runtime.data_prep.shards import Receipt, Task, Tell, Work, make
from _runtime.payload import PayloadError

SMALL = 8 << 20  # bytes of input below which starting workers costs more than they save
_tells: Any = None  # a worker's end of the queue of progress


class Launch(Protocol):
    """Makes shards in any order and yields each receipt when its files are in place."""

    def __call__(self, tasks: Sequence[Task], work: Work, tell: Tell) -> Iterator[tuple[Task, Receipt]]: ...


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(cfg: Mapping[str, Any], tasks: Sequence[Task]) -> Launch:
    """The launcher for a config's ``launch`` (auto, processes, ray), ``workers`` and ``ray_address``.

    ``auto`` is Ray where an address is given, by the config or ``RAY_ADDRESS``; else processes, one per core, or this
    process alone where there is little to do.
    """
    kind = cfg.get("launch") or "auto"
    address = cfg.get("ray_address") or os.environ.get("RAY_ADDRESS")
    if kind == "ray" or (kind == "auto" and address):
        return Ray(address, cfg.get("workers"))
    count = min(cfg.get("workers") or cores(), len(tasks))
    small = cfg.get("workers") is None and sum(t.shard.bytes for t in tasks) < SMALL
    return here if count <= 1 or small else Processes(count)


def here(tasks: Sequence[Task], work: Work, tell: Tell) -> Iterator[tuple[Task, Receipt]]:
    """One shard after the other in this process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for task in tasks:
        yield task, make(task, work, tell)


class Processes:
    """Worker processes of this machine. They die with this process, even if it is killed."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, tasks: Sequence[Task], work: Work, tell: Tell) -> Iterator[tuple[Task, Receipt]]:
        context = multiprocessing.get_context("spawn")  # fork would copy threads' locks
        tells = context.Queue()
        threads = max(1, cores() // self.count)  # above 1 where there are fewer shards than cores
        environment = {
            "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
            "RAYON_NUM_THREADS": str(threads),
            "OMP_NUM_THREADS": "1",
            "ARROW_NUM_THREADS": "1",
        }
        pool = ProcessPoolExecutor(self.count, context, _begin, (tells, os.getpid(), environment))
        try:
            largest_first = sorted(tasks, key=lambda t: -t.shard.bytes)  # a long one last would run alone
            waiting: dict[Future[Any], Task] = {pool.submit(_attempt, task, work): task for task in largest_first}
            while waiting:
                finished, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                with contextlib.suppress(queue.Empty):
                    while True:
                        tell(*tells.get_nowait())
                for future in finished:
                    yield waiting.pop(future), _received(future)
        except BrokenProcessPool:
            raise PayloadError(
                "worker_died",
                "a worker process was killed, most likely because memory ran out",
                f"Set workers below {self.count}, or num_shards higher, and run it again: finished shards are kept.",
            ) from None
        finally:
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()  # those that are idle end anyway; after an error the others must not go on
            pool.shutdown(wait=True, cancel_futures=True)
            tells.close()


class Ray:
    """Tasks of a Ray cluster that is there, or of one that is started on this machine."""

    def __init__(self, address: str | None, count: int | None) -> None:
        self.address, self.count = address, count

    def __call__(self, tasks: Sequence[Task], work: Work, tell: Tell) -> Iterator[tuple[Task, Receipt]]:
        from _runtime.curate.local_ray import prepare_environment

        prepare_environment()
        import ray

        with self._cluster(ray):
            remote = ray.remote(num_cpus=1, max_retries=3)(_attempt)
            waiting = {remote.remote(task, work): task for task in tasks}
            while waiting:
                finished, _ = ray.wait(list(waiting), num_returns=1)
                for reference in finished:
                    kind, answer = ray.get(reference)
                    task = waiting.pop(reference)
                    if kind == "error":
                        raise PayloadError(*answer)
                    stats = answer["stats"]
                    tell(stats.get("rows", 0), stats.get("tokens", 0), task.shard.bytes)
                    yield task, answer

    @contextlib.contextmanager
    def _cluster(self, ray: Any) -> Iterator[None]:
        if not self.address or self.address == "local":
            from _runtime.curate.local_ray import local_ray

            with local_ray(num_cpus=self.count or cores(), num_gpus=0, object_store_memory=None):
                yield
            return
        runtime = Path(__file__).resolve().parents[1]
        try:
            ray.init(
                address=self.address,
                log_to_driver=False,
                runtime_env={"py_modules": [str(runtime)], "env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
            )
        except Exception as e:  # Ray raises errors of many kinds here
            reason = (str(e).splitlines() or [type(e).__name__])[0]
            raise PayloadError(
                "ray_unreachable", f"no Ray cluster at {self.address}: {reason}", "Mend ray_address."
            ) from e
        try:
            yield
        finally:
            ray.shutdown()


def _begin(tells: Any, parent: int, environment: Mapping[str, str]) -> None:
    """Prepare a worker: it must not outlive the process that started it, which may be killed at any instant."""
    global _tells
    _tells = tells
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is told once, by the parent
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG; Linux only

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(task: Task, work: Work) -> tuple[str, Any]:
    """``make``, with an error as a value: an exception would lose its fields on the way."""

    def tell(rows: int, tokens: int, size: int) -> None:
        if _tells is not None:
            _tells.put((rows, tokens, size))

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return "receipt", make(task, work, tell)
    except PayloadError as e:
        return "error", (e.name, e.message, e.recovery)


def _received(future: Future[Any]) -> Receipt:
    kind, answer = future.result()
    if kind == "error":
        raise PayloadError(*answer)
    return dict(answer)
