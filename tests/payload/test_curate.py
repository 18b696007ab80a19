"""curate/nemo_curator, run for real: what it keeps, what it counts, and how it refuses."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from payload_run import REPOSITORY, Outcome, run_payload

STEP = REPOSITORY / "steps/curate/nemo_curator"
ENGLISH = "The committee met on Tuesday and agreed that the old bridge should be repaired before the winter comes."
GERMAN = "Der Ausschuss hat am Dienstag beschlossen, dass die alte Brücke noch vor dem Winter repariert werden soll."


@pytest.fixture
def curate(tmp_path: Path, data_python: str) -> Any:
    """Run the step on rows or on a given input; ``curate.out`` is its output directory."""

    class Curate:
        out = tmp_path / "out"

        def __call__(self, rows: Any = None, env: dict[str, str] | None = None, **cfg: Any) -> Outcome:
            if rows is not None:
                lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
                (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            cfg = {"input_glob": str(tmp_path / "in.jsonl"), "output_dir": str(self.out), **cfg}
            return run_payload(STEP, cfg, tmp_path / "run", data_python, **(env or {}))

        def kept(self) -> list[dict[str, Any]]:
            shards = sorted(self.out.glob("shard_*.jsonl"))
            return [json.loads(line) for shard in shards for line in shard.read_text("utf-8").splitlines()]

        def report(self) -> dict[str, Any]:
            return json.loads((self.out / "curation.json").read_text("utf-8"))

    return Curate()


def refused(outcome: Outcome, name: str, *parts: str) -> None:
    assert outcome.status == 3, outcome.stderr
    assert outcome.error["name"] == name
    for part in parts:
        assert part in outcome.error["message"], outcome.error["message"]
    assert "Traceback" not in outcome.stderr


def test_tiny_keeps_every_clean_row_and_nothing_else(curate: Any, roman_rows: Any) -> None:
    cfg = _tiny(curate.out)
    outcome = curate(**cfg)
    assert outcome.status == 0, outcome.stderr
    made = roman_rows("tiny")
    bundled = (STEP / "data/tiny.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in bundled] == [row for row, _ in made], "data/tiny.jsonl is not the generator's"
    assert [row["id"] for row in curate.kept()] == [row["id"] for row, dirt in made if dirt is None]
    assert outcome.facts["rows_in"] == len(made)
    assert outcome.facts["rows_out"] == sum(dirt is None for _, dirt in made)
    assert sum(outcome.facts["removed"].values()) == sum(dirt is not None for _, dirt in made)
    assert any(m["type"] == "progress" and m["metrics"]["rows"] == len(made) for m in outcome.messages)


def test_example_configuration_removes_exactly_the_dirt(curate: Any, roman_rows: Any) -> None:
    made = roman_rows("default")
    outcome = curate([row for row, _ in made], **{k: v for k, v in _tiny(curate.out).items() if k != "input_glob"})
    assert [row["id"] for row in curate.kept()] == [row["id"] for row, dirt in made if dirt is None]
    removed = outcome.facts["removed"]
    count = {kind: sum(dirt == kind for _, dirt in made) for kind in ("broken", "foreign", "junk", "duplicates")}
    assert removed["word_count"] == count["broken"]
    assert removed["exact_duplicate"] == count["duplicates"]
    assert removed["language"] + removed["non_alpha_numeric"] == count["foreign"] + count["junk"]


def _tiny(out: Path) -> dict[str, Any]:
    text = (STEP / "config/tiny.yaml").read_text("utf-8").replace("${oc.env:NEMOTRON_STEP_DIR}", str(STEP))
    return {**yaml.safe_load(text), "output_dir": str(out)}


def test_both_executors_write_the_same_bytes(curate: Any, tmp_path: Path, roman_rows: Any) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rows = [json.dumps(row, ensure_ascii=False) for row, _ in roman_rows("default")]
    for i in range(5):  # several units, so that Ray may finish them in any order
        (source / f"{i}.jsonl").write_text("\n".join(rows[i::5]) + "\n", encoding="utf-8")
    cfg = {**_tiny(curate.out), "input_glob": str(source), "rows_per_shard": 3000}
    cfg["dedup"] = {"exact": True, "fuzzy": {"threshold": 0.95, "ngram": 5}}
    written = {}
    for executor in ("in_process", "ray"):
        outcome = curate(**{**cfg, "executor": executor})
        assert outcome.status == 0, outcome.stderr
        assert outcome.facts["executor"] == executor
        report = {k: v for k, v in curate.report().items() if k != "executor"}
        written[executor] = report, {p.name: p.read_bytes() for p in curate.out.glob("shard_*")}
    assert len(written["ray"][1]) > 1
    assert written["in_process"] == written["ray"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_ray_behind(tmp_path: Path, data_python: str, how: signal.Signals) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({**_tiny(tmp_path / "out"), "executor": "ray"}))
    command = [data_python, str(STEP / "step.py"), "--config", str(tmp_path / "config.yaml")]
    with subprocess.Popen(command, env={**os.environ, "NEMOTRON_TEST_MARK": str(tmp_path)}) as run:
        _wait(lambda: len(_marked(tmp_path)) > 5, "Ray did not start")
        run.send_signal(how)
        try:
            assert run.wait(60) != 0
        finally:
            run.kill()
    _wait(lambda: not _marked(tmp_path), "Ray's daemons are still there")
    assert not (tmp_path / "out").exists()


def _marked(mark: Path) -> list[str]:
    """Command lines of the living processes that inherited the mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"NEMOTRON_TEST_MARK={mark}\0".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
    return found


