"""Publishing below a local root: whole or not at all, by one, and nothing foreign is loaded."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from artifacts.making import ASSET, folder, made, staged

from nemotron_dagster.artifacts.manifest import load, read, tally, write_json
from nemotron_dagster.artifacts.store import latest, publish, set_latest, slot
from nemotron_dagster.errors import ArtifactError

CHILD = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

#: Publishes version after version until it is killed; one process per line of stdin, forked so that it starts at once.
PUBLISHER = """
import os, sys
from artifacts.making import made
from pathlib import Path
import xxhash
for line in sys.stdin:
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        for n in range(int(line), 10**9):
            made(Path(sys.argv[1]), f"v{n}", str(n), files=8)
    os.wait()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def whole(directory: Path) -> int:
    """The number of a published version, every byte of which is as its publisher wrote it."""
    ref = read(directory)
    assert tally(directory)[1] == ref.manifest.content
    number = int(ref.manifest.key[1:])
    assert f'"{number} 3"' in (directory / "rows3.jsonl").read_text()
    return number


def test_200_kills_at_random_instants_of_publishing_leave_old_or_new_and_never_half(tmp_path: Path) -> None:
    rng = random.Random(11)
    current, checked, staging_left = -1, set(), 0
    argv = [sys.executable, "-c", PUBLISHER, str(tmp_path)]
    asset = tmp_path.joinpath(*ASSET)
    with subprocess.Popen(argv, env=CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as helper:
        assert helper.stdin is not None and helper.stdout is not None
        highest = -1
        for _ in range(200):
            first = highest + 1
            helper.stdin.write(f"{first}\n")
            helper.stdin.flush()
            pid = int(helper.stdout.readline())
            time.sleep(rng.uniform(0, 0.06))
            os.kill(pid, signal.SIGKILL)
            while alive(pid):  # its last write may be on its way
                time.sleep(0.001)
            staging_left += any((asset / ".staging").glob("*/output")) if asset.exists() else 0
            ref = latest(tmp_path, ASSET)
            number = -1 if ref is None else int(ref.manifest.key[1:])
            found = {p.name for p in asset.iterdir() if p.name.startswith("v")} if asset.exists() else set()
            for name in found - checked:
                highest = max(highest, whole(asset / name))
            checked |= found
            assert number == current or first <= number <= highest, "the old one, or one of this publisher's"
            assert number >= highest - 1 or number == current, "at most its last one is not yet pointed to"
            current = number
        helper.stdin.close()
    assert staging_left > 20, "the kills must hit the publishing"
    assert {whole(p) for p in asset.iterdir() if p.name.startswith("v")} == set(range(highest + 1))


def test_of_processes_that_publish_one_key_one_wins_and_none_corrupts(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from artifacts.making import staged
from nemotron_dagster.artifacts.store import publish, set_latest
from nemotron_dagster.errors import ArtifactError
root, me = Path(sys.argv[1]), sys.argv[2]
ready = [staged(root, f"k{n}", f"by {me}", digest=f"{me}k{n:02}.") for n in range(30)]
print("ready", flush=True)
sys.stdin.readline()
won = []
for n, (place, manifest) in enumerate(ready):
    try:
        set_latest(root, ("demo", "a"), None, publish(place, manifest))
        won.append(n)
    except ArtifactError as e:
        assert "is published already, with other content" in str(e), e
print(*won, flush=True)
"""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(i)],
            env=CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for i in range(4)
    ]  # fmt: skip
    for run in runs:
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    won = [[int(n) for n in run.communicate()[0].split()] for run in runs]
    assert all(run.returncode == 0 for run in runs)
    assert sorted(n for mine in won for n in mine) == list(range(30)), "each key has one winner"
    for i, mine in enumerate(won):
        for n in mine:
            assert f'"by {i} 0"' in (tmp_path / f"demo/a/k{n}/rows0.jsonl").read_text()
            assert tally(tmp_path / f"demo/a/k{n}")[1] == load(tmp_path / f"demo/a/k{n}").manifest.content
    pointer = json.loads((tmp_path / "demo/a/latest.json").read_text())
    assert pointer["generation"] == 30 and latest(tmp_path, ASSET) is not None


def test_publishing_the_same_content_twice_returns_what_is_there(tmp_path: Path) -> None:
    first = publish(*staged(tmp_path, "one"))
    place, manifest = staged(tmp_path, "one", digest="e")
    assert publish(place, manifest) == first and not place.staging.exists()


def test_a_directory_of_files_without_manifest_is_never_overwritten(tmp_path: Path) -> None:
    place, manifest = staged(tmp_path, "one")
    place.final.mkdir()
    (place.final / "mine.txt").write_text("precious")
    with pytest.raises(ArtifactError, match=r"holds files that no manifest describes\. Move it away"):
        publish(place, manifest)
    assert (place.final / "mine.txt").read_text() == "precious" and place.output.is_dir()


def test_partitions_have_versions_and_pointers_of_their_own(tmp_path: Path) -> None:
    for partition in ("2024-01", "a/b"):
        made(tmp_path, "one", partition, partition=partition)
    for partition in ("2024-01", "a/b"):
        ref = latest(tmp_path, ASSET, partition)
        assert ref is not None and f'"{partition} 0"' in (folder(ref) / "rows0.jsonl").read_text()
    assert latest(tmp_path, ASSET) is None
    assert (tmp_path / "demo/a/partition=a%2Fb/one/artifact.json").is_file()


def test_a_root_can_be_moved_as_a_whole(tmp_path: Path) -> None:
    made(tmp_path / "old", "one")
    os.rename(tmp_path / "old", tmp_path / "new")
    ref = latest(tmp_path / "new", ASSET)
    assert ref is not None and ref.uri == str(tmp_path / "new/demo/a/one")


def test_an_output_that_the_user_named_is_found_where_it_lies(tmp_path: Path) -> None:
    place = slot(tmp_path / "root", ASSET, "d" * 64, "one", tmp_path / "mine")
    staging, manifest = staged(tmp_path / "root", "one")
    place.staging.mkdir(parents=True)
    os.rename(staging.output, place.output)
    set_latest(tmp_path / "root", ASSET, None, publish(place, manifest))
    ref = latest(tmp_path / "root", ASSET)
    assert ref is not None and ref.uri == str(tmp_path / "mine")


def pointer_of(root: Path, **changes: object) -> None:
    file = root / "demo/a/latest.json"
    write_json(file, {**json.loads(file.read_text()), **changes})


def foreign(root: Path) -> None:
    other = made(root, "two", asset=("demo", "b"))
    shutil.rmtree(root / "demo/a/one")
    shutil.copytree(folder(other), root / "demo/a/one")
    pointer_of(root, manifest=other.digest)


def renamed(root: Path) -> None:
    os.rename(root / "demo/a/one", root / "demo/a/other")
    pointer_of(root, uri="other")


def edited(root: Path) -> None:
    file = root / "demo/a/one/artifact.json"
    write_json(file, {**json.loads(file.read_text()), "facts": {"rows": 10**9}})


def newer(root: Path) -> None:
    file = root / "demo/a/one/artifact.json"
    write_json(file, {**json.loads(file.read_text()), "schema": 99, "unheard": "of"})


def escaping(root: Path) -> None:
    file = root / "demo/a/one/artifact.json"
    write_json(file, {**json.loads(file.read_text()), "path": "../../secret"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (foreign, "is an artifact of another asset, demo/b. Materialize demo/a again, or put back"),
        (renamed, "was moved here: it was published as one. Materialize demo/a again"),
        (lambda r: shutil.move(r / "demo/a/one", r / "gone"), "is no published artifact.*or move it back"),
        (lambda r: pointer_of(r, type="binidx"), r"is a raw_jsonl, but latest\.json names a binidx\. Materialize"),
        (edited, r"its artifact\.json is not the one that was published"),
        (newer, "has schema 99; this version reads up to 1. Upgrade"),
        (escaping, "a file name leads out of the artifact.*Run the step"),
        (lambda r: (r / "demo/a/one/rows1.jsonl").unlink(), r"rows1\.jsonl: is missing, so it was changed after"),
        (lambda r: (r / "demo/a/one/rows1.jsonl").write_text("x"), r"rows1\.jsonl: has 1 bytes, not \d+, so"),
        (lambda r: (r / "demo/a/one/artifact.json").write_text("{"), r"json: is not a manifest .*Run the step"),
        (lambda r: (r / "demo/a/one/artifact.json").write_text("[]"), "is not a manifest"),
        (lambda r: (r / "demo/a/latest.json").write_text("{"), r"latest\.json: is broken .* Materialize demo/a again"),
        (lambda r: (r / "demo/a/latest.json").write_text("[]"), r"latest\.json: is broken"),
    ],
)  # fmt: skip
def test_what_is_not_what_was_published_is_refused_with_what_to_do(tmp_path: Path, damage, message: str) -> None:
    made(tmp_path, "one")
    assert latest(tmp_path, ASSET) is not None
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        latest(tmp_path, ASSET)


def test_pointers_and_manifests_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    ref = made(tmp_path, "one")
    (tmp_path / "demo/a/latest.json").write_text(
        json.dumps({"type": "raw_jsonl", "uri": ref.uri, "content": ref.manifest.content})
    )
    file = folder(ref) / "artifact.json"
    kept = (
        "type", "producer", "asset", "key", "path", "config", "config_digest", "code_digest", "inputs", "facts",
        "reported", "files", "content", "bytes", "created", "job", "schema",
    )  # fmt: skip
    old = json.loads(file.read_text())
    file.write_text(json.dumps({k: old[k] for k in kept}))
    found = latest(tmp_path, ASSET)
    assert found is not None and found.manifest.counts == {} and found.manifest.partition is None
