"""Verifiable rewards: a program compares an answer with what its row says is right.

A row names its verifier in ``verifier``, ``env_name`` or ``environment``, or by the agent of a NeMo-Gym task
(``agent_ref.name``); a row that names none is checked by the config's (``data.default.env_name``).

    exact    the whole answer, without the white space around it, is the expected text
    numeric  the last number of the answer is the expected number
    regex    the expected pattern matches somewhere in the answer
    math     the answer in \\boxed{...}, or after "Answer:", or the last number or line, is the expected number or text
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from _runtime.rl.layouts import Fault, Messages, prompt

ANSWERS = (
    *("expected_answer", "answer", "ground_truth", "reward_model.ground_truth", "solution", "final_answer", "label"),
    "output",
)
DECLARED = ("verifier", "env_name", "environment")
# What NeMo-Gym's agents check like: by the beginning of their names.
AGENTS = {"math_with_judge": "math", "math_with_autograder": "math", "string_match": "exact"}
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_SAID = re.compile(r"(?:^|\n)\s*(?:final\s+)?answer\s*(?:is)?\s*[:=]\s*(.+)", re.IGNORECASE)
_TOLERANCE = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class Task:
    """What is asked, and what the answer is compared with."""

    prompt: Messages
    verifier: str
    expected: str


def task(row: Mapping[str, Any], default: str | None, prompt_field: str | None, answer_field: str | None) -> Task:
    """A verifier row, checked.

    Raises:
        Fault: it asks nothing, has nothing to compare with, or names a verifier that is not known.
    """
    if row.get("chosen") is not None and row.get("rejected") is not None:
        raise Fault("missing_verifier_fields", "a preference pair, which rl/nemo_rl/dpo trains on")
    expected = next((v for f in (answer_field, *ANSWERS) if f and _there(v := _value(row, f))), None)
    if expected is None:
        named = answer_field or "expected_answer"
        raise Fault("missing_verifier_fields", f"no {named!r}; it has {', '.join(map(str, row))[:200]}")
    name = next((str(row[f]) for f in DECLARED if row.get(f)), None) or _agent(row) or default
    if name not in VERIFIERS:
        known = ", ".join(VERIFIERS)
        raise Fault("unknown_verifier", f"verifier {name!r} is not known here; those that are: {known}")
    found = Task(prompt(row, prompt_field), name, str(expected))
    if name == "numeric" and _number(found.expected) is None:
        raise Fault("missing_verifier_fields", f"verifier numeric, but the expected answer {expected!r} is no number")
    if name == "regex":
        try:
            re.compile(found.expected)
        except re.error as e:
            raise Fault("missing_verifier_fields", f"verifier regex, but {expected!r} is no pattern: {e}") from None
    return found


def right(of: Task, answer: str) -> bool:
    """Whether the answer is what the task's verifier accepts."""
    return VERIFIERS[of.verifier](answer, of.expected)


def _exact(answer: str, expected: str) -> bool:
    return answer.strip() == expected.strip()


def _numeric(answer: str, expected: str) -> bool:
    numbers = _NUMBER.findall(answer)
    return bool(numbers) and _same_number(numbers[-1], expected)


def _regex(answer: str, expected: str) -> bool:
    return re.search(expected, answer) is not None


def _math(answer: str, expected: str) -> bool:
    said = _boxed(answer)
    if said is None:
        stated = _SAID.findall(answer)
        numbers = _NUMBER.findall(answer)
        if stated:
            said = stated[-1]
        elif _number(expected) is not None and numbers:
            said = numbers[-1]
        else:
            said = answer.strip().rpartition("\n")[2]
    said, wanted = _plain(said), _plain(_boxed(expected) or expected)
    return said == wanted or _same_number(said, wanted)


VERIFIERS: Mapping[str, Callable[[str, str], bool]] = {
    "exact": _exact,
    "numeric": _numeric,
    "regex": _regex,
    "math": _math,
}


def _boxed(text: str) -> str | None:
    """What the last \\boxed{...} holds; braces inside it are counted."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for at in range(start + 6, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + 7 : at]
    return None


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("$", "").strip()).rstrip(".")


def _same_number(a: str, b: str) -> bool:
    x, y = _number(a), _number(b)
    return x is not None and y is not None and abs(x - y) <= _TOLERANCE * max(1, abs(y))


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(text.strip().replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def _agent(row: Mapping[str, Any]) -> str | None:
    agent = row.get("agent_ref")
    name = agent.get("name") if isinstance(agent, dict) else None
    if not name:
        return None
    return next((kind for start, kind in AGENTS.items() if str(name).startswith(start)), str(name))


def _value(row: Mapping[str, Any], field: str) -> Any:
    if field in row:
        return row[field]
    value: Any = row
    for key in field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _there(value: Any) -> bool:
    return value not in (None, "", [], {}) and not isinstance(value, list | dict)
