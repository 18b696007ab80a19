"""Megatron shards: the bytes, the blend, and that neither damage nor a missing shard is ever trained on."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from nemotron_dagster.artifacts import artifact_type, validate
from nemotron_dagster.artifacts.types._indexed import BinIdx, BinIdxWriter
from nemotron_dagster.errors import ArtifactError

DOCUMENTS = [[5, 6, 7], [], [70_000, 1]]
#: What megatron-core 0.16.1's IndexedDatasetBuilder writes for these documents, with int32: compared byte for byte.
INDEX = (
    b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, 3, 4) + struct.pack("<3i", 3, 0, 2)
    + struct.pack("<3q", 0, 12, 12) + struct.pack("<4q", 0, 1, 2, 3)
)  # fmt: skip
TOKENS = struct.pack("<5i", 5, 6, 7, 70_000, 1)


def output(folder: Path, blend: object = ...) -> Path:
    for i, documents in enumerate((DOCUMENTS, [[1] * 10], [[2, 3]])):
        with BinIdxWriter(folder / f"runs/shard_{i:06d}") as shard:
            for document in documents:
                shard.add(document)
    given = {
        "train": ["1.0", "runs/shard_000000", "0.5", str(folder / "runs/shard_000001")],
        "valid": ["1.0", "runs/shard_000002"],
    }
    (folder / "blend.json").write_text(json.dumps(given if blend is ... else blend))
    return folder


def test_the_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    with BinIdxWriter(tmp_path / "a") as shard:
        for document in DOCUMENTS:
            shard.add(document)
    with BinIdxWriter(tmp_path / "b", vocab_size=131_072) as shard:
        shard.add_batch(np.array([5, 6, 7, 70_000, 1]), [3, 0, 2])
    for name in ("a", "b"):
        assert (tmp_path / f"{name}.idx").read_bytes() == INDEX
        assert (tmp_path / f"{name}.bin").read_bytes() == TOKENS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.idx", "b.bin", "b.idx"]


def test_a_small_vocabulary_is_written_in_two_bytes(tmp_path: Path) -> None:
    with BinIdxWriter(tmp_path / "a", vocab_size=65_499) as shard:
        shard.add([65_498, 1])
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("<2H", 65_498, 1)
    assert (tmp_path / "a.idx").read_bytes()[17] == 8
    assert BinIdx(tmp_path / "a")[0].tolist() == [65_498, 1]


@pytest.mark.parametrize(
    ("options", "document", "message"),
    [
        ({"vocab_size": 10}, [10], "token 10 is outside 0 to 9"),
        ({}, [-1], "token -1 is outside"),
        ({}, [2**31], "outside 0 to 2147483647"),
        ({"dtype": "uint16"}, [65_536], "outside 0 to 65535"),
        ({}, [0.5], "tokens are float64"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_and_leave_nothing(tmp_path: Path, options, document, message) -> None:
    with pytest.raises(ArtifactError, match=message), BinIdxWriter(tmp_path / "a", **options) as shard:
        shard.add(document)
    assert not list(tmp_path.iterdir())


def test_facts_of_a_blend_with_relative_and_absolute_prefixes(tmp_path: Path) -> None:
    facts = validate("binidx", output(tmp_path))
    assert {k: facts[k] for k in ("documents", "tokens", "shards", "dtype", "largest_token", "empty_documents")} == {
        "documents": 5, "tokens": 17, "shards": 3, "dtype": "int32", "largest_token": 70_000, "empty_documents": 1,
    }  # fmt: skip
    assert facts["splits"]["train"] == {"shards": 2, "documents": 4, "tokens": 15, "weight": 1.5}
    assert facts["absolute_prefixes"] == 1 and sum(facts["lengths"]["counts"]) == 5
    loaded = artifact_type("binidx")
    assert loaded.draw(facts, tmp_path) == ["lengths.png", "splits.png"]
    assert "| valid | 1 | 1 | 2 | 1.000 |" in loaded.tables(facts)["splits"]
    (weight, shard), _ = loaded.read(tmp_path)["train"]
    assert weight == 1.0 and len(shard) == 3 and shard[-1].tolist() == [70_000, 1] and shard[1].size == 0
    assert isinstance(shard[0], np.memmap) and shard.document_starts.tolist() == [0, 1, 2, 3]
    for name in ("runs/shard_000000", "runs/shard_000000.idx", "runs/shard_000000.bin"):
        assert validate("binidx", tmp_path / name)["tokens"] == 5


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        (
            {"train": ["1", "runs/shard_000009"]},
            r"shard_000009\.idx: is listed in train and is not there \(a shard that",
        ),
        ({"train": ["0", "runs/shard_000000"]}, "weight of runs/shard_000000 is '0'"),
        ({"train": ["nan", "runs/shard_000000"]}, "weight of runs/shard_000000 is 'nan'"),
        ({"train": ["1", "runs/shard_000000", "x", "runs/shard_000001"]}, "weight of runs/shard_000001 is 'x'"),
        ({"train": ["1", 5]}, "has 5 for a prefix"),
        ({"train": "x"}, "train is not a list"),
        ({"train": ["1", "runs/shard_000000"], "validation": []}, "has the key 'validation'"),
        ({}, "lists no shard"),
        (5, "lists no shard"),
        ([[1]], "train is not a list"),
    ],
)
def test_a_wrong_blend_is_named(tmp_path: Path, blend: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        validate("binidx", output(tmp_path, blend))


@pytest.mark.parametrize("blend", [["1", "runs/shard_000000"], {"train": ["runs/shard_000000"]}])
def test_flat_lists_and_prefixes_alone_are_blends(tmp_path: Path, blend: object) -> None:
    assert validate("binidx", output(tmp_path, blend))["tokens"] == 5


def test_tokens_outside_the_vocabulary_of_the_plan_are_refused(tmp_path: Path) -> None:
    output(tmp_path)
    plan = tmp_path / "runs/plan.json"
    plan.write_text(json.dumps({"resolved_tokenizer": {"vocab_size": 70_001}}))
    assert validate("binidx", tmp_path)["vocab_size"] == 70_001
    plan.write_text(json.dumps({"resolved_tokenizer": {"vocab_size": 70_000}}))
    with pytest.raises(ArtifactError, match=r"shard_000000\.bin: has token 70000; its tokenizer has 70000"):
        validate("binidx", tmp_path)


def set_bytes(file: Path, at: int, data: bytes) -> None:
    content = bytearray(file.read_bytes())
    content[at : at + len(data)] = data
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("idx", lambda f: set_bytes(f, 0, b"X"), "is no Megatron index"),
        ("idx", lambda f: set_bytes(f, 9, b"\2"), "has version 2"),
        ("idx", lambda f: set_bytes(f, 17, b"\7"), "dtype code 7"),
        ("idx", lambda f: set_bytes(f, 18, b"\4"), "where its header says"),
        ("idx", lambda f: set_bytes(f, 18, b"\xff" * 8), "where its header says"),
        ("idx", lambda f: f.write_bytes(f.read_bytes()[:20]), "fewer than its header"),
        ("idx", lambda f: f.write_bytes(f.read_bytes()[:-1]), "where its header says"),
        ("idx", lambda f: set_bytes(f, 34, struct.pack("<i", -3)), "sequence 0 has a negative length"),
        ("idx", lambda f: set_bytes(f, 34, struct.pack("<i", 4)), "sequence 1 does not begin where"),
        ("idx", lambda f: set_bytes(f, 34 + 12 + 24, struct.pack("<q", 1)), "do not cover"),
        ("idx", lambda f: set_bytes(f, 34 + 12 + 24 + 8, struct.pack("<q", 3)), "out of order"),
        ("bin", lambda f: f.write_bytes(f.read_bytes()[:-4]), "has 16 bytes where its index says 20. It is truncated"),
        ("bin", lambda f: f.write_bytes(f.read_bytes() + b"x"), "has 21 bytes where its index says 20"),
        ("bin", lambda f: set_bytes(f, 4, struct.pack("<i", -1)), "negative token -1"),
        ("bin", lambda f: f.unlink(), r"bin: is listed in train and is not there\."),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, damage, message: str) -> None:
    output(tmp_path)
    damage(tmp_path / f"runs/shard_000000.{name}")
    with pytest.raises(ArtifactError, match=message):
        validate("binidx", tmp_path)


def test_threads_see_what_one_sees(tmp_path: Path, monkeypatch) -> None:
    alone = validate("binidx", output(tmp_path))
    monkeypatch.setattr("nemotron_dagster.artifacts.types.binidx._TOKENS", 2)
    monkeypatch.setattr("nemotron_dagster.artifacts.types._parallel.processors", lambda: 2)
    assert validate("binidx", tmp_path) == alone


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_gives_an_artifact_error_or_equal_counts(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    whole = validate("binidx", output(tmp_path))
    files = [tmp_path / "blend.json", *sorted((tmp_path / "runs").iterdir())]
    for _ in range(300):
        file = rng.choice(files)
        original = file.read_bytes()
        data = bytearray(original)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(bytes(data))
        try:
            facts = validate("binidx", tmp_path)
        except ArtifactError:
            pass
        else:
            if file.name != "blend.json":
                assert (facts["documents"], facts["tokens"]) == (whole["documents"], whole["tokens"])
        file.write_bytes(original)


def test_documents_are_written_as_an_artifact(tmp_path: Path) -> None:
    loaded = artifact_type("binidx")
    loaded.write((np.array(d) for d in DOCUMENTS), tmp_path / "a")
    assert (tmp_path / "a/shard_000000.idx").read_bytes() == INDEX
    assert validate("binidx", tmp_path / "a")["tokens"] == 5
    with pytest.raises(ArtifactError, match="exists already"):
        loaded.write([[1]], tmp_path / "a")
    with pytest.raises(ArtifactError, match="no tokens to write"):
        loaded.write([], tmp_path / "b")
    assert not list((tmp_path / "b").iterdir())
    with pytest.raises(IndexError):
        BinIdx(tmp_path / "a/shard_000000")[3]
