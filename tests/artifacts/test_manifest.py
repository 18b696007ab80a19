"""artifact.json: its schema, its digests, its stand-alone reader, and what it tells of tokenizers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from artifacts.making import folder, made, staged
from helpers import REPO

from nemotron_dagster.artifacts import digests, fingerprints, reader
from nemotron_dagster.artifacts.digests import file_digest, tally
from nemotron_dagster.artifacts.schema import json_schema, schema_text

SCHEMA_FILE = REPO / "docs" / "artifact.schema.json"


def test_the_schema_in_the_docs_is_the_one_of_the_code() -> None:
    text = SCHEMA_FILE.read_text(encoding="utf-8")
    assert text == schema_text(), "python -m nemotron_dagster.artifacts.schema > docs/artifact.schema.json"


def test_what_is_published_satisfies_the_schema_and_nonsense_does_not(tmp_path: Path) -> None:
    data = json.loads((folder(made(tmp_path, "one", partition="p")) / "artifact.json").read_text())
    check = jsonschema.Draft202012Validator(json_schema())
    check.validate(data)
    for wrong in ({"files": {"a": [-1, "0" * 16]}}, {"content": "short"}, {"asset": "demo/a"}, {"bytes": None}):
        assert list(check.iter_errors({**data, **wrong})), wrong


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_a_digest_is_xxh3_64_of_all_bytes(tmp_path: Path, size: int) -> None:
    import xxhash

    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    assert file_digest(tmp_path / "f") == xxhash.xxh3_64_hexdigest(data)


def test_a_table_holds_files_and_links_below_all_folders_but_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "artifact.json").write_text("data of the payload's own")
    (tmp_path / "artifact.json").write_text("{}")
    (tmp_path / "b" / "c" / "x").write_text("12")
    os.symlink("b/c", tmp_path / "LATEST")
    table, content, size = tally(tmp_path)
    assert list(table) == ["LATEST", "b/artifact.json", "b/c/x"]
    assert table["LATEST"] == [0, "-> b/c"] and size == 27
    os.unlink(tmp_path / "LATEST")
    assert tally(tmp_path)[1] != content


def test_a_pipe_in_an_output_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a pipe, socket or device"):
        tally(tmp_path)


def aged(directory: Path) -> None:
    """Let files look as old as those of a job that was resumed; their ctime cannot be set, so wait past it instead."""
    for file in directory.iterdir():
        os.utime(file, (1e9, 1e9))


def test_unchanged_files_of_a_resumed_directory_are_not_read_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(digests, "_SETTLED", 0)
    out, cache = tmp_path / "out", tmp_path / "digests.json"
    out.mkdir()
    for i in range(5):
        (out / f"f{i}").write_text(f"content {i}")
    aged(out)
    time.sleep(0.05)
    first = tally(out, cache)
    seen: list[str] = []
    real = digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda p: (seen.append(Path(p).name), real(p))[1])
    assert tally(out, cache) == first and seen == []
    (out / "f1").write_text("CONTENT 1")  # the same size
    os.utime(out / "f1", (1e9, 1e9))  # and the same time
    os.replace(shutil.copy2(out / "f2", tmp_path / "copy"), out / "f2")  # another inode, otherwise the same
    (out / "f3").unlink()
    second = tally(out, cache)
    assert sorted(seen) == ["f1", "f2"] and second == tally(out) and second != first


def test_a_file_written_a_moment_ago_is_read_again(tmp_path: Path, monkeypatch) -> None:
    """Two writes in one tick of the clock leave the same time, so young files are never taken from the cache."""
    out, cache = tmp_path / "out", tmp_path / "digests.json"
    out.mkdir()
    (out / "f").write_text("one")
    tally(out, cache)
    assert json.loads(cache.read_text()) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"f": 1}', '{"f": [1, 2]}', '{"f": [[1], "x"]}'])
def test_a_broken_cache_of_digests_costs_time_and_nothing_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f").write_text("one")
    (tmp_path / "cache").write_text(text)
    assert tally(tmp_path / "out", tmp_path / "cache") == tally(tmp_path / "out")


def read_alone(directory: Path, tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of the reader by an interpreter that sees no installed package and none of ours."""
    alone = Path(shutil.copy(REPO / "nemotron_dagster/artifacts/reader.py", tmp_path / "reader.py"))
    argv = [sys.executable, "-I", "-S", str(alone), str(directory), *more]
    return subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False)


def test_the_reader_works_alone_and_tells_what_is_wrong(tmp_path: Path) -> None:
    source = made(tmp_path / "root", "src", asset=("demo", "s"))
    ref = made(tmp_path / "root", "one", inputs=[source], sequence_length=4096, counts={"rows": 15, "files": 3})
    done = read_alone(folder(ref), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("demo/a  raw_jsonl  version one", ref.digest, "rows       15", "input      in0: demo/s", "4096"):
        assert text in done.stdout
    (folder(ref) / "rows0.jsonl").unlink()
    (folder(ref) / "rows1.jsonl").write_text("x")
    file = folder(ref) / "artifact.json"
    file.write_text(file.read_text().replace('"tiny"', '"default"'))
    done = read_alone(folder(ref), tmp_path, "--json")
    assert done.returncode == 8
    problems = json.loads(done.stdout)["problems"]
    assert [p.partition(":")[0] for p in problems] == ["rows0.jsonl", "rows1.jsonl", "artifact.json"]
    assert read_alone(tmp_path, tmp_path).returncode == 8


def test_reader_and_engine_agree_on_what_they_read(tmp_path: Path) -> None:
    ref = made(tmp_path, "one")
    data = reader.load(ref.uri)
    assert reader.problems(ref.uri, data) == [] and data.pop("manifest_sha256") == ref.digest
    assert data == json.loads(json.dumps(vars(ref.manifest)))


def test_data_inherit_the_tokenizer_of_the_one_input_that_has_it() -> None:
    inputs = [{"tokenizer": "t1", "chat_template": ""}, {"tokenizer": "", "chat_template": "c1"}]
    found = fingerprints.of({"pack_size": 4096}, {}, inputs)
    assert found == {"tokenizer": "t1", "chat_template": "c1", "sequence_length": 4096}
    two = [*inputs, {"tokenizer": "t2"}]
    assert fingerprints.of({"tokenizer_fingerprint": None}, {}, two)["tokenizer"] == ""
    assert fingerprints.of({}, {"tokenizer_fingerprint": "told"}, two)["tokenizer"] == "told"
    assert fingerprints.of({"tokenizer_fingerprint": "own"}, {"tokenizer_fingerprint": "told"})["tokenizer"] == "own"


def test_a_manifest_tells_the_partition_and_counts_it_was_given(tmp_path: Path) -> None:
    _, manifest = staged(tmp_path, "one")
    assert replace(manifest, counts=fingerprints.counts(3, {"rows": 5, "loss": 0.5, "best": True})).counts == {
        "rows": 5,
        "files": 3,
    }