def _wait(done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def test_rows_pass_unchanged_where_nothing_annotates(curate: Any) -> None:
    lines = [
        '{"text": "one", "n": 12345678901234567890, "x": 1.0, "nested": {"a": [null, {"b": "é"}]}}',
        '{"z": 1,  "text":"two \\ud83d\\ude00 \\ud800"}',
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "three"}]}], "id": 3}',
    ]
    assert curate([*lines, "", "   "]).status == 0
    assert (curate.out / "shard_000000.jsonl").read_text("utf-8").splitlines() == lines
    assert curate.report()["filters"] == []


def test_annotations_come_from_the_language_filter_only(curate: Any) -> None:
    rows = [{"text": ENGLISH, "id": 1}, {"text": GERMAN, "id": 2}]
    curate(rows, quality_filters={"min_words": 1, "max_words": 99})
    assert curate.kept() == rows
    curate(rows, language_codes=["DE"], quality_filters={"min_langid_score": 0.5})
    (row,) = curate.kept()
    assert row["id"] == 2 and row["language"] == "de" and row["language_score"] > 0.9
    curate(rows, language_codes=["en", "De"])
    assert len(curate.kept()) == 2


def test_messages_stand_in_for_missing_text(curate: Any) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]},
        {"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": None}]},
        {"text": "one two three four"},
    ]
    outcome = curate(rows, quality_filters={"min_words": 3, "max_words": 3})
    assert curate.kept() == rows[:1]
    assert outcome.facts["removed"] == {"empty_text": 0, "word_count": 2}


def _compress_zst(path: Path, python: str, frames: list[str]) -> None:
    """Write one frame each, as appending to a compressed file does; the data environment has the library."""
    code = "import sys, zstandard; open(sys.argv[1], 'ab').write(zstandard.compress(sys.argv[2].encode()))"
    for frame in frames:
        subprocess.run([python, "-c", code, str(path), frame], check=True)


