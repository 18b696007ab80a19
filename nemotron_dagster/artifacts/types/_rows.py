"""What one row of JSONL may be: chat, preference, prompt, NeMo-Gym, text. Slow, exact, with the JSON path of a fault.

``_fast.py`` accepts rows at the speed of a disk; what it does not accept is examined here, and this has the last word.
A key whose value is null counts as absent, as Parquet has no other way to leave one out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
PROMPTS = ("prompt", "problem", "question", "input")
KINDS = ("chat", "preference", "ranked", "prompt", "gym", "sharegpt", "text", "other")
_NAMES = {
    dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number",
    type(None): "null",
}  # fmt: skip


class Fault(Exception):
    """A row is wrong; the message has the JSON path and the fix."""


def kind(row: Mapping[str, Any]) -> str:
    """Which of ``KINDS`` a row is, by the keys that it has."""
    has = {k for k, v in row.items() if v is not None}
    if {"chosen", "rejected"} & has:
        return "preference"
    if "messages" in has:
        return "chat"
    if "responses_create_params" in has:
        return "gym"
    if {"context", "completions"} <= has:
        return "ranked"
    if "conversations" in has:
        return "sharegpt"
    if has & set(PROMPTS):
        return "prompt"
    return "text" if "text" in has else "other"


def check(row: Any) -> str:
    """Check a row that is to be trained on; its kind.

    Raises:
        Fault: what is wrong, where, and the fix.
    """
    found = kind(mapping(row))
    _CHECKS.get(found, _unknown)(row)
    if row.get("tools") is not None:
        tools(row["tools"])
    return found


def mapping(row: Any) -> dict[str, Any]:
    """The row, if it is a JSON object."""
    if not isinstance(row, dict):
        raise Fault(f"is a JSON {type(row).__name__}, not an object. Write one {{...}} per line")
    return row


def conversation(value: Any, at: str) -> None:
    """Check a list of OpenAI chat messages."""
    if not isinstance(value, list) or not value:
        raise Fault(f"`{at}` is not a non-empty list, but {_name(value)}. Write OpenAI chat messages")
    ids: set[str] | None = None  # of the tool calls so far; None before any call
    for i, m in enumerate(value):
        where = f"{at}[{i}]"
        if not isinstance(m, dict) or m.get("role") not in ROLES:
            got = f" (it has {str(m.get('role'))[:30]!r})" if isinstance(m, dict) else ""
            raise Fault(f"{where} has no role of {', '.join(ROLES)}{got}. Rename the role")
        _message(m, where)
        if m["role"] == "assistant" and m.get("tool_calls"):
            ids = (ids or set()) | {c["id"] for c in m["tool_calls"] if c.get("id") is not None}
        elif m["role"] == "tool":
            _answer(m.get("tool_call_id"), ids, where)


def _message(m: Mapping[str, Any], where: str) -> None:
    content, role = m.get("content"), m["role"]
    if isinstance(content, list):
        for j, part in enumerate(content):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise Fault(f'{where}.content[{j}] has no `type`. Write {{"type": "text", "text": ...}}')
            _text(part.get("text"), f"{where}.content[{j}].text", needed=part["type"] == "text")
    elif not isinstance(content, str) and not (content is None and role == "assistant" and m.get("tool_calls")):
        raise Fault(f"{where}.content is neither text nor a list of parts, but {_name(content)}. Write the text")
    _text(m.get("name"), f"{where}.name")
    if role == "assistant":
        _text(m.get("reasoning_content"), f"{where}.reasoning_content")
        if m.get("tool_calls") is not None:
            _calls(m["tool_calls"], f"{where}.tool_calls")
    elif role == "tool":
        _text(m.get("tool_call_id"), f"{where}.tool_call_id")


def _answer(call: str | None, ids: set[str] | None, where: str) -> None:
    if ids is None:
        raise Fault(f"{where} is a tool's answer, but no assistant message before it has tool_calls. Add the call")
    if ids and call not in ids:
        known = ", ".join(sorted(ids)[:5])
        raise Fault(f"{where}.tool_call_id is {call!r}, which no call before it has (they have {known}). Mend the id")


def _calls(calls: Any, at: str) -> None:
    if not isinstance(calls, list):
        raise Fault(f"{at} is not a list, but {_name(calls)}. Write a list of calls")
    for i, call in enumerate(calls):
        where = f"{at}[{i}]"
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
            raise Fault(f'{where} has no `function` object. Write {{"type": "function", "function": {{...}}}}')
        _text(call.get("id"), f"{where}.id")
        if call.get("type") not in (None, "function"):
            raise Fault(f'{where}.type is {str(call["type"])[:30]!r}. Write "function"')
        if not isinstance(call["function"].get("name"), str) or not call["function"]["name"]:
            raise Fault(f"{where}.function.name is missing or empty. Name the function")
        arguments = call["function"].get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError) as e:
                raise Fault(f"{where}.function.arguments is text that is not JSON ({e}). Write a JSON object") from e
        if not isinstance(arguments, dict):
            raise Fault(f"{where}.function.arguments is {_name(arguments)}. Write a JSON object, or one as text")


def tools(value: Any, at: str = "tools") -> None:
    """Check the functions that a row offers: a list, or one as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise Fault(f"{at} is text that is not JSON ({e}). Write a list of functions") from e
    if not isinstance(value, list):
        raise Fault(f"{at} is not a list, but {_name(value)}. Write a list of functions")
    for i, tool in enumerate(value):
        where = f"{at}[{i}]"
        if not isinstance(tool, dict) or not isinstance(tool.get("function"), dict):
            raise Fault(f'{where} has no `function` object. Write {{"type": "function", "function": {{...}}}}')
        function = tool["function"]
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise Fault(f"{where}.function.name is missing or empty. Name the function")
        _text(function.get("description"), f"{where}.function.description")
        if function.get("parameters") is not None:
            _schema(function["parameters"], f"{where}.function.parameters")


