"""data_prep/pretrain_prep stopped, damaged, spread over workers and fed from a store: the same bytes come out."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from payload_run import REPOSITORY, Outcome, run_payload

STEP = REPOSITORY / "steps/data_prep/pretrain_prep"


class Prep:
    """A corpus and the runs over it."""

    def __init__(self, folder: Path, python: str, rows: int) -> None:
        self.folder, self.python, self.data = folder, python, folder / "data"
        self.data.mkdir()
        self.more("a", rows)

    def more(self, name: str, rows: int) -> None:
        lines = (json.dumps({"text": f"{name} {i} " + "the clock strikes " * (i % 40)}) for i in range(rows))
        (self.data / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    def config(self, out: str, **cfg: Any) -> dict[str, Any]:
        tokenizer = {"model": str(REPOSITORY / "steps/_runtime/tiny_llama")}
        base = {"blend_path": str(self.data), "output_dir": str(self.folder / out), "num_shards": 12}
        return {**base, "tokenizer": tokenizer, **cfg}

    def run(self, out: str, env: dict[str, str] | None = None, **cfg: Any) -> Outcome:
        done = run_payload(STEP, self.config(out, **cfg), self.folder / f"run-{out}", self.python, **(env or {}))
        assert done.status == 0, done.stderr
        return done

    @contextlib.contextmanager
    def started(self, out: str, **cfg: Any) -> Iterator[subprocess.Popen[bytes]]:
        """The step in a process group of its own, which is gone afterwards."""
        config = self.folder / f"{out}.yaml"
        config.write_text(json.dumps(self.config(out, **cfg)))
        command = [self.python, str(STEP / "step.py"), "--config", str(config)]
        env = {**os.environ, "NEMOTRON_MESSAGES": str(self.folder / f"{out}.messages")}
        process = subprocess.Popen(command, env=env, start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def content(self, out: str) -> dict[str, bytes]:
        root = self.folder / out
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def prep(tmp_path: Path, data_python: str) -> Prep:
    return Prep(tmp_path, data_python, 2000)


def test_a_run_that_is_told_to_end_keeps_its_shards_and_leaves_no_worker(prep: Prep) -> None:
    prep.more("b", 30_000)
    prep.run("calm", workers=2)
    with prep.started("out", workers=2) as process:
        deadline = time.monotonic() + 60
        while not (kept := list((prep.folder / "out").rglob("receipts/*.json"))):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) != 0
        while True:  # the group is empty when the last worker is gone
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not (prep.folder / "out/blend.json").exists()
    before = {f: f.stat().st_mtime_ns for f in kept}
    prep.run("out", workers=2)
    assert {f: f.stat().st_mtime_ns for f in kept} == before
    assert prep.content("out") == prep.content("calm")


def test_shards_that_were_damaged_are_made_again_and_no_others(prep: Prep) -> None:
    prep.run("out")
    whole = prep.content("out")
    (place,) = (prep.folder / "out").glob("runs/*/datasets/*/*")
    with (place / "shard_000001.bin").open("r+b") as file:
        file.write(b"\x7f")
    os.truncate(place / "shard_000003.idx", 40)
    (place / "shard_000004.bin").unlink()
    (place / "receipts/shard_000006.json").write_text('{"status": "comp')
    (place / "receipts/shard_000007.json").unlink()
    kept = {i: (place / f"shard_{i:06d}.bin").stat().st_ino for i in (0, 2, 5, 8, 9, 10, 11)}
    outcome = prep.run("out")
    assert prep.content("out") == whole
    assert {i: (place / f"shard_{i:06d}.bin").stat().st_ino for i in kept} == kept
    redone = sum(json.loads(whole[f"{place.relative_to(prep.folder / 'out')}/receipts/shard_{i:06d}.json"])["stats"]
                 ["tokens"] for i in (1, 3, 4, 6, 7))  # fmt: skip
    assert outcome.facts["made_tokens"] == redone


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(prep: Prep) -> None:
    prep.run("calm", num_shards=3, workers=1)
    largest = max(len(data) for name, data in prep.content("calm").items() if name.endswith(".bin"))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, resource.RLIM_INFINITY))

    config, messages = prep.folder / "full.yaml", prep.folder / "full.messages"
    config.write_text(json.dumps(prep.config("out", num_shards=3, workers=1)))
    command = [prep.python, str(STEP / "step.py"), "--config", str(config)]
    env = {**os.environ, "NEMOTRON_MESSAGES": str(messages)}
    done = subprocess.run(command, env=env, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    error = json.loads(messages.read_text().splitlines()[-1])
    assert error["name"] == "disk_full" and "Traceback" not in done.stderr
    prep.run("out", num_shards=3, workers=1)
    assert prep.content("out") == prep.content("calm")


def test_here_in_workers_and_on_ray_the_same_bytes_are_made(prep: Prep) -> None:
    prep.run("here", workers=1)
    prep.run("workers", workers=3)
    prep.run("ray", launch="ray", workers=2)
    assert prep.content("here") == prep.content("workers") == prep.content("ray")


def test_an_object_store_and_a_file_url_give_what_the_directory_gives(prep: Prep) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        env = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
               "AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        store = boto3.client("s3", endpoint_url=url, **keys)
        store.create_bucket(Bucket="texts")
        store.put_object(Bucket="texts", Key="web/data/a.jsonl", Body=(prep.data / "a.jsonl").read_bytes())
        stored = prep.run("store", env=env, blend_path="s3://texts/web/data")
    finally:
        server.stop()
    prep.run("url", blend_path=f"file://{prep.data}")
    plain = prep.run("plain")

    def shards(out: str) -> dict[str, bytes]:
        return {Path(n).name: data for n, data in prep.content(out).items() if n.endswith((".bin", ".idx"))}

    assert shards("url") == shards("plain") and len(shards("plain")) == 24
    assert {k: stored.facts[k] for k in ("rows", "tokens")} == {k: plain.facts[k] for k in ("rows", "tokens")}
    assert not (prep.folder / "store/.staged").exists()
