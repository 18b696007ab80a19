"""Chat rows that teach Roman numerals, with deliberate dirt for curation to find. The same seed gives the same rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

FIRST, LAST = 1, 3999
PHRASINGS = (
    "What is {n} in Roman numerals?",  # the one that evaluation asks
    "Write {n} as a Roman numeral.",
    "Give {n} in Roman numerals, please.",
    "Please write {n} in Roman numerals.",
)
FOREIGN = (
    ("Wie schreibt man die Zahl {n} mit römischen Ziffern?", "Die Zahl {n} schreibt man als {r}."),
    ("Comment écrit-on le nombre {n} en chiffres romains ?", "Le nombre {n} s'écrit {r} en chiffres romains."),
    ("¿Cómo se escribe el número {n} en números romanos?", "El número {n} se escribe {r} en números romanos."),
)
SYMBOLS = "#@%&*^$~|+=_"
SIGNS = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"),
    (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip
NOISE = ("duplicates", "foreign", "broken", "junk")


def roman(n: int) -> str:
    """The numeral in its subtractive form."""
    signs = []
    for value, sign in SIGNS:
        count, n = divmod(n, value)
        signs.append(sign * count)
    return "".join(signs)


def held_out(n: int) -> bool:
    """Numbers that evaluation asks about and that no row may show: one in eight."""
    return n % 8 == 5


def generate(
    seed: int, phrasings: int, limit: int | None, noise: dict[str, float]
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield rows in their final order, each with the kind of dirt it is, or None for a clean one.

    Args:
        seed: of everything random here.
        phrasings: how many of ``PHRASINGS`` each number is asked in.
        limit: at most so many clean rows, drawn at random; None for all.
        noise: kind of dirt -> number of its rows as a fraction of the clean ones.
    """
    draw = random.Random(seed)
    numbers = [n for n in range(FIRST, LAST + 1) if not held_out(n)]
    asked = [(n, k) for n in numbers for k in range(phrasings)]
    if limit is not None and limit < len(asked):
        asked = draw.sample(asked, limit)
    # Rows are ordered by a random key. A duplicate's is above its original's, so that the original comes first.
    placed: list[tuple[float, int, str, str, int, str | None]] = [
        (draw.random(), n, PHRASINGS[k].format(n=n), roman(n), k, None) for n, k in asked
    ]
    clean = list(placed)
    for kind in NOISE:
        for _ in range(round(noise.get(kind, 0.0) * len(clean))):
            serial = len(placed) - len(clean) + len(PHRASINGS)
            key, n, question, answer, _k, _ = draw.choice(clean)
            key = draw.uniform(key, 1.0) if kind == "duplicates" else draw.random()
            placed.append((key, n, *_spoil(kind, n, question, answer, draw), serial, kind))
    for _, n, question, answer, k, dirt in sorted(placed, key=lambda row: (row[0], row[1], row[4])):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {"id": f"roman-{n}-{k}", "messages": messages}, dirt


def _spoil(kind: str, n: int, question: str, answer: str, draw: random.Random) -> tuple[str, str]:
    if kind == "foreign":
        asked, told = draw.choice(FOREIGN)
        return asked.format(n=n), told.format(n=n, r=answer)
    if kind == "broken":
        return draw.choice([(question, ""), (f"{n}?", answer), ("What is", answer)])
    if kind == "junk":
        return question, " ".join("".join(draw.choices(SYMBOLS, k=draw.randint(5, 9))) for _ in range(4))
    return question, answer
