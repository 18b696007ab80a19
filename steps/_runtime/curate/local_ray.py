"""A Ray of this process alone: no dashboard, no telemetry, and none of its daemons outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 256 << 20


def prepare_environment() -> None:
    """Set what NeMo Curator and Ray read when they are imported. Call it before either is."""
    os.environ.update(
        RAY_AUTH_MODE="disabled",  # else Ray writes a token that Curator's client does not send
        RAY_USAGE_STATS_ENABLED="0",
        NEMO_TELEMETRY_ENABLED="false",
        HF_HUB_DISABLE_TELEMETRY="1",
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        RAY_DATA_DISABLE_PROGRESS_BARS="1",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_BACKEND_LOG_LEVEL="fatal",  # its files are removed with the session, and what matters is raised
    )
    os.environ["LOGURU_LEVEL"] = "ERROR"
    steps = str(Path(__file__).resolve().parents[2])  # Ray's workers import the stages by name
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [steps, os.environ.get("PYTHONPATH")]))


@contextlib.contextmanager
def local_ray(num_cpus: int, num_gpus: int | None, object_store_memory: int | None) -> Iterator[None]:
    """Start Ray here and stop it at the end. Its daemons die with this process even if that is killed."""
    import ray

    session = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray puts sockets below it: the path must be short
    _adopt_orphans()
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("ray_keeper.py")), session],
        stdin=subprocess.PIPE,
        start_new_session=True,  # a signal to the payload's process group must not reach it
    )
    mine = _children()
    # Ray's SIGTERM handler raises where the signal strikes, which can leave a lock held for good; from another thread
    # Ray sets none. Dying at once is safe: nothing is written yet, and the keeper ends the daemons. The thread stays:
    # Ray's daemons die with the thread that started them.
    starter = ThreadPoolExecutor(1)
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    try:
        starter.submit(
            ray.init,
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,  # None: those that Ray finds
            include_dashboard=False,
            object_store_memory=object_store_memory or OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=session,
        ).result()
        _quiet()
        yield
    finally:
        ray.shutdown()
        starter.shutdown()
        _end(lambda: _children() - mine)
        keeper.communicate()


def _quiet() -> None:
    """Silence progress bars and the plan's printout; errors are raised, not only logged."""
    from loguru import logger
    from ray.data import DataContext

    logger.disable("nemo_curator")
    for name in ("ray.data", "ray._private.worker"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context: Any = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True


def _adopt_orphans() -> None:
    """Make Ray's workers, whose own parent ends before them, children of this process, so that it can end them."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _children() -> set[int]:
    me, found = str(os.getpid()), set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "stat").read_text().rpartition(")")[2].split()[1] == me:
                found.add(int(entry.name))
    return found


def _end(left: Callable[[], set[int]]) -> None:
    """Wait for the children that Ray leaves behind; end those that do not end by themselves."""
    for sig in (0, signal.SIGTERM, signal.SIGKILL):  # 0 only asks
        for pid in left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)
        deadline = time.monotonic() + 2
        while left() and time.monotonic() < deadline:
            for pid in left():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)
