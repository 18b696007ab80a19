"""Artifacts on object stores: a real S3 server, and fsspec's memory file system."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifacts.object_store import BUCKET, s3_server

from nemotron_dagster.artifacts import objects
from nemotron_dagster.artifacts.localize import local_path, localized
from nemotron_dagster.artifacts.manifest import Manifest, differing, read, tally
from nemotron_dagster.artifacts.places import place
from nemotron_dagster.artifacts.store import latest, publish, set_latest, slot
from nemotron_dagster.errors import ArtifactError, ConfigError

ASSET = ("demo", "a")


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as env:
        yield env


@pytest.fixture(params=["s3", "memory"])
def root(request, server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty root, one of each kind of store, with a scratch and a cache directory of its own."""
    from nemotron_dagster.project import find_project

    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NEMOTRON_ARTIFACT_CACHE", str(tmp_path / "cache"))
    find_project.cache_clear()
    yield place(f"{request.param}://{BUCKET}/{tmp_path.name}")
    find_project.cache_clear()


def staged(root, key: str, text: str = "x", files: int = 3, digest: str = "d"):
    place_ = slot(root, ASSET, digest * 64, key)
    (place_.output / "deep").mkdir(parents=True, exist_ok=True)
    for i in range(files):
        (place_.output / "deep" / f"rows{i}.jsonl").write_text(f"{text}{i}\n" * 10)
    (place_.output / "LATEST").unlink(missing_ok=True)
    os.symlink("deep", place_.output / "LATEST")
    table, content, size = tally(place_.output)
    manifest = Manifest("raw_jsonl", "demo/a", list(ASSET), key, path="deep", files=table, content=content, bytes=size)
    return place_, manifest


def test_what_is_published_is_read_back_and_downloaded_as_it_was(root) -> None:
    place_, manifest = staged(root, "one", "hello")
    ref = publish(place_, manifest)
    assert not place_.staging.exists()
    set_latest(root, ASSET, None, ref)
    found = latest(root, ASSET)
    assert found == ref and str(found.path).startswith(str(root)) and not isinstance(found.path, Path)
    assert (found.path / "rows0.jsonl").read_text() == "hello0\n" * 10
    directory = localized(found)
    assert directory == local_path(found) and (directory / "rows2.jsonl").read_text() == "hello2\n" * 10
    assert os.readlink(directory.parent / "LATEST") == "deep"
    assert tally(directory.parent)[1] == manifest.content


def test_a_copy_is_downloaded_once_and_again_when_it_was_damaged(root) -> None:
    ref = publish(*staged(root, "one"))
    told: list[int] = []
    first = localized(ref, told.append)
    assert sum(told) == ref.manifest.bytes
    assert localized(ref, told.append) == first and sum(told) == ref.manifest.bytes
    (first / "rows1.jsonl").unlink()
    assert localized(ref, told.append) == first and (first / "rows1.jsonl").exists()


def test_a_file_changed_on_the_store_is_refused(root) -> None:
    ref = publish(*staged(root, "one"))
    name = ref.folder / "deep/rows0.jsonl"
    name.fs.pipe_file(name.path, b"y0\n" * 10)  # of the same size: only its digest tells
    with pytest.raises(ArtifactError, match=r"rows0\.jsonl: is not the file that was published"):
        localized(read(place(ref.uri)))
    name.fs.pipe_file(name.path, b"longer" * 100)
    with pytest.raises(ArtifactError, match=r"rows0\.jsonl: has 600 bytes, not 30"):
        read(place(ref.uri))


def test_half_an_upload_is_no_artifact_and_is_continued(root, monkeypatch: pytest.MonkeyPatch) -> None:
    place_, manifest = staged(root, "one", files=20)
    real, sent = root.fs.put_file, []

    def put(source: str, target: str) -> None:
        if len(sent) == 8:
            raise OSError("the line is cut")
        sent.append(target)
        real(source, target)

    monkeypatch.setattr(objects, "_UPLOADS", 1)
    monkeypatch.setattr(root.fs, "put_file", put)
    with pytest.raises(ArtifactError, match=r"the line is cut.*running again continues"):
        publish(place_, manifest)
    with pytest.raises(ArtifactError, match="is no published artifact"):
        read(root / "demo/a/one")
    assert latest(root, ASSET) is None
    first = list(sent)
    sent[:] = [""] * 100  # never 8: nothing fails now
    publish(place_, manifest)
    again = [s for s in sent if s]
    assert len(first) == 8 and len(again) == 12 and not set(first) & set(again)
    assert not list(differing(read(root / "demo/a/one")))