def _schema(value: Any, at: str, depth: int = 0) -> None:
    """The parts of a JSON Schema that a chat template walks through."""
    if isinstance(value, bool):
        return
    if not isinstance(value, dict):
        raise Fault(f"{at} is {_name(value)}. Write a JSON Schema object")
    types = value.get("type")
    for t in types if isinstance(types, list) else [types]:
        if t is not None and t not in ("object", "array", "string", "number", "integer", "boolean", "null"):
            raise Fault(f"{at}.type is {str(t)[:30]!r}, which JSON Schema does not have. Name one of its types")
    required = value.get("required")
    if required is not None and not (isinstance(required, list) and all(isinstance(r, str) for r in required)):
        raise Fault(f"{at}.required is not a list of names. Write one")
    properties = value.get("properties")
    if properties is not None and not isinstance(properties, dict):
        raise Fault(f"{at}.properties is {_name(properties)}. Write an object of schemas")
    for name, inner in (properties or {}).items():
        if inner is not None and depth < 50:
            _schema(inner, f"{at}.properties.{name}", depth + 1)
    if isinstance(value.get("items"), dict) and depth < 50:
        _schema(value["items"], f"{at}.items", depth + 1)


def _chat(row: Mapping[str, Any]) -> None:
    conversation(row["messages"], "messages")


