"""Benchmarks and what they are made from: every question is answerable, every document is text."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron_dagster.artifacts import artifact_type, validate
from nemotron_dagster.errors import ArtifactError

QUESTION = {
    "question_id": 1, "question": "2 + 2?", "options": ["3", "4", "5"], "answer_index": 1, "answer": "B",
    "cot_content": "-", "src": "-", "category": "arithmetic",
}  # fmt: skip
OTHER = {**QUESTION, "question_id": 2, "answer_index": 0, "answer": "A", "category": "geometry"}
MCQ = "mcq_benchmark_parquet"


def save(folder: Path, *rows: dict) -> Path:
    """As the step lays it out: a folder per experiment, with the cache of its stages beside the result."""
    made = folder / "run"
    (made / "stage_cache").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), made / "benchmark.parquet")
    for name in ("seed.parquet", "benchmark_raw.parquet", "stage_cache/generated_questions.parquet"):
        pq.write_table(pa.table({"anything": [1]}), made / name)
    return folder


def test_facts_tell_categories_and_which_letters_are_right(tmp_path: Path) -> None:
    facts = validate(MCQ, save(tmp_path, QUESTION, OTHER))
    assert facts["categories"] == {"arithmetic": 1, "geometry": 1} and facts["answers"] == {"A": 1, "B": 1}
    assert (facts["rows"], facts["files"], facts["options"]) == (2, 1, {"3": 2})
    loaded = artifact_type(MCQ)
    assert loaded.figures(facts) == {"rows": 2, "categories": 2}
    assert ("answer_index", "int64", "The right one, counted from 0.") in loaded.columns(facts)
    assert loaded.draw(facts, tmp_path) == ["categories.png", "answers.png"]
    assert loaded.read(tmp_path).num_rows == 2
    for path in (tmp_path / "run", tmp_path / "run/benchmark.parquet", tmp_path / "*/benchmark.parquet"):
        assert validate("benchmark_parquet", path)["rows"] == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"question_id": 1}, r"question_id is 1 \(row 1 has it too\)"),
        ({"question_id": None}, "question_id is None"),
        ({"question": " "}, "question is empty"),
        ({"options": ["3"]}, "has 1 options"),
        ({"options": None}, "has 0 options"),
        ({"options": ["3", "", "5"]}, r"options\[1\] is empty"),
        ({"options": ["3", "5", " 5"]}, "options has '5' twice"),
        ({"answer": "b"}, "answer is 'b'"),
        ({"answer": "AB"}, "answer is 'AB'"),
        ({"answer": "B"}, r"answer is B, answer_index 0 \(A\)"),
        ({"answer": "D", "answer_index": 3}, "answer_index is 3; there are 3 options"),
        ({"answer_index": -1}, "answer_index is -1"),
        ({"category": ""}, "category is empty"),
    ],
)
def test_a_question_that_has_no_one_answer_is_named(tmp_path: Path, changed: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=r"benchmark\.parquet: row 2: " + message):
        validate(MCQ, save(tmp_path, QUESTION, OTHER | changed, {**QUESTION, "question_id": 3}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x"}, "has no column question_id"),
        ({**QUESTION, "answer_index": "1"}, "column answer_index is string. Write int"),
        ({**QUESTION, "options": "3"}, "column options is string. Write list"),
    ],
)
def test_columns_must_be_those_of_the_format(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        validate(MCQ, save(tmp_path, row))
    assert validate("benchmark_parquet", tmp_path)["rows"] == 1


def test_translation_scores_must_be_finite(tmp_path: Path) -> None:
    kind = f"translated_{MCQ}"
    facts = validate(kind, save(tmp_path, QUESTION | {"score_chrf": 50.0}, OTHER | {"score_chrf": 60.0}))
    assert facts["metrics"] == {"score_chrf": 55.0} and artifact_type(kind).figures(facts)["score_chrf"] == 55.0
    with pytest.raises(ArtifactError, match="row 2: score_chrf is nan"):
        validate(kind, save(tmp_path, QUESTION | {"score_chrf": 50.0}, OTHER | {"score_chrf": float("nan")}))


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"without \*\.parquet files"):
        validate(MCQ, tmp_path)
    file = save(tmp_path) / "run/benchmark.parquet"
    with pytest.raises(ArtifactError, match="has no questions"):
        validate(MCQ, tmp_path)
    data = save(tmp_path, QUESTION) and file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"benchmark\.parquet: cannot be read as Parquet"):
        validate(MCQ, tmp_path)
    file.write_bytes(b"")
    with pytest.raises(ArtifactError, match="is empty"):
        validate(MCQ, tmp_path)
    file.unlink()
    file.symlink_to("benchmark.parquet")
    with pytest.raises(ArtifactError):
        validate(MCQ, tmp_path)


def test_random_damage_gives_an_artifact_error_or_the_rows(tmp_path: Path) -> None:
    rng = random.Random(0)
    file = save(tmp_path, QUESTION, OTHER) / "run/benchmark.parquet"
    original = file.read_bytes()
    for _ in range(12):
        data = bytearray(original)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])]))
        try:
            assert validate(MCQ, tmp_path)["rows"] == 2
        except ArtifactError:
            continue


def test_questions_are_written_from_rows_and_tables(tmp_path: Path) -> None:
    loaded = artifact_type(MCQ)
    loaded.write([QUESTION, OTHER], tmp_path / "a")
    loaded.write(loaded.read(tmp_path / "a"), tmp_path / "b")
    assert validate(MCQ, tmp_path / "b")["rows"] == 2
    with pytest.raises(ArtifactError, match="exists already"):
        loaded.write([QUESTION], tmp_path / "a")
    with pytest.raises(ArtifactError, match="no rows to write"):
        loaded.write([], tmp_path / "c")
    assert not list((tmp_path / "c").iterdir())


def corpus(folder: Path) -> Path:
    (folder / "physics").mkdir(parents=True)
    (folder / "physics/a.txt").write_text("Größe ist Masse mal Beschleunigung.", encoding="utf-8")
    (folder / "physics/b.txt").write_text("x" * 1000)
    table = pa.table({"file_name": ["c.txt"], "text": ["Law is law."]})
    pq.write_table(table, folder / "law.parquet")
    return folder


def test_a_corpus_is_counted_by_subject(tmp_path: Path) -> None:
    facts = validate("benchmark_source_corpus", corpus(tmp_path / "c"))
    assert facts["subjects"] == {
        "law": {"documents": 1, "characters": 11},
        "physics": {"documents": 2, "characters": 1035},
    }
    loaded = artifact_type("benchmark_source_corpus")
    documents = list(loaded.read(tmp_path / "c"))
    assert [d["file_name"] for d in documents] == ["c.txt", "a.txt", "b.txt"]
    loaded.write(documents, tmp_path / "d")
    again = validate("benchmark_source_corpus", tmp_path / "d")
    assert again["subjects"] == facts["subjects"] and json.loads(json.dumps(again)) == again
    assert loaded.draw(facts, tmp_path) == ["lengths.png", "subjects.png"]
    with pytest.raises(ArtifactError, match="is no file name"):
        loaded.write([{"subject": "../x", "file_name": "a", "text": "b"}], tmp_path / "e")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "physics/a.txt").write_bytes(b"\xff\xfe"), r"a\.txt: is not UTF-8 text"),
        (lambda p: (p / "physics/a.txt").write_text(" \n"), r"a\.txt: holds only white space"),
        (lambda p: (p / "physics/a.txt").write_text(""), r"a\.txt: is empty"),
        (lambda p: (p / "physics/c.txt").symlink_to("c.txt"), r"c\.txt: is a symbolic link that leads back"),
        (lambda p: (p / "physics/a.txt.part").write_text("x"), r"a\.txt\.part: looks like a download"),
        (lambda p: (p / "law.parquet").write_bytes(b"PAR1" * 10), r"law\.parquet: cannot be read as Parquet"),
        (lambda p: pq.write_table(pa.table({"text": ["x"]}), p / "law.parquet"), "has no column file_name"),
        (lambda p: pq.write_table(pa.table({"file_name": ["x"], "text": [""]}), p / "law.parquet"), "row 1: text is"),
    ],
)
def test_what_is_no_document_is_named(tmp_path: Path, damage, message: str) -> None:
    damage(corpus(tmp_path / "c"))
    with pytest.raises(ArtifactError, match=message):
        validate("benchmark_source_corpus", tmp_path / "c")


def test_a_corpus_without_subjects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no subject"):
        validate("benchmark_source_corpus", tmp_path)
    with pytest.raises(ArtifactError, match="is no directory"):
        validate("benchmark_source_corpus", tmp_path / "nope")
    assert os.listdir(tmp_path) == []
