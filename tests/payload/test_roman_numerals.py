"""The example's source step: right answers, held-out numbers nowhere, the same rows every time."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from payload_run import REPOSITORY, run_payload

STEP = REPOSITORY / "examples/teach_a_skill/steps/source/roman_numerals"
VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
CANONICAL = re.compile(r"M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")


def value(numeral: str) -> int:
    assert CANONICAL.fullmatch(numeral), numeral
    values = [VALUES[sign] for sign in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))


@pytest.mark.parametrize("config", ["default", "tiny"])
def test_clean_rows_are_right_and_held_out_numbers_are_nowhere(config: str, roman_rows: Any) -> None:
    made = roman_rows(config)
    assert len({row["id"] for row, _ in made}) == len(made)
    for row, dirt in made:
        question, answer = (m["content"] for m in row["messages"])
        numbers = [int(n) for n in re.findall(r"\d+", question + " " + answer)]
        assert all(n % 8 != 5 for n in numbers)
        if dirt is None:
            assert value(answer) == numbers[0]
        elif signs := re.findall(r"\b[MDCLXVI]+\b", answer):
            assert all(value(s) % 8 != 5 for s in signs)


def test_every_number_is_asked_in_the_canonical_way(roman_rows: Any) -> None:
    asked = {row["messages"][0]["content"] for row, dirt in roman_rows("default") if dirt is None}
    assert {f"What is {n} in Roman numerals?" for n in range(1, 4000) if n % 8 != 5} <= asked


def test_a_duplicate_comes_after_its_original(roman_rows: Any) -> None:
    seen: set[str] = set()
    for row, dirt in roman_rows("default"):
        if dirt in (None, "duplicates"):
            text = json.dumps(row["messages"])
            assert (text in seen) == (dirt == "duplicates")
            seen.add(text)


def test_the_step_writes_the_same_rows_and_their_license(tmp_path: Path, roman_rows: Any) -> None:
    cfg = yaml.safe_load((STEP / "config/tiny.yaml").read_text("utf-8"))
    outcome = run_payload(STEP, {**cfg, "output_dir": str(tmp_path / "out")}, tmp_path / "run", sys.executable)
    assert outcome.status == 0, outcome.stderr
    lines = (tmp_path / "out/rows.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [row for row, _ in roman_rows("tiny")]
    assert "CC0" in (tmp_path / "out/README.md").read_text("utf-8")
    assert outcome.facts["rows"] == len(lines)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"phrasing": 2}, "phrasing: unknown key; did you mean 'phrasings'?"),
        ({"noise": {"junks": 0.1}}, "noise.junks: unknown key; did you mean 'junk'?"),
        ({"phrasings": 9}, "phrasings: 9 is not a whole number from 1 to 4"),
        ({"noise": {"junk": 2}}, "noise.junk: 2 is not a number from 0 to 1"),
    ],
)
def test_bad_configuration_is_named(tmp_path: Path, cfg: dict[str, Any], message: str) -> None:
    outcome = run_payload(STEP, {"output_dir": str(tmp_path / "out"), **cfg}, tmp_path / "run", sys.executable)
    assert outcome.status == 3
    assert outcome.error["message"] == message
    assert not (tmp_path / "out").exists()
