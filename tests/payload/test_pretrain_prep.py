"""data_prep/pretrain_prep, run for real: what it writes token for token, what it counts, and how it refuses."""

from __future__ import annotations

import gzip
import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from payload_run import REPOSITORY, Outcome, run_payload

from nemotron_dagster.artifacts.types import binidx

STEP = REPOSITORY / "steps/data_prep/pretrain_prep"
TOKENIZER = REPOSITORY / "steps/_runtime/tiny_llama"
EOS = 2


def texts(count: int, start: int = 0, repeat: int = 1) -> list[str]:
    """Texts that differ in number and length."""
    return [f"Row {i}. " + "The clock strikes in the tower. " * (i % 7 * repeat) for i in range(start, start + count)]


def lines(rows: list[Any]) -> str:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


@pytest.fixture
def prep(tmp_path: Path, data_python: str) -> Any:
    """Run the step on rows, or on what ``blend_path`` names; ``prep.out`` is its output directory."""

    class Prep:
        out = tmp_path / "out"
        file = tmp_path / "in.jsonl"

        def __call__(self, rows: list[Any] | None = None, env: dict[str, str] | None = None, **cfg: Any) -> Outcome:
            if rows is not None:
                self.file.write_text(lines([{"text": r} if isinstance(r, str) else r for r in rows]))
            tokenizer = {"model": str(TOKENIZER), "add_eos": True, **cfg.pop("tokenizer", {})}
            base = {"blend_path": str(self.file), "output_dir": str(self.out), "num_shards": 4, "tokenizer": tokenizer}
            return run_payload(STEP, {**base, **cfg}, tmp_path / "run", data_python, **(env or {}))

        def documents(self, split: str | None = None) -> list[tuple[int, ...]]:
            """Every document of a split, or of all, in order; by a reader that knows the format and nothing else."""
            return [
                document
                for name, entries in json.loads((self.out / "blend.json").read_text()).items()
                if split in (None, name)
                for prefix in entries[1::2]
                for document in slow_read(self.out / prefix)
            ]

    return Prep()


def slow_read(prefix: Path) -> list[tuple[int, ...]]:
    """The documents of a shard, one number at a time, straight from the layout's description."""
    index, data = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    magic, version, code, sequences, documents = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version, documents) == (b"MMIDIDX\x00\x00", 1, sequences + 1)
    kind = {4: "<i", 8: "<H"}[code]
    size = struct.calcsize(kind)
    at = struct.calcsize("<9sQBQQ")
    lengths = struct.unpack_from(f"<{sequences}i", index, at)
    offsets = struct.unpack_from(f"<{sequences}q", index, at + 4 * sequences)
    assert struct.unpack_from(f"<{documents}q", index, at + 12 * sequences) == tuple(range(documents))
    return [
        tuple(struct.unpack_from(kind, data, offset + i * size)[0] for i in range(length))
        for length, offset in zip(lengths, offsets, strict=True)
    ]


def encode(python: str, rows: list[str]) -> list[tuple[int, ...]]:
    """Each text on its own through the plain library call, one after the other: slow, and nothing to get wrong."""
    import subprocess

    code = (
        "import json, sys; from tokenizers import Tokenizer; t = Tokenizer.from_file(sys.argv[1]);"
        "print(json.dumps([t.encode(r, add_special_tokens=False).ids for r in json.load(sys.stdin)]))"
    )
    command = [python, "-c", code, str(TOKENIZER / "tokenizer.json")]
    done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, check=True)
    return [tuple(ids) for ids in json.loads(done.stdout)]


def refused(outcome: Outcome, name: str, *parts: str) -> None:
    assert outcome.status == 3, outcome.stderr
    assert outcome.error["name"] == name
    for part in parts:
        assert part in outcome.error["message"], outcome.error["message"]
    assert outcome.error["recovery"]
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("shards", [1, 3, 7, 400])
def test_every_row_is_one_document_token_for_token(prep: Any, data_python: str, shards: int) -> None:
    rows = texts(200)
    held = min(1, shards - 1)
    outcome = prep(rows, num_shards=shards, valid_shards=held, test_shards=held if shards > 2 else 0)
    assert outcome.status == 0, outcome.stderr
    expected = Counter((*ids, EOS) for ids in encode(data_python, rows))
    assert Counter(prep.documents()) == expected
    facts = binidx.validate(prep.out)
    assert facts["documents"] == 200 == outcome.facts["rows"]
    assert facts["tokens"] == outcome.facts["tokens"] == sum(map(len, expected.elements()))
    assert facts["absolute_prefixes"] == 0 and facts["vocab_size"] == 394


