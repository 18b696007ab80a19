"""Artifacts: what is valid, how one is published, and that nothing half-written is ever loaded."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemotron_dagster import artifacts
from nemotron_dagster.artifacts.manifest import Manifest, read, tally
from nemotron_dagster.artifacts.store import artifact_root, latest, publish, set_latest, slot
from nemotron_dagster.errors import ArtifactError, PreflightError
from nemotron_dagster.project import Project

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{bad", r"d\.jsonl:2: is not JSON"),
        ("[1]", r"d\.jsonl:2: is a JSON list, not an object"),
        ({"text": "x"}, r"d\.jsonl:2: has no `messages` \(it has text\)"),
        ({"messages": []}, "not a non-empty list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\] has no role"),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\]\.content"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    lines(tmp_path / "d.jsonl", CHAT, row, CHAT)
    with pytest.raises(ArtifactError, match=message):
        artifacts.validate("training_jsonl", tmp_path)


def test_at_most_twenty_bad_rows_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    lines(tmp_path / "d.jsonl", *["x"] * 50, CHAT)
    with pytest.raises(ArtifactError) as error:
        artifacts.validate("training_jsonl", tmp_path)
    assert str(error.value).count("is not JSON") == 20
    assert "… and 30 more" in str(error.value) and "50 of 51 rows" in str(error.value)


def test_facts_count_rows_over_shards_compressed_ones_too(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", CHAT, "", CHAT)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as f:
        f.write(json.dumps(CHAT) + "\n")
    facts = artifacts.validate("training_jsonl", tmp_path)
    assert (facts["rows"], facts["files"], facts["roles"]) == (3, 2, {"user": 3, "assistant": 3})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nope.jsonl", "no such file"),
        (lambda p: p, "without .*jsonl files"),
        (lambda p: lines(p / "e.jsonl"), "has no rows"),
        (lambda p: p / "*.jsonl", "matches no file"),
    ],
)
def test_missing_or_empty_data_is_said(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        artifacts.validate("raw_jsonl", make(tmp_path))


def test_a_truncated_gzip_is_said(tmp_path: Path) -> None:
    data = gzip.compress(json.dumps(CHAT).encode() * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"a\.jsonl\.gz: cannot be read"):
        artifacts.validate("raw_jsonl", tmp_path)


def checkpoint(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    return path


def test_a_checkpoint_is_described_without_torch(tmp_path: Path) -> None:
    facts = artifacts.validate("checkpoint_hf", checkpoint(tmp_path))
    assert (facts["parameters"], facts["dtypes"], facts["architecture"]) == (6, {"F32": 6}, "LlamaForCausalLM")
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: os.truncate(p / "model.safetensors", 60), "truncated|holds"),
        (lambda p: os.truncate(p / "model.safetensors", 3), "truncated"),
        (lambda p: (p / "model.safetensors").unlink(), "no .*safetensors weights"),
        (lambda p: (p / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda p: (p / "config.json").unlink(), "no config.json"),
        (lambda p: (p / "config.json").write_text("{"), "config.json: is not JSON"),
        (lambda p: (p / "model.safetensors.index.json").write_text('{"weight_map": {"w": "m-2.safetensors"}}'), "m-2"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage, message: str) -> None:
    damage(checkpoint(tmp_path))
    with pytest.raises(ArtifactError, match=message):
        artifacts.validate("checkpoint_hf", tmp_path)


@pytest.mark.parametrize(
    ("score", "message"),
    [({"value": float("nan"), "n": 3}, "not a finite number"), ({"value": 1.0, "n": 0}, "scored on 0 samples")],
)
def test_results_must_be_finite_and_counted(tmp_path: Path, score: dict, message: str) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"scores": [{"task": "t", "metric": "acc", **score}]}))
    with pytest.raises(ArtifactError, match=message):
        artifacts.validate("eval_results", tmp_path)


def staged(root: Path, key: str, text: str = "x"):
    place = slot(root, ("demo", "a"), "d" * 64, key)
    place.output.mkdir(parents=True)
    (place.output / "rows.jsonl").write_text(text)
    files, content, size = tally(place.output)
    return place, Manifest("raw_jsonl", "demo/a", ["demo", "a"], key, files=files, content=content, bytes=size)


def test_publishing_moves_the_staged_output_and_keeps_the_previous_version(tmp_path: Path) -> None:
    for key in ("one", "two"):
        set_latest(tmp_path, ("demo", "a"), None, publish(*staged(tmp_path, key, key)))
    ref = latest(tmp_path, ("demo", "a"))
    assert ref is not None and (ref.path / "rows.jsonl").read_text() == "two"
    assert (read(tmp_path / "demo/a/one").path / "rows.jsonl").read_text() == "one"
    assert not list((tmp_path / "demo/a/.staging").iterdir())


def test_an_artifact_changed_after_publishing_or_without_manifest_is_refused(tmp_path: Path) -> None:
    ref = publish(*staged(tmp_path, "one"))
    (ref.path / "rows.jsonl").write_text("longer than before")
    with pytest.raises(ArtifactError, match=r"rows\.jsonl: has 18 bytes, not 1, so it was changed"):
        read(Path(ref.uri))
    (Path(ref.uri) / "artifact.json").unlink()
    with pytest.raises(ArtifactError, match="is no published artifact"):
        read(Path(ref.uri))


def test_an_output_directory_in_use_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    with pytest.raises(PreflightError, match="not empty"):
        slot(tmp_path, ("a",), "d" * 64, "k", tmp_path / "mine")


PUBLISHER = """
import sys
from pathlib import Path
from nemotron_dagster.artifacts.manifest import Manifest, tally
from nemotron_dagster.artifacts.store import publish, set_latest, slot
root, key = Path(sys.argv[1]), sys.argv[2]
place = slot(root, ("demo", "a"), "d" * 64, key)
place.output.mkdir(parents=True, exist_ok=True)
print("go", flush=True)
for i in range(40):
    (place.output / f"rows{i}.jsonl").write_text(key * 1000)
files, content, size = tally(place.output)
ref = publish(place, Manifest("raw_jsonl", "demo/a", ["demo", "a"], key, files=files, content=content, bytes=size))
set_latest(root, ("demo", "a"), None, ref)
print("done", flush=True)
"""


def test_kill_at_random_instants_of_publishing_leaves_old_or_new_and_never_half(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", PUBLISHER, str(tmp_path), "start"], check=True, stdout=subprocess.DEVNULL)
    current, killed = "start", 0
    rng = random.Random(7)
    for i in range(25):
        key = f"k{i}"
        argv = [sys.executable, "-c", PUBLISHER, str(tmp_path), key]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        finished = "done" in process.stdout.read()
        process.wait()
        process.stdout.close()
        killed += not finished
        ref = latest(tmp_path, ("demo", "a"))
        assert ref is not None and ref.manifest.key in (current, key)
        assert len(ref.manifest.files) == 40
        current = ref.manifest.key
        for folder in (tmp_path / "demo/a").iterdir():
            if folder.is_dir() and folder.name != ".staging":
                assert read(folder).manifest.key == folder.name  # published whole, even if not yet current
        shutil.rmtree(tmp_path / "demo/a/.staging", ignore_errors=True)
    assert killed > 5, "the kills must hit the publishing, not come after it"


def test_the_artifact_root_comes_from_env_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env.toml").write_text(f'[artifacts]\nroot = "{tmp_path}/elsewhere"\n')
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    assert artifact_root(Project(None, tmp_path)) == tmp_path / "elsewhere"
