"""Our shards beside megatron-core's own: the same bytes, and each side reads what the other wrote."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interpreters import STEPS, payload_python

from nemotron_dagster.artifacts import validate
from nemotron_dagster.artifacts.types._indexed import BinIdx, BinIdxWriter
from nemotron_dagster.errors import ArtifactError

SCRIPT = Path(__file__).with_name("megatron_indexed.py")
RNG = random.Random(7)
#: Name -> dtype, vocabulary, documents of one sequence each.
SHARDS: dict[str, tuple[str, int, list[list[int]]]] = {
    "int32": ("int32", 131_072, [[5, 6, 7], [131_071], [70_000, 1]]),
    "uint16": ("uint16", 65_499, [[65_498, 0], [1, 2, 3, 4]]),
    "int64": ("int64", 2**40, [[2**39, 1], [2]]),
    "empty at the edges": ("int32", 131_072, [[], [1, 2], [], [3], []]),
    "long": ("int32", 131_072, [[RNG.randrange(131_072) for _ in range(RNG.randrange(900))] for _ in range(400)]),
}
#: Only megatron-core writes these: several sequences in a document, and none at all.
NESTED = [[[1, 2], [3]], [], [[4, 5, 6]]]


def megatron(command: str, task: Any, folder: Path) -> Any:
    (folder / "task.json").write_text(json.dumps(task))
    done = subprocess.run(
        [payload_python("train"), "-W", "ignore", SCRIPT, command, folder / "task.json"],
        check=False, capture_output=True, text=True, cwd=folder, timeout=300,
        env=os.environ | {"PYTHONPATH": str(STEPS), "HOME": str(folder), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout) if done.stdout else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every shard as both sides write it."""
    made = tmp_path_factory.mktemp("shards")
    task = {f"{made}/theirs {name}": {"dtype": d, "documents": [[x] for x in x]} for name, (d, _, x) in SHARDS.items()}
    megatron("write", {**task, f"{made}/nested": {"dtype": "int32", "documents": NESTED}}, made)
    for name, (dtype, vocabulary, documents) in SHARDS.items():
        with BinIdxWriter(made / f"one {name}", vocabulary, dtype) as shard:
            for document in documents:
                shard.add(document)
        with BinIdxWriter(made / f"batch {name}", vocabulary, dtype) as shard:
            shard.add_batch(np.concatenate([np.array(d, np.int64) for d in documents]), [len(d) for d in documents])
    with BinIdxWriter(made / "no tokens") as shard:
        shard.add([])
    return made


@pytest.fixture(scope="module")
def read_by_megatron(folder: Path) -> dict[str, Any]:
    return megatron("read", [f"{folder}/one {name}" for name in SHARDS] + [f"{folder}/no tokens"], folder)


@pytest.mark.parametrize("name", SHARDS)
def test_bytes_are_those_of_megatrons_builder(folder: Path, name: str) -> None:
    for suffix in ("bin", "idx"):
        theirs = (folder / f"theirs {name}.{suffix}").read_bytes()
        assert (folder / f"one {name}.{suffix}").read_bytes() == theirs
        assert (folder / f"batch {name}.{suffix}").read_bytes() == theirs


@pytest.mark.parametrize("name", SHARDS)
def test_megatrons_reader_gives_back_what_was_written(folder: Path, read_by_megatron: Any, name: str) -> None:
    dtype, _, documents = SHARDS[name]
    held = read_by_megatron["held"][f"{folder}/one {name}"]
    assert held["sequences"] == held["the same without mmap"] == documents
    assert held["documents"] == list(range(len(documents) + 1)) and held["dtype"] == dtype


@pytest.mark.parametrize("name", SHARDS)
def test_what_megatron_wrote_is_read_and_validated_here(folder: Path, name: str) -> None:
    dtype, _, documents = SHARDS[name]
    shard = BinIdx(folder / f"theirs {name}")
    assert [s.tolist() for s in shard] == documents
    facts = validate("binidx", folder / f"theirs {name}")
    assert facts["dtype"] == dtype and facts["documents"] == len(documents)
    assert facts["tokens"] == sum(map(len, documents)) and facts["empty_documents"] == documents.count([])


def test_documents_of_several_sequences_or_of_none_are_read(folder: Path) -> None:
    shard = BinIdx(folder / "nested")
    assert [s.tolist() for s in shard] == [[1, 2], [3], [4, 5, 6]]
    assert shard.document_starts.tolist() == [0, 2, 2, 3]
    assert validate("binidx", folder / "nested")["documents"] == 3


def test_a_shard_that_megatron_cannot_open_is_refused(folder: Path, read_by_megatron: Any) -> None:
    assert "empty file" in read_by_megatron["held"][f"{folder}/no tokens"]["error"]
    blend = {"train": ["1", "one int32", "1", "no tokens"]}
    (folder / "blend.json").write_text(json.dumps(blend))
    for path in (folder, folder / "no tokens"):
        with pytest.raises(ArtifactError, match=r"no tokens\.bin: has no tokens"):
            validate("binidx", path)


def test_the_dtype_of_a_vocabulary_is_megatrons(tmp_path: Path, read_by_megatron: Any) -> None:
    for i, (vocabulary, dtype) in enumerate(read_by_megatron["dtypes"]):
        with BinIdxWriter(tmp_path / str(i), vocabulary) as shard:
            shard.add([0])
        assert BinIdx(tmp_path / str(i)).header.dtype == dtype
