"""Data preparation on a Ray cluster of two nodes: all shards are made by the node that is not the driver's."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from payload_run import REPOSITORY, run_payload

STEP = REPOSITORY / "steps/data_prep/pretrain_prep"
TOKENIZER = {"model": str(REPOSITORY / "steps/_runtime/tiny_llama")}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def holding(mark: str) -> list[int]:
    """Processes whose environment holds ``mark``: daemons of Ray, which leave the session they were started in."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark.encode() in Path("/proc", pid, "environ").read_bytes():
                found.append(int(pid))
    return found


@pytest.fixture
def cluster(data_python: str) -> Iterator[str]:
    """The address of a cluster whose head has no CPU to lend and whose second node has two."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets lie below it: the path must be short
    mark = f"NEMOTRON_TEST_CLUSTER={folder}"
    env = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    env |= dict([mark.split("=")])
    ray, address = str(Path(data_python).with_name("ray")), f"127.0.0.1:{free_port()}"
    common = ["--disable-usage-stats", "--include-dashboard=false", "--object-store-memory=100000000"]
    head = ["--head", "--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}", "--num-cpus=0"]
    second = [f"--address={address}", "--num-cpus=2"]
    try:
        for node in ([*head, f"--temp-dir={folder}", *common], [*second, *common[:1], *common[2:]]):
            done = subprocess.run(
                [ray, "start", *node], env=env, capture_output=True, text=True, timeout=240, check=False
            )
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield address
    finally:
        deadline = time.monotonic() + 30
        while (left := holding(mark)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=True)
        assert not holding(mark)


def test_a_cluster_of_two_nodes_makes_the_bytes_of_one_process(cluster: str, tmp_path: Path, data_python: str) -> None:
    rows = (json.dumps({"text": f"{i} is a number"}) + "\n" for i in range(400))
    (tmp_path / "in.jsonl").write_text("".join(rows))

    def made(out: str, **cfg: Any) -> dict[str, bytes]:
        base = {"blend_path": f"{tmp_path}/in.jsonl", "output_dir": f"{tmp_path}/{out}", "num_shards": 6}
        done = run_payload(STEP, {**base, "tokenizer": TOKENIZER, **cfg}, tmp_path / f"run-{out}", data_python)
        assert done.status == 0, done.stderr
        root = tmp_path / out
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    assert made("cluster", ray_address=cluster) == made("here", workers=1)
