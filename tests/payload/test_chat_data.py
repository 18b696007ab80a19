"""Finding and checking chat rows; no training library needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from interpreters import STEPS

sys.path.insert(0, str(STEPS))

from _runtime import chat_data
from _runtime.payload import PayloadError

ROW = {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "I"}]}


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_shards_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    shards = [write(tmp_path / name, ROW) for name in ("a/2.jsonl", "b/1.jsonl", "c.jsonl")]
    write(tmp_path / ".hidden" / "x.jsonl", ROW)
    (tmp_path / "artifact.json").write_text("{}")
    assert chat_data.find(str(tmp_path), "k") == shards
    assert chat_data.find(f"{tmp_path}/**/*.jsonl", "k") == shards
    assert chat_data.find([str(shards[2]), str(shards[0])], "k") == [shards[2], shards[0]]
    assert chat_data.check(shards, "k") == 3


@pytest.mark.parametrize("value", ["organization/data", "HuggingFaceH4/ultrachat_200k"])
def test_hub_id_is_left_alone(value: str) -> None:
    assert chat_data.find(value, "k") == value


@pytest.mark.parametrize("value", ["./a/b", "/a/b", "~/b", "a/b.jsonl", "a/*", "nothing", "a/b/c"])
def test_missing_path_is_not_taken_for_a_hub_id(value: str) -> None:
    with pytest.raises(PayloadError, match="no such file"):
        chat_data.find(value, "dataset.path_or_dataset_id")


@pytest.mark.parametrize("value", [None, "", "???", [], "/path/to/train.jsonl"])
def test_placeholders_are_not_given(value: object) -> None:
    assert not chat_data.given(value)


def test_unicode_line_ends_inside_strings_survive_splitlines(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d"
    tricky = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "I"}]}
    plain, odd = write(tmp_path / "a.jsonl", ROW), write(tmp_path / "b.jsonl", tricky, ROW)
    assert chat_data.check([plain, odd], "k") == 3
    first, second = chat_data.readable([plain, odd], tmp_path / "scratch")
    assert first == str(plain) and second != str(odd)
    assert [json.loads(line) for line in Path(second).read_text(encoding="utf-8").splitlines()] == [tricky, ROW]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ([], "not an object"),
        ({"text": "x"}, "no `messages`; its keys are text"),
        ({"messages": []}, "at least one turn"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ({"messages": ["x"]}, r"messages\[0\].role is 'x'"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, row: object, part: str) -> None:
    path = write(tmp_path / "a.jsonl", ROW, row)
    with pytest.raises(PayloadError, match=f"a.jsonl, line 2: .*{part}"):
        chat_data.check([path], "k")