def test_compressed_files_directories_globs_and_lists(curate: Any, tmp_path: Path, data_python: str) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a.jsonl").write_text('{"text": "a"}\n')
    (source / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b"}\n'))
    _compress_zst(source / "deep/c.jsonl.zst", data_python, ['{"text": "c1"}\n', '{"text": "c2"}'])
    (source / "notes.txt").write_text("not a row")
    for given, expected in {
        str(source): ["a", "b", "c1", "c2"],
        str(source / "**/*.jsonl*"): ["a", "b", "c1", "c2"],
        str(source / "*.gz"): ["b"],
    }.items():
        assert curate(input_glob=given).status == 0
        assert [row["text"] for row in curate.kept()] == expected
    curate(input_glob=[str(source / "deep"), str(source / "a.jsonl"), str(source / "*.jsonl")])
    assert [row["text"] for row in curate.kept()] == ["c1", "c2", "a"]


def test_exact_duplicates_keep_the_first(curate: Any) -> None:
    rows = [{"text": t, "id": i} for i, t in enumerate(["a b", "c", " a\n b ", "A b", "c"])]
    outcome = curate(rows, dedup={"exact": True})
    assert [row["id"] for row in curate.kept()] == [0, 1, 3]
    assert outcome.facts["removed"] == {"exact_duplicate": 2}
    (found,) = curate.report()["filters"]
    assert [e["text"] for e in found["examples"]] == [" a\n b ", "c"]


def test_near_duplicates_keep_the_first(curate: Any) -> None:
    other = "A ferry crosses the lake every hour in summer, and the islanders use it to bring their cheese to market."
    near = ENGLISH.replace("Tuesday", "Thursday")
    rows = [{"text": t, "id": i} for i, t in enumerate([ENGLISH, other, near, other + "!", GERMAN])]
    outcome = curate(rows, dedup={"fuzzy": {"threshold": 0.6, "ngram": 5}})
    assert [row["id"] for row in curate.kept()] == [0, 1, 4]
    assert outcome.facts["removed"] == {"near_duplicate": 2}
    curate(rows, dedup={"fuzzy": {"threshold": 1.0, "ngram": 5}})
    assert len(curate.kept()) == 5


def test_heuristics_are_counted_and_rows_without_text_do_not_break_them(curate: Any) -> None:
    rows = [{"text": t} for t in [ENGLISH, "", "  ", "Look: https://example.org/a/very/long/path/of/a/page", "a b c d"]]
    outcome = curate(rows, heuristics={"urls": {"max_url_to_text_ratio": 0.2}, "mean_word_length": {}})
    assert curate.kept() == rows[:1]
    assert outcome.facts["removed"] == {"empty_text": 2, "urls": 1, "mean_word_length": 1}


def test_shards_have_the_asked_size_and_a_rerun_leaves_no_old_ones(curate: Any) -> None:
    rows = [{"text": f"row {i}"} for i in range(5)]
    curate(rows, rows_per_shard=2)
    assert [s["rows"] for s in curate.report()["shards"]] == [2, 2, 1]
    assert curate.kept() == rows
    curate(rows[:1])
    assert sorted(p.name for p in curate.out.iterdir()) == ["curation.json", "shard_000000.jsonl"]


GOOD = {"text": ENGLISH}
BAD_ROWS = {
    "not json": ('{"text": "x",}', "input_not_json", ":2: not JSON at column 14"),
    "not an object": ("[1]", "input_not_json", ":2: a JSON array, not an object"),
    "no text": ('{"body": "x"}', "input_without_text", ":2: the row has no 'text' and no messages; its keys: body"),
    "null text": ('{"text": null}', "input_without_text", ":2: the row's text is a JSON null"),
    "bad message": ('{"messages": ["hi"]}', "input_without_text", ":2: messages[0]: not an object"),
    "bad content": ('{"messages": [{"content": 5}]}', "input_without_text", "its content is a JSON number"),
}


@pytest.mark.parametrize(("line", "name", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_row_is_named_and_nothing_is_written(curate: Any, line: str, name: str, message: str) -> None:
    refused(curate([GOOD, line, GOOD]), name, "in.jsonl", message)
    assert not curate.out.exists()


BAD_CONFIG = {
    "top-level key": ({"langage_codes": []}, "config_invalid", "langage_codes: unknown key", "'language_codes'"),
    "section key": ({"quality_filters": {"min_word": 1}}, "config_invalid", "quality_filters.min_word", "'min_words'"),
    "fuzzy key": ({"dedup": {"fuzzy": {"treshold": 1}}}, "config_invalid", "dedup.fuzzy.treshold", "'threshold'"),
    "heuristic": ({"heuristics": {"url": {}}}, "config_invalid", "heuristics.url: unknown filter", "'urls'"),
    "setting": ({"heuristics": {"urls": {"max_ratio": 1}}}, "config_invalid", "max_ratio", "'max_url_to_text_ratio'"),
    "splitter": ({"heuristics": {"long_word": {"lang": "zh"}}}, "config_invalid", "heuristics.long_word", "jieba"),
    "half a word filter": ({"quality_filters": {"min_words": 5}}, "incomplete_word_filter", "min_words", "max_words"),
    "no such model": ({"language_codes": ["EN"], "models": {"fasttext_langid": "/no.bin"}},
                      "missing_language_model", "models.fasttext_langid", "/no.bin"),
    "no such language": ({"language_codes": ["ENG"]}, "config_invalid", "language_codes: 'ENG'"),
    "executor": ({"executor": "dask"}, "config_invalid", "executor: 'dask'"),
    "too few CPUs": ({"executor": "ray", "language_codes": ["EN"], "ray": {"num_cpus": 1}},
                     "not_enough_cpu_resources", "ray.num_cpus is 1"),
    "missing file": ({"input_glob": "gone.jsonl"}, "input_glob_no_matches", "gone.jsonl: no such file"),
    "empty glob": ({"input_glob": "gone/**/*.jsonl"}, "input_glob_no_matches", "the glob matches no file"),
    "empty directory": ({"input_glob": "."}, "input_glob_no_matches", "the directory holds no .jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIG.values(), ids=BAD_CONFIG)
def test_bad_configuration_is_named(curate: Any, case: tuple[Any, ...]) -> None:
    cfg, name, *parts = case
    refused(curate([GOOD], **cfg), name, *parts)
    assert not curate.out.exists()


def test_missing_domain_model_names_the_cache(curate: Any, tmp_path: Path) -> None:
    models = {"hf_cache_dir": str(tmp_path / "cache")}
    outcome = curate([GOOD], env={"HF_HUB_OFFLINE": "1"}, domains=["Science"], models=models)
    refused(outcome, "missing_domain_model", str(tmp_path / "cache"))
    assert "models.hf_cache_dir" in outcome.error["recovery"]


def test_dataset_that_cannot_be_had_is_named(curate: Any) -> None:
    outcome = curate([GOOD], env={"HF_HUB_OFFLINE": "1"}, dataset={"repo_id": "owner/name", "repo_type": "dataset"})
    refused(outcome, "dataset_unavailable", "dataset: owner/name")
    refused(curate([GOOD], dataset={"repo": "owner/name"}), "config_invalid", "dataset: ", "repo")


def test_no_rows_at_all(curate: Any) -> None:
    refused(curate(["", " "]), "empty_input", "in.jsonl")
    assert not curate.out.exists()


def test_nothing_left_says_which_filter_took_most(curate: Any) -> None:
    rows = [{"text": GERMAN}, {"text": GERMAN + " Ja."}, {"text": "short"}]
    outcome = curate(rows, language_codes=["EN"], quality_filters={"min_words": 5, "max_words": 99})
    refused(outcome, "empty_or_tiny_output", "no row of 3", "language removed most", "word_count 1", "Der Ausschuss")
    assert not curate.out.exists()


def test_a_failure_leaves_an_earlier_output_as_it_was(curate: Any) -> None:
    curate([GOOD])
    before = {p.name: p.read_bytes() for p in curate.out.iterdir()}
    refused(curate([GOOD, "{"]), "input_not_json")
    assert {p.name: p.read_bytes() for p in curate.out.iterdir()} == before


def test_own_output_is_no_input(curate: Any, tmp_path: Path) -> None:
    curate([GOOD])
    refused(curate(input_glob=str(tmp_path / "**/*.jsonl")), "config_invalid", "lies in output_dir")


def test_damaged_gzip_is_named(curate: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl.gz"
    bad.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 99)[:-20])
    refused(curate(input_glob=str(bad)), "input_unreadable", str(bad))


def test_default_configuration_is_complete(curate: Any) -> None:
    cfg = yaml.safe_load((STEP / "config/default.yaml").read_text("utf-8"))
    refused(curate([GOOD], **{**cfg, "dataset": None, "output_dir": str(curate.out)}), "missing_language_model")