def test_a_manifest_is_put_once_and_a_pointer_only_over_what_was_read(root) -> None:
    file = root / "x" / "artifact.json"
    assert objects.create(file, b"first") and not objects.create(file, b"second")
    data, version = objects.snapshot(file)
    assert data == b"first"
    assert objects.swap(file, version, b"third")
    if "s3" in str(root):
        assert not objects.swap(file, version, b"fourth")
        assert objects.snapshot(file)[0] == b"third"
    assert not objects.swap(root / "x" / "artifact.json", "", b"fifth")


@pytest.mark.parametrize("root", ["s3"], indirect=True)  # fsspec's memory has no conditional write
def test_of_concurrent_publishers_of_one_key_one_wins_and_the_other_says_so(root, tmp_path: Path) -> None:
    results: list[object] = []
    barrier = threading.Barrier(4)

    def run(i: int) -> None:
        place_, manifest = staged(root, "one", f"publisher {i}", digest=str(i))
        # As from four machines: no lock of this one stands between them.
        journal = tmp_path / f"journal{i}"
        barrier.wait()
        try:
            results.append(objects.publish(place_.output, journal, place_.final, manifest))
        except ArtifactError as e:
            results.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    won = [r for r in results if not isinstance(r, ArtifactError)]
    assert len(won) == 1 and sum("another process published it" in str(r) for r in results) == 3
    ref = read(root / "demo/a/one")
    assert tally(localized(ref).parent)[1] == ref.manifest.content
    names = root.fs.find((root / "demo/a/one").path)
    assert len({n.split("/data-")[1][:16] for n in names if "/data-" in n}) == 1, "losers leave nothing behind"


def test_a_loser_removes_all_it_uploaded_though_the_winner_removes_it_too(root, monkeypatch) -> None:
    publish(*staged(root, "one", "winner", digest="1"))
    place_, manifest = staged(root, "one", "loser", digest="2")
    real, removed = root.fs.rm, []

    def rm(names: list[str], **how: object) -> None:
        if not removed:  # the winner was quicker with the first of them
            removed.append(names[0])
            real(names[:1])
            root.fs.invalidate_cache()
            raise FileNotFoundError(names[0])
        real(names, **how)

    monkeypatch.setattr(root.fs, "rm", rm)
    with pytest.raises(ArtifactError, match="another process published it"):
        objects.publish(place_.output, place_.staging / "journal", place_.final, manifest)
    names = root.fs.find((root / "demo/a/one").path)
    assert removed and len({n.split("/data-")[1][:16] for n in names if "/data-" in n}) == 1