def _preference(row: Mapping[str, Any]) -> None:
    for key in ("prompt", "chosen", "rejected"):
        if row.get(key) is None:
            raise Fault(f"is a preference row without `{key}`. Write prompt, chosen and rejected")
        _said(row[key], key)
    if row["chosen"] == row["rejected"]:
        raise Fault("`chosen` and `rejected` are equal. Remove the row: it prefers nothing")
    for better, worse in (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")):
        high, low = row.get(better), row.get(worse)
        if isinstance(high, int | float) and isinstance(low, int | float) and high < low:
            raise Fault(f"{better} {high} is below {worse} {low}: the pair is inverted. Swap `chosen` and `rejected`")


def _ranked(row: Mapping[str, Any]) -> None:
    conversation(row["context"], "context")
    completions = row["completions"]
    if not isinstance(completions, list) or len(completions) < 2:
        raise Fault("`completions` has fewer than two entries. Write one per answer, with its rank")
    for i, c in enumerate(completions):
        where = f"completions[{i}]"
        if not isinstance(c, dict) or not isinstance(c.get("rank"), int) or isinstance(c["rank"], bool):
            raise Fault(f"{where}.rank is no whole number. Write one, 0 for the best")
        conversation(c.get("completion"), f"{where}.completion")
    ranked = sorted(completions, key=lambda c: c["rank"])
    if ranked[0]["rank"] == ranked[-1]["rank"]:
        raise Fault("`completions` all have one rank. Give the better one the lower rank")
    if ranked[0]["completion"] == ranked[-1]["completion"]:
        raise Fault("the best and the worst of `completions` are equal. Remove the row: it prefers nothing")


def _prompt(row: Mapping[str, Any]) -> None:
    key = next(k for k in PROMPTS if row.get(k) is not None)
    _said(row[key], key)


def _gym(row: Mapping[str, Any]) -> None:
    params, agent = row["responses_create_params"], row.get("agent_ref")
    if not isinstance(params, dict):
        raise Fault(f"`responses_create_params` is {_name(params)}. Write an object with `input`")
    if not isinstance(params.get("input"), str | list) or not params["input"]:
        raise Fault("`responses_create_params.input` is missing or empty. Write the prompt")
    if not isinstance(agent, dict) or not isinstance(agent.get("name"), str) or not agent["name"]:
        raise Fault('`agent_ref.name` is missing. Name the NeMo-Gym agent: {"type": ..., "name": ...}')
    _text(agent.get("type"), "agent_ref.type")


def _sharegpt(row: Mapping[str, Any]) -> None:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise Fault(f"`conversations` is not a non-empty list, but {_name(turns)}. Write ShareGPT turns")
    for i, turn in enumerate(turns):
        for key in ("from", "value"):
            if not isinstance(turn, dict) or not isinstance(turn.get(key), str):
                raise Fault(f'conversations[{i}].{key} is not text. Write {{"from": ..., "value": ...}}')


def _unknown(row: Mapping[str, Any]) -> None:
    raise Fault(
        f"has no `messages` (it has {', '.join(list(row)[:6]) or 'nothing'}). "
        "Write OpenAI chat messages, or prompt, chosen and rejected"
    )


_CHECKS = {
    "chat": _chat, "preference": _preference, "ranked": _ranked, "prompt": _prompt, "gym": _gym,
    "sharegpt": _sharegpt,
}  # fmt: skip


def finite(row: Mapping[str, Any]) -> None:
    """Check that every FAITH score of a translated row is a finite number."""
    for at, score in _scores(row, ""):
        if not math.isfinite(score):
            raise Fault(f"{at} is {score}, not a finite number. Score the row again, or write null")


def _scores(value: Mapping[str, Any], at: str) -> Iterator[tuple[str, float]]:
    for key, inner in value.items():
        if not key.lower().startswith("faith") and not at:
            continue
        if isinstance(inner, dict):
            yield from _scores(inner, f"{at}{key}.")
        elif isinstance(inner, float):
            yield f"{at}{key}", inner


def _said(value: Any, at: str) -> None:
    """Non-empty text, or messages."""
    if isinstance(value, list):
        conversation(value, at)
    elif not isinstance(value, str):
        raise Fault(f"`{at}` is {_name(value)}. Write text or messages")
    elif not value.strip():
        raise Fault(f"`{at}` is empty. Write it or remove the row")


def _text(value: Any, at: str, needed: bool = False) -> None:
    if not isinstance(value, str) and (needed or value is not None):
        raise Fault(f"{at} is {_name(value)}. Write text")


def _name(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)
