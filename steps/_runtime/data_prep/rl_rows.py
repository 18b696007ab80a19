"""What kind of RL data rows are, whether a row is one of that kind, and what it asks.

``preference``: chosen and rejected answers. ``verifier``: a prompt and what its answer is checked against. ``gym``: a
NeMo-Gym task. ``chat``: a conversation. ``prompt``: a prompt alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from _runtime.data_prep import rl_preference
from _runtime.data_prep.rl_messages import PROMPTS, Fault, check, check_tools, gym

FORMATS = ("preference", "gym", "verifier", "chat", "prompt")
PLACEHOLDER = "_hf_placeholder"
#: Where rows keep what an answer is checked against; a dot goes down into an object.
ANSWERS = (
    *("expected_answer", "answer", "ground_truth", "reward_model.ground_truth", "solution", "final_answer", "label"),
    *("verifier_metadata", "unit_tests", "test_cases", "tests", "output"),
)
_PROMPTS = (*PROMPTS, "messages")


def format_of(row: Mapping[str, Any], resolve: bool = True) -> str | None:
    """The format that a row looks like; with ``resolve`` a placeholder counts as the NeMo-Gym task it stands for."""
    has = {key for key, value in row.items() if value is not None}
    if resolve and PLACEHOLDER in has:
        return "gym"
    if has & {"chosen", "rejected"} or has >= {"context", "completions"}:
        return "preference"
    if "responses_create_params" in has:
        return "gym"
    if has & set(_PROMPTS) and any(present(value_at(row, a)) for a in ANSWERS):
        return "verifier"
    if has & {"messages", "conversations"}:
        return "chat"
    return "prompt" if has & set(PROMPTS) else None


def commonest(rows: Iterable[Mapping[str, Any]], resolve: bool) -> str | None:
    """The format of most rows; of equally many the first one in ``FORMATS``."""
    counts = Counter(format_of(row, resolve) for row in rows)
    known = [f for f in FORMATS if counts[f]]
    return max(known, key=lambda f: counts[f]) if known else None


def fields_of(rows: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """The fields in which most verifier rows have their prompt and their answer."""
    prompts: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for row in rows:
        prompts.update(f for f in _PROMPTS if row.get(f) is not None)
        answers.update(f for f in ANSWERS if present(value_at(row, f)))
    return (
        max(_PROMPTS, key=lambda f: prompts[f]),
        max(ANSWERS, key=lambda f: answers[f]),
    )


def value_at(row: Mapping[str, Any], field: str) -> Any:
    """``row[field]``, or what a dotted field leads to; None where nothing is there."""
    if field in row:
        return row[field]
    value: Any = row
    for key in field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def present(value: Any) -> bool:
    """Whether there is anything to compare with: false and 0 are answers, "" and [] are none."""
    return value is not None and value not in ("", [], {})


def prepared(row: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """The row as it is written, itself where nothing had to change, and the completions that were left out.

    Settings: ``row_format``, ``preference_format``, ``prompt_field``, ``answer_field``, ``default_agent_ref``.

    Raises:
        Fault: it is not of the format, or is not well formed.
    """
    kind = settings["row_format"]
    left_out = 0
    if kind == "preference":
        row, left_out = rl_preference.converted(row, settings["preference_format"])
        if settings["preference_format"] == "binary":  # and so it was checked whole
            if row.get("tools") is not None:
                check_tools(row["tools"])
            return row, left_out
    elif kind == "gym":
        if settings["default_agent_ref"] and row.get("agent_ref") is None:
            row = {**row, "agent_ref": settings["default_agent_ref"]}
        gym(row)
    elif kind == "verifier":
        if row.get(settings["prompt_field"]) is None:
            raise Fault("missing_prompt", f"no {settings['prompt_field']!r}; it has {', '.join(row)[:100]}")
        if not present(value_at(row, settings["answer_field"])):
            raise Fault("missing_verifier_field", f"no {settings['answer_field']!r}; it has {', '.join(row)[:100]}")
    elif kind == "chat" and row.get("messages") is None and row.get("conversations") is None:
        raise Fault("missing_messages", f"no 'messages'; it has {', '.join(row)[:100]}")
    elif kind == "prompt" and not any(row.get(f) is not None for f in PROMPTS):
        raise Fault("missing_prompt", f"none of {', '.join(PROMPTS)}; it has {', '.join(row)[:100]}")
    check(row)
    return row, left_out


def asked(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """What a prepared row asks: by this rows of one prompt are kept in one split.

    A text and one user message of that text are the same prompt.
    """
    kind = settings["row_format"]
    if kind == "preference":
        value = row["prompt" if settings["preference_format"] == "binary" else "context"]
    elif kind == "gym":
        value = row["responses_create_params"]["input"]
    elif kind == "verifier":
        value = row[settings["prompt_field"]]
    elif kind == "prompt":
        value = next(row[f] for f in PROMPTS if row.get(f) is not None)
    else:
        value = row["messages"] if row.get("messages") is not None else row["conversations"]
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        if value[-1].get("role", value[-1].get("from")) in ("assistant", "gpt") and len(value) > 1:
            value = value[:-1]
        if len(value) == 1 and value[0].get("role", value[0].get("from")) in ("user", "human"):
            said = value[0].get("content", value[0].get("value"))
            return said if isinstance(said, str) else value
    return value
