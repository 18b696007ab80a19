"""The JSON lines types: which rows pass, what is said of those that do not, and that size moves neither."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from nemotron_dagster.artifacts import artifact_type, validate
from nemotron_dagster.artifacts.types import _check, _fast, _parallel, _rows, _scan, _tally
from nemotron_dagster.errors import ArtifactError

USER, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CHAT = {"messages": [USER, SAID]}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "2"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
TOOL_CHAT = {"messages": [USER, ASKS, ANSWER, SAID], "tools": TOOLS}
PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
RANKED = {
    "context": [USER],
    "completions": [{"rank": 0, "completion": [SAID]}, {"rank": 1, "completion": [{**SAID, "content": "c"}]}],
}
GYM = {"responses_create_params": {"input": "x"}, "agent_ref": {"type": "responses_api_agents", "name": "math"}}
SHAREGPT = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}
PARTS = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}, SAID]}

GOOD = [
    (CHAT, "chat"),
    (TOOL_CHAT, "chat"),
    (PARTS, "chat"),
    ({"messages": [USER, {**SAID, "reasoning_content": "r"}], "prompt": {"any": "thing"}}, "chat"),
    ({"messages": [USER, {**ASKS, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, {**ANSWER}]}, "chat"),
    ({**CHAT, "tools": json.dumps(TOOLS)}, "chat"),
    ({**CHAT, "tools": None, "chosen": None}, "chat"),
    (PAIR, "preference"),
    ({**PAIR, "prompt": [USER], "chosen": [SAID]}, "preference"),
    (RANKED, "ranked"),
    ({"prompt": "p", "expected_answer": "1"}, "prompt"),
    ({"problem": "p"}, "prompt"),
    (GYM, "gym"),
    ({"responses_create_params": {"input": [USER]}, "agent_ref": {"name": "x"}}, "gym"),
    (SHAREGPT, "sharegpt"),
]


def change(row: dict, path: str, value: object) -> dict:
    """The row with one value replaced; ``...`` removes it."""
    row = json.loads(json.dumps(row))
    *steps, last = [int(s) if s.isdigit() else s for s in path.split(".")]
    inner = row
    for step in steps:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return row


BAD = [
    ({"text": "x"}, r"has no `messages` \(it has text\)"),
    (change(CHAT, "messages", []), "`messages` is not a non-empty list"),
    (change(CHAT, "messages", {}), "`messages` is not a non-empty list, but an object"),
    (change(CHAT, "messages.0.role", "robot"), r"messages\[0\] has no role .*'robot'"),
    (change(CHAT, "messages.0.role", ...), r"messages\[0\] has no role"),
    (change(CHAT, "messages.1.content", None), r"messages\[1\]\.content is neither text nor a list of parts, but null"),
    (change(CHAT, "messages.1.content", 5), r"messages\[1\]\.content is neither"),
    (change(CHAT, "messages.1.content", True), r"messages\[1\]\.content is neither"),
    (change(CHAT, "messages.1.content", {}), r"messages\[1\]\.content is neither"),
    (change(CHAT, "messages.1.reasoning_content", 5), r"messages\[1\]\.reasoning_content is a number"),
    (change(PARTS, "messages.0.content.0.text", ...), r"messages\[0\]\.content\[0\]\.text is null"),
    (change(PARTS, "messages.0.content.1.type", ...), r"messages\[0\]\.content\[1\] has no `type`"),
    (change(TOOL_CHAT, "messages.2.tool_call_id", "c9"), r"messages\[2\]\.tool_call_id is 'c9'.*they have c1"),
    (change(TOOL_CHAT, "messages.2.tool_call_id", ...), r"messages\[2\]\.tool_call_id is None"),
    ({"messages": [USER, ANSWER]}, r"messages\[1\] is a tool's answer, but no assistant message before it"),
    (change(TOOL_CHAT, "messages.1.tool_calls.0.type", "fn"), r"tool_calls\[0\]\.type is 'fn'"),
    (change(TOOL_CHAT, "messages.1.tool_calls.0.function.name", ""), r"function\.name is missing"),
    (change(TOOL_CHAT, "messages.1.tool_calls.0.function.arguments", "{"), "arguments is text that is not JSON"),
    (change(TOOL_CHAT, "messages.1.tool_calls.0.function.arguments", "[1]"), "arguments is a list"),
    (change(TOOL_CHAT, "messages.1.tool_calls.0.function", ...), "has no `function` object"),
    (change(TOOL_CHAT, "tools.0.function.parameters.type", "int"), r"tools\[0\].*parameters\.type is 'int'"),
    (change(TOOL_CHAT, "tools.0.function.parameters.required", "x"), r"required is not a list of names"),
    (change(TOOL_CHAT, "tools.0.function", ...), r"tools\[0\] has no `function`"),
    (change(TOOL_CHAT, "tools", "x"), "tools is text that is not JSON"),
    (change(PAIR, "rejected", ...), "preference row without `rejected`"),
    (change(PAIR, "prompt", ...), "preference row without `prompt`"),
    (change(PAIR, "chosen", " "), "`chosen` is empty"),
    (change(PAIR, "chosen", "bad"), "`chosen` and `rejected` are equal"),
    (change(RANKED, "completions.1.rank", 0), "all have one rank"),
    (change(RANKED, "completions.1.rank", "0"), r"completions\[1\]\.rank is no whole number"),
    (change(RANKED, "completions.1.completion", [SAID]), "best and the worst .* are equal"),
    (change(RANKED, "completions", []), "fewer than two"),
    (change(GYM, "agent_ref", ...), r"`agent_ref\.name` is missing"),
    (change(GYM, "responses_create_params.input", []), "input` is missing or empty"),
    ({"prompt": "  "}, "`prompt` is empty"),
    (change(SHAREGPT, "conversations.0.value", 1), r"conversations\[0\]\.value is not text"),
]


def save(path: Path, *rows: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(("row", "kind"), GOOD)
def test_every_documented_row_passes_and_is_told_by_its_kind(tmp_path: Path, row: dict, kind: str) -> None:
    for n in (1, 300):
        facts = validate("training_jsonl", save(tmp_path / "d.jsonl", *[CHAT] * 3, *[row] * n, CHAT))
        kinds = {"chat": 4, kind: n + (4 if kind == "chat" else 0)}
        assert facts["kinds"] == kinds and facts["rows"] == n + 4


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_bad_row_is_named_by_line_and_json_path(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=r"d\.jsonl:4: .*" + message) as error:
        validate("training_jsonl", save(tmp_path / "d.jsonl", CHAT, "", PAIR, row, TOOL_CHAT, CHAT))
    assert "1 of 5 rows are wrong" in str(error.value)


def one_row(row: object) -> _tally.Tally:
    line = json.dumps(row).encode()
    return _check.check_blocks([_scan.Lines([line])], _check.Rules(train=True))


@pytest.mark.parametrize("row", [row for row, _ in [*GOOD, *BAD]])
def test_what_the_fast_way_takes_the_exact_one_takes_too(row: dict) -> None:
    """Each value of the row, replaced by values of all types, in turn."""

    def paths(value: object, at: tuple = ()) -> list[tuple]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [at, *[p for key, inner in items for p in paths(inner, (*at, key))]]

    seen = 0
    for path in paths(row)[1:]:
        for value in (None, "", " ", "x", 5, True, [], {}, [{}], {"a": None}, "{}", ...):
            changed = json.loads(json.dumps(row))
            inner = changed
            for step in path[:-1]:
                inner = inner[step]
            if value is ...:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            seen += 1
            tally = one_row(changed)
            try:
                kind: str | None = _rows.check(changed)
            except _rows.Fault as e:
                kind = None
                assert [text for _, text in tally.shown] == [str(e)], changed
            assert (tally.wrong == 0) == (kind is not None), changed
            if kind:
                assert {k for k, n in tally.kinds.items() if n} == {kind}, changed
    assert seen


@pytest.mark.parametrize("seed", range(6))
def test_rows_in_blocks_count_as_they_do_one_by_one(seed: int) -> None:
    """Blocks of one kind, of two, and of everything, with rows among them that are wrong or blank."""
    rng = random.Random(seed)
    said = {"messages": [USER]}
    offers = [{**CHAT, "tools": tools} for tools in (TOOLS, [], json.dumps(TOOLS), [{}])]
    named = [{**CHAT, "lang": "de"}, {**TOOL_CHAT, "language": "(0.9, 'EN')"}, {**PAIR, "language": "fr"}]
    everything = [*[r for r, _ in [*GOOD, *BAD]], said, *offers, *named, "", "{bad"]
    alike: list = [CHAT, TOOL_CHAT, PARTS, PAIR, GYM, CHAT, TOOL_CHAT]
    blocks, wrong, number = [], [], 0
    exact = _tally.Tally()
    for _ in range(30):
        most = rng.choice(alike)
        some = [most if rng.random() < 0.9 else rng.choice(everything) for _ in range(20)]
        some = rng.choice([some, [most] * 20, rng.choices(everything, k=20)])
        blocks.append(_scan.Lines([(r if isinstance(r, str) else json.dumps(r)).encode() + b"\n" for r in some]))
        for row in some:
            number += 1
            if isinstance(row, str):
                wrong += [number] if row else []
                continue
            try:
                _tally.count(exact, row, _rows.check(row))
            except _rows.Fault:
                wrong.append(number)
    tally = _check.check_blocks(blocks, _check.Rules(train=True))
    for name in ("kinds", "roles", "turns", "languages"):
        assert +getattr(tally, name) == getattr(exact, name), name
    assert (tally.with_tools, tally.without_assistant) == (exact.with_tools, exact.without_assistant)
    assert [line for line, _ in tally.shown] == wrong[:20] and tally.wrong == len(wrong)


def test_messages_that_no_rule_asks_to_be_well_formed_are_counted_as_far_as_they_go(tmp_path: Path) -> None:
    row = {"messages": [{"role": "robot"}, 5, USER, {"role": []}], "language": 5}
    facts = validate("raw_jsonl", save(tmp_path / "d.jsonl", row))
    assert facts["kinds"] == {"chat": 1} and facts["roles"] == {"user": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xef\xbb\xbf{}\n", r"d\.jsonl:1: begins with a byte order mark"),
        ('{"text": "x"}\n'.encode("utf-16"), r"d\.jsonl:1: is UTF-16"),
        (b'{}\n{"text": "\xff"}\n', r"d\.jsonl:2: is not UTF-8 \(byte 0xff at 10\)"),
        (b'{}\n{"text": "gr\xc3\xb6\xc3"}\n', r"d\.jsonl:2: is not UTF-8 \(byte 0xc3"),
        (b'{}\n{"score": NaN}\n', r"d\.jsonl:2: has the value NaN"),
        (b'{}\n{"score": -Infinity}\n', r"has the value -Infinity"),
        (b'{}\n{"t": "\\ud800"}\n', "half of a surrogate pair"),
        (b"{}\n\0\0\0\0", r"d\.jsonl:2: is not JSON: it has NUL bytes"),
        (b'{}\n{"text": "cut o', r"d\.jsonl:2: is not JSON .*the file ends within it: it was cut off"),
        (b"{}\n{}{}\n", r"d\.jsonl:2: is not JSON"),
        (b'{\n"a": 1}\n', r"d\.jsonl:1: is not JSON"),
        (b"[{}]\n", "is a JSON list, not an object"),
        (b'{"a":' + b"[" * 100_000 + b"\n", "is not JSON"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}\n", "is not JSON|nested too deeply"),
        (b"", r"d\.jsonl: is empty \(0 bytes\)"),
        (b"\n \n\n", "has no rows"),
    ],
)
def test_damaged_text_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(data)
    with pytest.raises(ArtifactError, match=message):
        validate("raw_jsonl", tmp_path)


def test_what_every_reader_takes_passes(tmp_path: Path) -> None:
    text = '{"n": 1}\r\n\n  {"n": 123456789012345678901234567890, "n": 2}  \n{"t": "größe 日本 \\ud83d\\ude00"}'
    (tmp_path / "d.jsonl").write_text(text, newline="")
    facts = validate("raw_jsonl", tmp_path)
    assert (facts["rows"], facts["blank_lines"], facts["kinds"]) == (3, 1, {"other": 3})
    assert [r.get("n") for r in artifact_type("raw_jsonl").read(tmp_path)] == [1, 2, None]


def test_a_null_key_counts_as_absent(tmp_path: Path) -> None:
    rows = [{"text": "a", "messages": None}, {"text": "b", "messages": 1}, {"text": None}, {"text": "null"}]
    facts = validate("raw_jsonl", save(tmp_path / "d.jsonl", *rows))
    assert facts["kinds"] == {"text": 2, "chat": 1, "other": 1}


def test_facts_describe_the_rows(tmp_path: Path) -> None:
    rows = [{**CHAT, "lang": "de"}, {**TOOL_CHAT, "language": "(0.97, 'EN')"}, {"messages": [USER]}, PAIR]
    facts = validate("training_jsonl", save(tmp_path / "d.jsonl", *rows))
    assert facts["roles"] == {"user": 3, "assistant": 3, "tool": 1}
    assert facts["languages"] == {"de": 1, "EN": 1}
    assert (facts["rows_with_tools"], facts["rows_without_assistant"]) == (1, 1)
    assert sum(facts["lengths"]["counts"]) == 4 and sum(facts["turns"]["counts"]) == 3
    assert facts["lengths"]["edges"][0] == min(len(json.dumps(r)) for r in rows)
    assert ["messages", "list[object]"] in facts["columns"] and len(facts["samples"]) == 4
    loaded = artifact_type("training_jsonl")
    assert loaded.figures(facts)["messages"] == 7 and "| chat | 3 |" in loaded.tables(facts)["kinds"]
    assert loaded.draw(facts, tmp_path) == ["lengths.png", "roles.png", "languages.png"]
    assert json.loads(json.dumps(facts)) == facts


def test_facts_stay_small_whatever_a_row_holds(tmp_path: Path) -> None:
    row = {"text": "x" * 100_000, "many": list(range(10_000)), **{f"k{i}": i for i in range(5000)}}
    facts = validate("raw_jsonl", save(tmp_path / "d.jsonl", *[row] * 10))
    assert len(json.dumps(facts)) < 30_000


def test_processes_see_what_one_process_sees_whatever_the_cuts(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [{"text": "x" * rng.choice([0, 10, 3000]), "i": i} for i in range(300)]
    file = save(tmp_path / "d.jsonl", *rows[:150], "", "{bad", *rows[150:])
    whole = _check.check_piece((_scan.Piece(file, 0, None), _check.Rules()))
    for size in (1, 7, 1000, 4096, 50_000):
        pieces = _scan.pieces([file], size)
        some = pieces if size > 1 else pieces[:2000]
        parts = _parallel.each(_check.check_piece, [(p, _check.Rules()) for p in some], 1 if size < 4096 else 3)
        if size > 1:
            assert sum(t.rows for t in parts) == whole.rows == 301 and sum(t.lines for t in parts) == 302
            assert sum(t.wrong for t in parts) == 1


def test_line_numbers_are_right_in_a_file_that_processes_share(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("nemotron_dagster.artifacts.types._jsonl._ALONE", 0)
    monkeypatch.setattr(_parallel, "processors", lambda: 2)
    lines = [json.dumps({"text": "x" * 3000})] * 12_000
    lines[11_000] = "{bad"
    save(tmp_path / "d.jsonl", *lines)
    assert (tmp_path / "d.jsonl").stat().st_size > 3 * (8 << 20)
    with pytest.raises(ArtifactError, match=r"d\.jsonl:11001: is not JSON"):
        validate("raw_jsonl", tmp_path)


def test_a_dead_worker_is_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match="3: the process that read it ended"):
        _parallel.each(os._exit, [3, 3], 2)


def test_links_that_lead_nowhere_or_round_are_named_and_a_linked_directory_is_read_once(tmp_path: Path) -> None:
    save(tmp_path / "real.jsonl", CHAT)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/again").symlink_to(tmp_path)
    assert validate("raw_jsonl", tmp_path)["rows"] == 1
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "gone.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(ArtifactError, match=r"gone\.jsonl: is a symbolic link to now[\s\S]*loop\.jsonl: is a symbo"):
        validate("raw_jsonl", tmp_path)
    with pytest.raises(ArtifactError, match="leads back to itself"):
        validate("raw_jsonl", tmp_path / "loop.jsonl")


@pytest.mark.parametrize("name", ["d.jsonl.part", "x.crdownload", "d.jsonl.tmp", "e.jsonl.gz.incomplete"])
def test_an_unfinished_download_beside_the_data_is_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path / "d.jsonl", CHAT)
    (tmp_path / name).write_text("x")
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.") + ": looks like a download or copy"):
        validate("raw_jsonl", tmp_path)
    if name.startswith("d."):
        with pytest.raises(ArtifactError, match="looks like a download"):
            validate("raw_jsonl", tmp_path / "d.jsonl")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_shards_pass_whole_and_are_refused_cut(tmp_path: Path, suffix: str) -> None:
    data = "".join(json.dumps({"n": i, "t": str(hash(str(i)))}) + "\n" for i in range(3000)).encode()
    packed = gzip.compress(data) if suffix == ".gz" else zstandard.compress(data)
    file = tmp_path / f"d.jsonl{suffix}"
    file.write_bytes(packed + packed)  # two members, as appending makes them
    assert validate("raw_jsonl", tmp_path)["rows"] == 6000
    for cut in (5, len(packed) // 2, len(packed) - 3, len(packed) + 9):
        file.write_bytes((packed + packed)[:cut])
        with pytest.raises(ArtifactError, match=f"d\\.jsonl\\{suffix}: cannot be read"):
            validate("raw_jsonl", tmp_path)


def test_parquet_rows_follow_the_same_rules(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([CHAT, TOOL_CHAT | {"lang": "de"}]), tmp_path / "a.parquet")
    facts = validate("synthetic_jsonl", tmp_path)
    assert facts["kinds"] == {"chat": 2} and facts["rows_with_tools"] == 1
    pq.write_table(pa.Table.from_pylist([CHAT, {"messages": [{"role": "x", "content": "y"}]}]), tmp_path / "a.parquet")
    with pytest.raises(ArtifactError, match=r"a\.parquet: row 2: messages\[0\] has no role"):
        validate("synthetic_jsonl", tmp_path)
    with pytest.raises(ArtifactError, match=r"without \*\.jsonl files"):
        validate("training_jsonl", tmp_path)


def test_faith_scores_must_be_finite(tmp_path: Path) -> None:
    good = {"text": "x", "translated_text": "y", "faith_avg": 4.5}
    assert validate("translated_jsonl", save(tmp_path / "d.jsonl", good))["rows"] == 1
    table = pa.Table.from_pylist([good, {**good, "faith_avg": float("nan")}])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ArtifactError, match=r"a\.parquet: row 2: faith_avg is nan, not a finite number"):
        validate("translated_jsonl", tmp_path)
    (tmp_path / "a.parquet").unlink()
    save(tmp_path / "d.jsonl", good, {"translated_messages": [{"role": "x"}]})
    with pytest.raises(ArtifactError, match=r"d\.jsonl:2: translated_messages\[0\] has no role"):
        validate("translated_jsonl", tmp_path)


def test_a_line_longer_than_memory_should_hold_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(_scan, "LONGEST", 3_000_000)
    (tmp_path / "d.jsonl").write_text('{}\n{"text": "' + "x" * 5_000_000 + '"}\n{}\n{"a": 1}')
    with pytest.raises(ArtifactError, match=r"d\.jsonl:2: is a line of 5 MB[\s\S]*1 of 4 rows"):
        validate("raw_jsonl", tmp_path)
    (tmp_path / "d.jsonl").write_text("x" * 5_000_000)
    with pytest.raises(ArtifactError, match=r"d\.jsonl:1: is a line of 5 MB"):
        validate("raw_jsonl", tmp_path)


def test_rows_are_written_in_shards_and_read_back(tmp_path: Path) -> None:
    from nemotron_dagster.artifacts.types import _jsonl

    rows = [{"text": f"größe {i}", "i": i} for i in range(100)]
    _jsonl.write(iter(rows), tmp_path / "out", shard_bytes=1000)
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files[0] == "part-00000.jsonl" and len(files) > 2
    assert all(p.stat().st_size <= 1000 for p in (tmp_path / "out").iterdir())
    assert list(artifact_type("raw_jsonl").read(tmp_path / "out")) == rows
    with pytest.raises(ArtifactError, match="has shards already"):
        _jsonl.write(rows, tmp_path / "out")
    with pytest.raises(ArtifactError, match="no rows to write"):
        _jsonl.write([], tmp_path / "none")
    with pytest.raises(ArtifactError, match="row 1 is a list"):
        _jsonl.write([{}, []], tmp_path / "bad")  # type: ignore[list-item]
    assert not list((tmp_path / "bad").iterdir())


@pytest.mark.parametrize("seed", range(4))
def test_flipped_and_cut_bytes_give_an_artifact_error_or_rows_that_json_reads(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    original = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r, _ in [*GOOD, ({"t": "größe"}, "")]).encode()
    file = tmp_path / "d.jsonl"
    passed = refused = 0
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.choice([0, 1, 1, 3])):
            data[rng.randrange(len(data))] = rng.choice(b'\x00\n\r "\\{}[],:0\xff\xc3n')
        if rng.random() < 0.3:
            del data[rng.randrange(1, len(data)) :]
        file.write_bytes(bytes(data))
        try:
            facts = validate("raw_jsonl", file)
        except ArtifactError:
            refused += 1
            with pytest.raises((ValueError, AssertionError)):
                for line in filter(bytes.strip, bytes(data).split(b"\n")):
                    row = json.loads(line.decode(), parse_constant=int)
                    assert isinstance(row, dict)
                    json.dumps(row, ensure_ascii=False).encode()
        else:
            passed += 1
            assert facts["rows"] == sum(isinstance(json.loads(x), dict) for x in bytes(data).split(b"\n") if x.strip())
    assert passed > 20 and refused > 20


def test_a_big_file_is_checked_in_little_memory(tmp_path: Path) -> None:
    block = "".join(
        json.dumps({"messages": [USER, {**SAID, "content": "x" * 1500}], "i": i}) + "\n" for i in range(500)
    )
    with open(tmp_path / "d.jsonl", "w") as f:
        for _ in range(250):
            f.write(block)
    assert (tmp_path / "d.jsonl").stat().st_size > 190e6
    code = """
import resource, sys
from pathlib import Path
from nemotron_dagster.artifacts import validate
assert validate("training_jsonl", Path(sys.argv[1]))["rows"] == 125_000
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) // 1024)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", code, str(tmp_path)],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert int(done.stdout) < 300


def test_no_class_of_the_fast_way_forgets_a_role() -> None:
    assert set(_fast.ROLES.values()) == set(_rows.ROLES)
