"""Writes the two test sets of this folder: `python generate.py` gives the committed files again, byte for byte.

Training data never holds a number with n % 8 == 5; every second one of those is asked here.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

LARGEST = 3999
SEED = 0
OPTIONS = 4
NEARBY = 8  # wrong options are drawn from this many nearest numerals as long as the right one
UNITS = (
    (1000, "M"),
    (900, "CM"),
    (500, "D"),
    (400, "CD"),
    (100, "C"),
    (90, "XC"),
    (50, "L"),
    (40, "XL"),
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
)


def to_roman(number: int) -> str:
    """The canonical numeral of 1..3999."""
    out = []
    for value, letters in UNITS:
        count, number = divmod(number, value)
        out.append(letters * count)
    return "".join(out)


def held_out() -> list[int]:
    """250 numbers, evenly spread over the whole range."""
    return [n for n in range(1, LARGEST + 1) if n % 16 == 5]


def choices(number: int, answer: int, rng: random.Random) -> list[str]:
    """The right numeral at position ``answer`` among nearby ones.

    All are of one length: a model that knows nothing likes short texts, and must not gain or lose by it.
    """
    right = to_roman(number)
    others = [m for m in range(1, LARGEST + 1) if m != number and len(to_roman(m)) == len(right)]
    near = sorted(others, key=lambda m: (abs(m - number), m))[:NEARBY]
    wrong = [to_roman(m) for m in rng.sample(near, OPTIONS - 1)]
    return [*wrong[:answer], right, *wrong[answer:]]


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")


def main() -> None:
    folder = Path(__file__).resolve().parent
    rng = random.Random(SEED)
    numbers = held_out()
    answers = [i % OPTIONS for i in range(len(numbers))]  # every position is right equally often
    rng.shuffle(answers)
    write(folder / "test.jsonl", [{"number": n, "numeral": to_roman(n)} for n in numbers])
    write(
        folder / "choice.jsonl",
        [{"number": n, "choices": choices(n, a, rng), "answer": a} for n, a in zip(numbers, answers, strict=True)],
    )


if __name__ == "__main__":
    main()
