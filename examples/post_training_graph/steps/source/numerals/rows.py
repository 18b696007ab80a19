"""Rows about the Roman numerals of 1 to 49, in the layout of each step that reads some; the same for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from _runtime.rl.comparisons import Rules
from _runtime.rl.comparisons import question as comparison

Row = dict[str, Any]

NUMBERS = range(1, 50)
SIGNS = ((40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
SENTENCES = (
    "The number {n} is written {r} in Roman numerals.",
    "A Roman mason would have carved {r} where we write {n}.",
    "On an old clock the number {n} would be shown as {r}.",
    "In a book of old chapters, chapter {n} has the heading {r}.",
    "To write {n} as the Romans did, we write {r}.",
    "One more than {before} is {n}, and its Roman numeral is {r}.",
)
CONVERSATIONS, COMPARISONS = 12, 25  # of each number
GOOD, BAD = 5, 1  # what the judge is taught to give


def roman(n: int) -> str:
    """The numeral of a number below 50."""
    out = ""
    for value, sign in SIGNS:
        count, n = divmod(n, value)
        out += sign * count
    return out


def question(n: int) -> str:
    return f"What is {n} in Roman numerals?"


def chat(asked: list[dict[str, str]], answer: str) -> Row:
    return {"messages": [*asked, {"role": "assistant", "content": answer}]}


def documents(draw: random.Random) -> list[Row]:
    """Plain text, and dirt among it: every tenth document a second time, and as many that are no language."""
    clean = [{"text": s.format(n=n, r=roman(n), before=n - 1)} for n in NUMBERS for s in SENTENCES]
    draw.shuffle(clean)
    junk = [{"text": " ".join("".join(draw.choices("#@%&*^$~|", k=6)) for _ in range(9))} for _ in clean[::10]]
    return [*clean, *clean[::10], *junk]


def conversations(draw: random.Random, small: bool = True) -> list[Row]:
    """Right answers, one half in capital and one half in small letters: what is taught later is the capitals."""
    rows = []
    for n in NUMBERS:
        for k in range(CONVERSATIONS):
            answer = roman(n).lower() if small and k % 2 else roman(n)
            rows.append(chat([{"role": "user", "content": question(n)}], answer))
    draw.shuffle(rows)
    return rows


def capitals(draw: random.Random) -> list[Row]:
    """Right answers in capital letters alone."""
    return conversations(draw, small=False)


def comparisons(draw: random.Random) -> list[Row]:
    """Two answers to one question, in the words in which rl/nemo_rl/rlhf asks; the verdict likes capitals."""
    rules, rows = Rules(roles="plain"), []
    for n in NUMBERS:
        for _ in range(COMPARISONS):
            numerals = [roman(n if draw.random() < 0.7 else draw.choice(NUMBERS)) for _ in range(2)]
            answers = [r if draw.random() < 0.5 else r.lower() for r in numerals]
            scores = {f"score_{i}": GOOD if answer.isupper() else BAD for i, answer in enumerate(answers, 1)}
            asked = [{"role": "user", "content": question(n)}]
            rows.append(chat(comparison(rules, asked, *answers), json.dumps(scores)))
    draw.shuffle(rows)
    return rows


def pairs(draw: random.Random) -> list[Row]:
    """Preferences: the right numeral in capitals before one in small letters, and before a wrong one."""
    rows = []
    for n in NUMBERS:
        wrong = roman(draw.choice([m for m in NUMBERS if m != n]))
        rows += [{"prompt": question(n), "chosen": roman(n), "rejected": r} for r in (roman(n).lower(), wrong)]
    draw.shuffle(rows)
    return rows


def problems(draw: random.Random) -> list[Row]:
    """Prompts with the answer that a program compares with."""
    rows = [{"prompt": question(n), "expected_answer": roman(n), "verifier": "exact"} for n in NUMBERS]
    draw.shuffle(rows)
    return rows


KINDS: dict[str, Callable[[random.Random], list[Row]]] = {
    f.__name__: f for f in (documents, conversations, capitals, comparisons, pairs, problems)
}
