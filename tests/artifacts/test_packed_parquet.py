"""Packed Parquet: what a pack must be, splits and their links, and that damage never passes for data."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron_dagster.artifacts import artifact_type, validate
from nemotron_dagster.artifacts.types import _packs, packed_parquet
from nemotron_dagster.errors import ArtifactError

Pack = tuple[list[int], list[int], list[int]]
ONE: Pack = ([5, 6, 7, 8, 9], [1, 0, 1, 1, 0], [0, 2])
FULL: Pack = ([1] * 8, [0, 0, 0, 1, 1, 1, 1, 0], [0])


def shard(file: Path, *packs: Pack, types: tuple = (pa.int32(), pa.uint8(), pa.int32())) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    names = ("input_ids", "loss_mask", "seq_start_id")
    columns = [pa.array([p[i] for p in packs], pa.list_(t)) for i, t in enumerate(types)]
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), file, compression="zstd", row_group_size=2)
    return file


def output(folder: Path) -> Path:
    """The layout of the packing step: shards below runs, relative links to them by split."""
    for i, (split, packs) in enumerate({"train": [ONE, FULL, ONE], "valid": [ONE], "test": [FULL]}.items()):
        shard(folder / f"runs/x/datasets/d/p/shard_{i:06d}.parquet", *packs)
        (folder / f"splits/{split}").mkdir(parents=True)
        link = folder / f"splits/{split}/000000__d__shard_{i:06d}.parquet"
        link.symlink_to(f"../../runs/x/datasets/d/p/shard_{i:06d}.parquet")
    return folder


def test_facts_count_packs_sequences_and_fill_by_split(tmp_path: Path) -> None:
    facts = validate("packed_parquet", output(tmp_path))
    assert {k: facts[k] for k in ("rows", "sequences", "tokens", "trained_tokens", "pack_size", "files")} == {
        "rows": 5, "sequences": 8, "tokens": 31, "trained_tokens": 17, "pack_size": 8, "files": 3,
    }  # fmt: skip
    assert facts["efficiency"] == round(31 / 40, 4) and facts["packing_factor"] == 1.6 and facts["largest_token"] == 9
    assert facts["splits"]["train"] == {"files": 1, "rows": 3, "sequences": 5, "tokens": 18}
    assert facts["lengths"]["edges"][0] == 2 and sum(facts["lengths"]["counts"]) == 8
    loaded = artifact_type("packed_parquet")
    assert "| valid | 1 | 1 | 2 | 5 |" in loaded.tables(facts)["splits"]
    assert loaded.draw(facts, tmp_path) == ["lengths.png", "fill.png", "splits.png"]
    assert loaded.read(tmp_path).count_rows() == 3
    assert validate("packed_parquet", tmp_path / "splits/train")["rows"] == 3


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (([], [], []), "input_ids is empty"),
        (([1, 2], [0], [0]), "loss_mask is not as long"),
        (([1, 2], [0, 0], []), "seq_start_id is empty"),
        (([1, 2], [0, 0], [1]), "does not begin with 0"),
        (([1, 2, 3], [0, 0, 0], [0, 2, 1]), "does not rise"),
        (([1, 2, 3], [0, 0, 0], [0, 1, 1]), "does not rise"),
        (([1, 2, 3], [0, 0, 0], [0, 3]), "does not rise"),
        (([1, 2, 3], [0, 0, 0], [0, 7]), "does not rise"),
        (([1, 2, 3], [0, 0, 0], [0, -5, 2]), "does not rise|negative"),
        (([1, -2], [0, 0], [0]), "negative token"),
        (([1, 2], [2, 0], [0]), "values other than 0 and 1"),
        (([1, 2], [1, 1], [0]), "is not shifted"),
        (([1, 2, 3], [1, 0, 0], [0, 1]), "is not shifted"),
        ((None, [0], [0]), "input_ids has nulls"),
        (([1, None], [0, 0], [0]), "input_ids has nulls"),
    ],
)
def test_a_bad_pack_is_named_by_its_row(tmp_path: Path, pack: Pack, message: str) -> None:
    shard(tmp_path / "shard_000000.parquet", ONE, FULL, ONE, FULL)
    shard(tmp_path / "shard_000001.parquet", ONE, FULL, ONE, FULL, pack, ONE)
    with pytest.raises(ArtifactError, match=f"shard_000001.parquet: row 4: .*({message})"):
        validate("packed_parquet", tmp_path)


@pytest.mark.parametrize("types", [(pa.int64(), pa.uint8(), pa.int32()), (pa.int32(), pa.int32(), pa.int32())])
def test_columns_of_other_types_are_named(tmp_path: Path, types: tuple) -> None:
    shard(tmp_path / "a.parquet", ONE, types=types)
    with pytest.raises(ArtifactError, match=r"a\.parquet: column (input_ids|loss_mask) is list<.*Write list<"):
        validate("packed_parquet", tmp_path)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ArtifactError, match=r"has no column input_ids \(it has x\)"):
        validate("packed_parquet", tmp_path)


def test_links_of_splits_must_lead_to_shards_of_their_own(tmp_path: Path) -> None:
    output(tmp_path)
    train = tmp_path / "splits/train"
    (train / "000001__d__shard_000009.parquet").symlink_to("../../runs/nowhere.parquet")
    (train / "loop.parquet").symlink_to("loop.parquet")
    (train / "absolute.parquet").symlink_to(tmp_path / "runs/x/datasets/d/p/shard_000000.parquet")
    (train / "leak.parquet").symlink_to("../test/000000__d__shard_000002.parquet")
    with pytest.raises(ArtifactError) as error:
        validate("packed_parquet", tmp_path)
    for part in ("nowhere.parquet, which is not there", "leads back to itself", "absolute link", "is in train too"):
        assert part in str(error.value)


def test_splits_without_training_shards_are_refused(tmp_path: Path) -> None:
    output(tmp_path)
    next((tmp_path / "splits/train").iterdir()).unlink()
    with pytest.raises(ArtifactError, match="has no shard in train"):
        validate("packed_parquet", tmp_path)


def test_packs_are_written_from_arrays_and_tables(tmp_path: Path) -> None:
    loaded = artifact_type("packed_parquet")
    packs = [tuple(np.array(part) for part in ONE), FULL] * 3
    loaded.write(iter(packs), tmp_path / "a")
    facts = validate("packed_parquet", tmp_path / "a")
    assert (facts["rows"], facts["tokens"]) == (6, 39)
    table = loaded.read(tmp_path / "a").to_table()
    assert table.schema == _packs.schema() and table["input_ids"].to_pylist()[0] == ONE[0]
    loaded.write(table, tmp_path / "b")
    again = validate("packed_parquet", tmp_path / "b")
    assert again == facts | {"bytes": again["bytes"]}
    with pytest.raises(ArtifactError, match="exists already"):
        loaded.write(table, tmp_path / "b")
    with pytest.raises(ArtifactError, match="no rows to write"):
        loaded.write([], tmp_path / "c")
    with pytest.raises(ArtifactError, match="rows 0 to 0: input_ids does not fit"):
        loaded.write([([2**40], [0], [0])], tmp_path / "d")


def test_processes_see_what_one_sees(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    packs = [(rng.integers(0, 100, 64), np.zeros(64, np.uint8), [0, 10]) for _ in range(300)]
    for i in range(3):
        shard(tmp_path / f"{i}.parquet", *[tuple(map(list, p)) for p in packs])
    alone = validate("packed_parquet", tmp_path)
    monkeypatch.setattr("nemotron_dagster.artifacts.types.packed_parquet._ALONE", 0)
    monkeypatch.setattr("nemotron_dagster.artifacts.types._parallel.processors", lambda: 2)
    assert validate("packed_parquet", tmp_path) == alone


def test_parts_of_a_shard_add_up_and_name_the_shards_rows(tmp_path: Path, monkeypatch) -> None:
    packed_parquet.write(iter([FULL, tuple(map(list, ONE))] * 20), tmp_path / "a", row_group_size=3)
    alone = validate("packed_parquet", tmp_path / "a")
    monkeypatch.setattr("nemotron_dagster.artifacts.types.packed_parquet._PART", 300)
    assert validate("packed_parquet", tmp_path / "a") == alone
    bad = (ONE[0], [2] * len(ONE[0]), ONE[2])
    packed_parquet.write(iter([*[FULL] * 20, bad, *[FULL] * 20]), tmp_path / "b", row_group_size=3)
    with pytest.raises(ArtifactError, match=r"row 20: loss_mask has values") as error:
        validate("packed_parquet", tmp_path / "b")
    assert str(error.value).count("parquet:") == 1
    file = tmp_path / "b/shard_000000.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="cannot be read as Parquet") as error:
        validate("packed_parquet", tmp_path / "b")
    assert str(error.value).count("cannot be read") == 1


def test_damaged_bytes_give_an_artifact_error_or_packs_that_are_whole(tmp_path: Path) -> None:
    rng = random.Random(0)
    file = shard(tmp_path / "shard_000000.parquet", *[ONE, FULL] * 5)
    original = file.read_bytes()
    whole = validate("packed_parquet", tmp_path)
    refused = 0
    for _ in range(20):
        data = bytearray(original)
        if rng.random() < 0.4:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice([1, 2, 8])):
                data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(bytes(data))
        try:
            facts = validate("packed_parquet", tmp_path)
        except ArtifactError:
            refused += 1
        else:
            assert facts["rows"] <= whole["rows"] and facts["tokens"] <= whole["tokens"]
    assert refused > 5