def test_a_file_that_is_not_cut_keeps_the_order_of_its_rows(prep: Any, data_python: str) -> None:
    rows = texts(50)
    prep(rows, num_shards=1, valid_shards=0, test_shards=0)
    assert prep.documents() == [(*ids, EOS) for ids in encode(data_python, rows)]


@pytest.mark.parametrize(("dtype", "size"), [("int32", 4), ("uint16", 2), ("auto", 2)])
def test_dtype_is_what_was_asked_for(prep: Any, dtype: str, size: int) -> None:
    outcome = prep(texts(20), num_shards=1, valid_shards=0, test_shards=0, dtype=dtype)
    (file,) = prep.out.rglob("*.bin")
    assert file.stat().st_size == size * outcome.facts["tokens"]
    assert outcome.facts["dtype"] == {4: "int32", 2: "uint16"}[size]


def test_begin_and_end_tokens_are_those_of_the_tokenizer(prep: Any, tmp_path: Path, data_python: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
    named = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|endoftext|>"}
    (model / "tokenizer_config.json").write_text(json.dumps(named))
    prep(["one"], tokenizer={"model": str(model), "add_bos": True}, num_shards=1, valid_shards=0, test_shards=0)
    ((*ids,),) = prep.documents()
    assert ids == [1, *encode(data_python, ["one"])[0], 0]


@pytest.mark.parametrize("choice", ["truncate", "split", "drop"])
def test_documents_that_are_too_long_are_handled_as_asked_and_counted(prep: Any, data_python: str, choice: str) -> None:
    rows = texts(40)
    cfg = {"max_doc_tokens": 30, "long_documents": choice, "num_shards": 2, "valid_shards": 0, "test_shards": 0}
    outcome = prep(rows, **cfg)
    whole = [(*ids, EOS) for ids in encode(data_python, rows)]
    long = sum(len(d) > 30 for d in whole)
    assert 0 < long < 40
    expected = {
        "truncate": [d[:30] for d in whole],
        "split": [d[i : i + 30] for d in whole for i in range(0, len(d), 30)],
        "drop": [d for d in whole if len(d) <= 30],
    }[choice]
    assert Counter(prep.documents()) == Counter(expected)
    facts = outcome.facts
    counted = {"truncate": facts["truncated"], "split": facts["split"]}
    assert counted.get(choice, facts["removed"].get("over_max_doc_tokens")) == long


def test_every_row_is_used_or_counted_with_its_line(prep: Any) -> None:
    good = [{"text": t} for t in texts(30)]
    bad = [
        '{"text": "cut off', "[1, 2]", '{"body": "no text"}', '{"text": 5}', '{"text": ""}', '{"text": null}',
        '{"text": "half of \\ud800"}', "   ", '{"text": NaN}',
    ]  # fmt: skip
    prep.file.write_bytes(lines([*good[:10], *bad, *good[10:]]).encode() + b'{"text": "\xff\xfe"}\n')
    outcome = prep(min_doc_chars=4, num_shards=2, valid_shards=0, test_shards=0)
    assert outcome.status == 0, outcome.stderr
    told = outcome.facts["rejected"]
    counts = {k: v["rows"] for k, v in told.items()}
    assert counts == {
        "not_json": 1, "not_an_object": 1, "missing_field": 2, "field_not_text": 2, "empty_text": 1, "not_utf8": 2,
    }  # fmt: skip
    assert outcome.facts["rows"] + sum(counts.values()) == 39  # the blank line is no row
    assert told["not_json"]["examples"][0]["row"] == f"{prep.file}:11"
    assert told["missing_field"]["examples"][0]["row"] == f"{prep.file}:13"
    assert {e["row"] for e in told["not_utf8"]["examples"]} == {f"{prep.file}:17", f"{prep.file}:40"}


def test_on_bad_row_fail_names_the_first_bad_line_and_writes_no_blend(prep: Any) -> None:
    outcome = prep([*texts(5), {"body": "x"}], on_bad_row="fail", num_shards=1, valid_shards=0, test_shards=0)
    refused(outcome, "bad_row", f"{prep.file}:6", "missing_field", "'text'")
    assert not (prep.out / "blend.json").exists()


def test_a_record_over_the_limit_is_counted_and_its_neighbours_are_kept(prep: Any, tmp_path: Path) -> None:
    with prep.file.open("w") as out:
        out.write('{"text": "before"}\n{"text": "' + "x" * (101 << 20) + '"}\n{"text": "after"}\n')
    outcome = prep(num_shards=1, valid_shards=0, test_shards=0)
    assert outcome.facts["removed"] == {"record_too_long": 1} and outcome.facts["rows"] == 2
    assert outcome.facts["rejected"]["record_too_long"]["examples"][0]["row"] == f"{prep.file}:2"


def test_the_same_rows_in_any_format_give_the_same_documents(prep: Any, tmp_path: Path) -> None:
    rows = texts(60)
    data = lines([{"text": r, "n": i} for i, r in enumerate(rows)]).encode()
    forms = {
        "a.jsonl": data,
        "a.jsonl.gz": gzip.compress(data[:999]) + gzip.compress(data[999:]),  # two members
        "a.jsonl.zst": zstandard.compress(data[:999]) + zstandard.compress(data[999:]),  # two frames
        "a.json": json.dumps([{"text": r} for r in rows]).encode(),
        "lines/a.json": data,
    }
    found = {}
    for name, content in forms.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        outcome = prep(blend_path=str(tmp_path / name) if "lines" not in name else str(file.parent))
        assert outcome.status == 0, outcome.stderr
        found[name] = Counter(prep.documents())
        assert not (prep.out / ".staged").exists()
    pq.write_table(pa.table({"n": range(60), "text": rows}), tmp_path / "a.parquet", row_group_size=17)
    assert prep(blend_path=str(tmp_path / "a.parquet")).status == 0
    found["a.parquet"] = Counter(prep.documents())
    assert len(set(map(frozenset, (c.items() for c in found.values())))) == 1
    assert sum(found["a.jsonl"].values()) == 60


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet", "json"])
def test_max_rows_are_the_first_rows_of_each_dataset_whatever_the_shards(prep: Any, tmp_path: Path, form: str) -> None:
    expected: list[str] = []
    blend = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        rows = [f"{name} {t}" for t in texts(40)]
        for part in range(2):
            some = [{"text": r} for r in rows[part * 20 : part * 20 + 20]]
            file = folder / f"{part}.{form}"
            if form == "parquet":
                pq.write_table(pa.Table.from_pylist(some), file, row_group_size=7)
            elif form == "json":
                file.write_text(json.dumps(some))
            else:
                data = ("\n" + lines(some)).encode()
                file.write_bytes(gzip.compress(data) if form.endswith("gz") else data)
        expected += rows[:25]
        blend.append({"name": name, "path": name})
    (tmp_path / "blend.json").write_text(json.dumps({"datasets": blend}))
    outcome = prep(blend_path=str(tmp_path / "blend.json"), max_rows=25)
    assert outcome.status == 0, outcome.stderr
    assert outcome.facts["rows"] == 50
    assert {d["rows"] for d in outcome.facts["datasets"].values()} == {25}


def test_weights_are_those_of_the_blend_in_every_split(prep: Any, tmp_path: Path) -> None:
    for name, count in (("much", 300), ("little", 30)):
        (tmp_path / f"{name}.jsonl").write_text(lines([{"text": f"{name} {t}"} for t in texts(count)]))
    entries = [{"name": "much", "path": "much.jsonl", "weight": 0.25}, {"path": "little.jsonl", "weight": 0.75}]
    (tmp_path / "blend.json").write_text(json.dumps({"datasets": entries}))
    assert prep(blend_path=str(tmp_path / "blend.json"), num_shards=6).status == 0
    for entries_ in json.loads((prep.out / "blend.json").read_text()).values():
        total: Counter[str] = Counter()
        for weight, prefix in zip(entries_[::2], entries_[1::2], strict=True):
            total[prefix.split("/")[3]] += float(weight)
        assert total == pytest.approx({"much": 0.25, "little": 0.75})


def test_splits_share_no_row_and_repeated_texts_are_counted(prep: Any) -> None:
    rows = texts(300)
    outcome = prep([*rows, *rows[:40]], num_shards=5)
    held = [set(prep.documents(s)) for s in ("train", "valid", "test")]
    crossing = [
        sum(d in held[0] for d in prep.documents("valid")),
        sum(d in held[0] for d in prep.documents("test")),
        sum(d in held[1] for d in prep.documents("test")),
    ]
    assert list(outcome.facts["duplicates_across_splits"].values()) == crossing
    assert sum(crossing) > 0 and outcome.facts["rows"] == 340
    other = prep(rows, num_shards=5)
    assert set(other.facts["duplicates_across_splits"].values()) == {0}
    assert not set(prep.documents("train")) & {*prep.documents("valid"), *prep.documents("test")}


def test_the_split_seed_moves_shards_and_nothing_is_made_anew(prep: Any) -> None:
    prep(texts(100), num_shards=10)
    first = json.loads((prep.out / "blend.json").read_text())
    made = {f: f.stat().st_ino for f in prep.out.rglob("*.bin")}
    outcome = prep(num_shards=10, split_seed=7)
    assert json.loads((prep.out / "blend.json").read_text()) != first
    assert {f: f.stat().st_ino for f in prep.out.rglob("*.bin")} == made
    assert outcome.facts["made_tokens"] == 0


def test_a_blend_per_split_keeps_its_datasets_apart(prep: Any, tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text(lines([{"text": f"{name} {t}"} for t in texts(30)]))
    blend = {s: [{"name": "same", "path": f"{s}.jsonl"}] for s in ("train", "valid")}
    (tmp_path / "blend.json").write_text(json.dumps(blend))
    outcome = prep(blend_path=str(tmp_path / "blend.json"))
    assert outcome.status == 0, outcome.stderr
    assert {s: v["rows"] for s, v in outcome.facts["per_split"].items() if v["shards"]} == {"train": 30, "valid": 30}
    assert binidx.validate(prep.out)["splits"].keys() == {"train", "valid"}


def test_sample_makes_that_many_shards_of_each_dataset(prep: Any) -> None:
    outcome = prep(texts(200), num_shards=10, sample="40%")
    assert outcome.facts["datasets"]["in"]["shards"] == 4
    assert len(binidx.read(prep.out)["train"]) == 2


def test_the_fingerprint_is_the_one_that_checkpoints_are_compared_by(prep: Any) -> None:
    from nemotron_dagster.artifacts.types._problems import Problems
    from nemotron_dagster.artifacts.types._tokenizer import read_tokenizer

    known = read_tokenizer(TOKENIZER, Problems())
    assert known and prep(texts(10)).facts["tokenizer_fingerprint"] == known.fingerprint


def test_a_tokenizer_is_taken_from_its_file_too_and_makes_the_same_shards(prep: Any) -> None:
    prep(texts(30))
    made = {f.name: f.read_bytes() for f in prep.out.rglob("*.bin")}
    prep(tokenizer={"model": str(TOKENIZER / "tokenizer.json")})
    assert {f.name: f.read_bytes() for f in prep.out.rglob("*.bin")} == made


def test_the_plan_says_what_a_run_would_take_and_makes_nothing(prep: Any, data_python: str, tmp_path: Path) -> None:
    import os
    import subprocess

    rows = texts(300)
    prep(rows, num_shards=1, valid_shards=0, test_shards=0)
    config = tmp_path / "run/config.yaml"
    cfg = {**json.loads(config.read_text()), "output_dir": str(tmp_path / "other")}
    config.write_text(json.dumps(cfg))
    env = {k: v for k, v in os.environ.items() if k != "NEMOTRON_MESSAGES"}
    command = [data_python, str(STEP / "step.py"), "--config", str(config), "--plan"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    plan = json.loads(done.stdout)["plan"]
    assert plan["rows"] == pytest.approx(300, rel=0.05) and plan["shards"] == 1
    assert plan["tokens"] == pytest.approx(sum(len(d) for d in prep.documents()), rel=0.05)
    assert not (tmp_path / "other").exists()


BAD = {
    "unknown key": ({"num_shard": 4}, "config_invalid", ["num_shard", "did you mean 'num_shards'"]),
    "no shard for training": ({"num_shards": 2}, "split_leakage_or_empty_validation", ["num_shards 2"]),
    "no tokenizer": ({"tokenizer": {"model": "/no/such"}}, "tokenizer_mismatch", ["/no/such"]),
    "no begin token": ({"tokenizer": {"add_bos": True}}, "tokenizer_mismatch", ["add_bos", "bos_token"]),
    "a tokenizer of the Hub, offline": (
        {"tokenizer": {"model": "nobody/nothing"}}, "tokenizer_unavailable", ["nobody/nothing"],
    ),
    "no input": ({"blend_path": "/no/such.jsonl"}, "input_missing", ["/no/such.jsonl"]),
    "a blend that is not there": ({"blend_path": "/no/such.json"}, "missing_or_invalid_blend", ["/no/such.json"]),
    "a field that no row has": ({"text_field": "body"}, "empty_or_overlong_documents", ["missing_field", "has text"]),
    "everything too short": ({"min_doc_chars": 9999}, "empty_or_overlong_documents", ["under_min_doc_chars"]),
    "a sample of nothing": ({"sample": "none"}, "config_invalid", ["sample", "none"]),
    "an unknown choice": ({"long_documents": "splt"}, "config_invalid", ["splt", "did you mean 'split'"]),
    "a dataset of the Hub, offline": ({"blend_path": "hf://nobody/nothing"}, "dataset_unavailable", ["OFFLINE"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant_is_refused_with_the_fix(prep: Any, case: str) -> None:
    cfg, name, parts = BAD[case]
    refused(prep(texts(20), env={"HF_HUB_OFFLINE": "1"}, **dict(cfg)), name, *parts)


BAD_BLENDS: dict[str, tuple[Any, list[str]]] = {
    "both modes": ({"datasets": [{"path": "a"}], "train": [{"path": "a"}]}, ["both 'datasets' and 'train'"]),
    "neither": ({}, ["neither"]),
    "a misspelt list": ({"dataset": [{"path": "a"}]}, ["did you mean 'datasets'"]),
    "a misspelt key": ({"datasets": [{"path": "a", "wieght": 1}]}, ["datasets[0]", "did you mean 'weight'"]),
    "a weight of 0": ({"datasets": [{"path": "a", "weight": 0}]}, ["weight is 0"]),
    "a weight in words": ({"datasets": [{"path": "a", "weight": "1"}]}, ['weight is "1"']),
    "no path": ({"datasets": [{"name": "a"}]}, ["has no path"]),
    "a name twice": ({"datasets": [{"path": "a", "name": "x"}, {"path": "b", "name": "x"}]}, ["given twice"]),
    "a name that leads away": ({"datasets": [{"path": "a", "name": "../x"}]}, ["cannot name a folder"]),
    "an empty list": ({"datasets": []}, ["not a list of datasets"]),
    "no JSON": ("{", [":1: not JSON"]),
}


@pytest.mark.parametrize("case", BAD_BLENDS)
def test_a_blend_that_is_none_is_refused_by_file_and_entry(prep: Any, tmp_path: Path, case: str) -> None:
    blend, parts = BAD_BLENDS[case]
    file = tmp_path / "blend.json"
    file.write_text(blend if isinstance(blend, str) else json.dumps(blend))
    refused(prep(blend_path=str(file)), "missing_or_invalid_blend", str(file), *parts)


def test_a_file_in_two_datasets_is_refused_because_splits_would_share_it(prep: Any, tmp_path: Path) -> None:
    prep.file.write_text(lines([{"text": t} for t in texts(9)]))
    entries = [{"name": "a", "path": "in.jsonl"}, {"name": "b", "path": "in.jsonl"}]
    (tmp_path / "blend.json").write_text(json.dumps({"datasets": entries}))
    refused(prep(blend_path=str(tmp_path / "blend.json")), "split_leakage_or_empty_validation", "'a' and 'b'")


def test_rows_of_parquet_without_text_are_counted_by_row(prep: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", None, "three", ""]}), tmp_path / "a.parquet")
    cfg = {"num_shards": 1, "valid_shards": 0, "test_shards": 0, "blend_path": str(tmp_path / "a.parquet")}
    outcome = prep(**cfg)
    assert outcome.facts["removed"] == {"missing_field": 1, "empty_text": 1}
    assert outcome.facts["rejected"]["missing_field"]["examples"][0]["row"] == f"{tmp_path}/a.parquet: row 2"
    refused(prep(text_field="body", **cfg), "empty_or_overlong_documents", "missing_field 4")


@pytest.mark.parametrize("form", ["jsonl.gz", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("shards", [1, 4])
def test_a_file_that_was_cut_off_is_named(prep: Any, tmp_path: Path, form: str, shards: int) -> None:
    file = tmp_path / f"a.{form}"
    data = lines([{"text": t} for t in texts(500)]).encode()
    if form == "parquet":
        pq.write_table(pa.table({"text": texts(500)}), file)
    else:
        file.write_bytes(gzip.compress(data) if form.endswith("gz") else zstandard.compress(data))
    file.write_bytes(file.read_bytes()[:-40])
    held = 1 if shards > 2 else 0
    outcome = prep(blend_path=str(file), num_shards=shards, valid_shards=held, test_shards=held)
    refused(outcome, "input_unreadable", str(file))


def test_utf_16_is_named_as_such(prep: Any) -> None:
    prep.file.write_text(lines([{"text": "hello"}]), encoding="utf-16")
    refused(prep(num_shards=1, valid_shards=0, test_shards=0), "input_encoding", str(prep.file), "UTF-16")


def test_empty_input_is_refused(prep: Any) -> None:
    prep.file.write_text("")
    refused(prep(), "input_missing", "empty")
    prep.file.write_text("\n\n")
    refused(prep(), "empty_input", "holds no row")


def test_numpy_reads_the_shards_as_views(prep: Any) -> None:
    prep(texts(50))
    for entries in binidx.read(prep.out).values():
        for _, shard in entries:
            assert all(np.asarray(shard[i])[-1] == EOS for i in range(len(shard)))