def test_generations_of_a_pointer_count_every_switch(root) -> None:
    refs = [publish(*staged(root, f"k{i}", str(i))) for i in range(3)]
    threads = [threading.Thread(target=set_latest, args=(root, ASSET, None, r)) for r in refs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    pointer = json.loads((root / "demo/a/latest.json").read_text())
    if "s3" in str(root):
        assert pointer["generation"] == 3
    assert latest(root, ASSET).manifest.key == pointer["uri"]


PUBLISHER = """
import os, sys
from artifacts.test_object_store import ASSET, staged
from nemotron_dagster.artifacts.places import place
from nemotron_dagster.artifacts.store import latest, publish, set_latest
import s3fs, upath  # not used before the fork: its thread would stay behind
for line in sys.stdin:
    if os.fork() == 0:
        root = place(sys.argv[1])
        latest(root, ASSET)
        print(os.getpid(), flush=True)
        for n in range(int(line), 10**9):
            ref = publish(*staged(root, f"v{n}", str(n), files=4))
            set_latest(root, ASSET, None, ref)
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("root", ["s3"], indirect=True)
def test_kill_at_random_instants_of_uploading_leaves_old_or_new_and_never_half(root, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    rng, seen = random.Random(5), -1
    argv = [sys.executable, "-c", PUBLISHER, str(root)]
    began = time.monotonic()
    for n in range(2):
        publish(*staged(root, f"w{n}", f"-{n}", files=4))
    one = (
        time.monotonic() - began
    ) / 2  # seconds for a version here and now: a busy machine takes several times as long
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as helper:
        for _ in range(12):
            helper.stdin.write(f"{seen + 1}\n")
            helper.stdin.flush()
            pid = int(helper.stdout.readline())
            time.sleep(rng.uniform(0.3, 2.5) * one)
            os.kill(pid, signal.SIGKILL)
            ref = latest(root, ASSET)
            if ref is None:
                continue
            number = int(ref.manifest.key[1:])
            assert number >= seen
            seen = number
            assert tally(localized(ref).parent)[1] == ref.manifest.content
        helper.stdin.close()
    assert seen > 2
    for manifest in root.fs.glob(f"{root.path}/demo/a/*/artifact.json"):
        ref = read(place(f"s3://{manifest.removesuffix('/artifact.json')}"))
        assert tally(localized(ref).parent)[1] == ref.manifest.content


def test_a_url_that_cannot_be_used_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="must not hold credentials") as error:
        place("s3://user:hunter2@bucket/x")
    assert "hunter2" not in str(error.value)
    with pytest.raises(ConfigError, match="is no place for artifacts"):
        place("nosuch://bucket/x")


def test_a_store_that_does_not_answer_is_one_message(server, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(ArtifactError, match=r"s3://.*cannot be reached .*Check the address"):
            latest(place(f"s3://{BUCKET}/other"), ASSET)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_local_job_publishes_to_a_bucket_and_the_next_reads_from_it(
    server, project: Path, nemotron, tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}/store"
    (project / "env.toml").write_text(f'[artifacts]\nroot = "{url}"\n')
    env = {**server, "NEMOTRON_ARTIFACT_CACHE": str(tmp_path / "cache")}
    done = nemotron("steps", "run", "demo/rows", cwd=project, **env)
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"demo/rows: raw_jsonl at {url}/demo/rows/" in done.stdout
    done = nemotron("steps", "run", "demo/copy", cwd=add_copy(project), **env)
    assert done.returncode == 0, done.stderr + done.stdout
    ref = latest(place(url), ("demo", "copy"))
    source = latest(place(url), ("demo", "rows"))
    assert ref.manifest.inputs[0]["manifest"] == source.digest and ref.manifest.inputs[0]["uri"] == source.uri
    assert (ref.path / "rows.jsonl").read_text() == (source.path / "rows.jsonl").read_text()
    assert list((tmp_path / "cache").rglob("rows.jsonl")), "the payload read a local copy"
    assert not list((project / ".nemotron").rglob("output")), "nothing stays staged"


def add_copy(project: Path) -> Path:
    from helpers import COUNT, COUNT_TOML, add_step

    toml = COUNT_TOML.replace("demo/count", "demo/copy").replace("training_jsonl", "raw_jsonl")
    script = COUNT.replace("demo/count", "demo/copy")
    add_step(project, "demo/copy", toml, script, default="data: /path/to/train.jsonl\noutput_dir: ./out\n")
    return project


def test_a_job_whose_upload_failed_is_adopted_and_its_output_is_uploaded(
    server, project: Path, nemotron, tmp_path: Path
) -> None:
    import s3fs

    bucket = "made-later"
    (project / "env.toml").write_text(f'[artifacts]\nroot = "s3://{bucket}/store"\n')
    done = nemotron("steps", "run", "demo/rows", cwd=project, **server)
    assert done.returncode == 8 and "cannot be reached" in done.stderr and "running again continues" in done.stderr
    s3fs.S3FileSystem().makedirs(bucket, exist_ok=True)
    done = nemotron("steps", "run", "demo/rows", cwd=project, **server)
    assert done.returncode == 0 and "adopting job" in done.stdout, done.stdout + done.stderr
    ref = latest(place(f"s3://{bucket}/store"), ("demo", "rows"))
    assert ref is not None and ref.manifest.counts["rows"] == 5
