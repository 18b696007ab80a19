"""Whether a row of RL data is well formed: conversations, tools, pairs, ranked answers, NeMo-Gym tasks.

What passes here passes the check of a ``training_jsonl`` artifact. A value of null counts as absent, as Parquet has no
other way to leave a field out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
PROMPTS = ("prompt", "problem", "question", "input")
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_DEEPEST = 50  # levels of a JSON Schema that are looked at


class Fault(Exception):  # noqa: N818 - it is a finding about a row, which is then counted
    """Why a row cannot be used: ``reason`` is what it is counted under, ``note`` says where and what."""

    def __init__(self, reason: str, note: str) -> None:
        super().__init__(reason, note)
        self.reason, self.note = reason, note


def check(row: Mapping[str, Any]) -> None:
    """Check a row as whatever its fields say that it is, and the tools that it offers.

    Raises:
        Fault: what is wrong, and where.
    """
    has = {key for key, value in row.items() if value is not None}
    if has & {"chosen", "rejected"}:
        triple(row)
    elif "messages" in has:
        conversation(row["messages"], "messages")
    elif "responses_create_params" in has:
        gym(row)
    elif has >= {"context", "completions"}:
        ranked(row)
    elif "conversations" in has:
        _sharegpt(row["conversations"])
    elif key := next((k for k in PROMPTS if k in has), None):
        _said(row[key], key)
    else:
        raise Fault("unknown_row", f"it has {', '.join(row)[:100] or 'no field'}")
    if "tools" in has:
        check_tools(row["tools"])


def triple(row: Mapping[str, Any]) -> None:
    """Check ``prompt``, ``chosen`` and ``rejected``.

    Raises:
        Fault: one is missing or empty, or both answers are equal.
    """
    for key in ("prompt", "chosen", "rejected"):
        if row.get(key) is None:
            raise Fault(f"missing_{key}", f"no {key!r}; it has {', '.join(row)[:100]}")
        _said(row[key], key)
    if row["chosen"] == row["rejected"]:
        raise Fault("equal_answers", "chosen and rejected are equal, so nothing is preferred")


def ranked(row: Mapping[str, Any]) -> None:
    """Check ``context`` and ``completions``, of which lower ranks are better.

    Raises:
        Fault: fewer than two completions, no ranks, all of one rank, or best and worst alike.
    """
    conversation(row["context"], "context")
    completions = row["completions"]
    if not isinstance(completions, list) or len(completions) < 2:
        raise Fault("too_few_completions", "completions has fewer than two entries")
    for i, completion in enumerate(completions):
        rank = completion.get("rank") if isinstance(completion, dict) else None
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise Fault("bad_rank", f"completions[{i}].rank is no whole number")
        conversation(completion.get("completion"), f"completions[{i}].completion")
    best, *_, worst = sorted(completions, key=lambda c: int(c["rank"]))
    if best["rank"] == worst["rank"]:
        raise Fault("equal_ranks", f"all completions have rank {best['rank']}")
    if best["completion"] == worst["completion"]:
        raise Fault("equal_answers", "the best and the worst completion are equal, so nothing is preferred")


def gym(row: Mapping[str, Any]) -> None:
    """Check ``responses_create_params`` and ``agent_ref`` of a NeMo-Gym task.

    Raises:
        Fault: no input, or no agent.
    """
    params, agent = row.get("responses_create_params"), row.get("agent_ref")
    if not isinstance(params, dict) or not isinstance(params.get("input"), str | list) or not params["input"]:
        raise Fault("missing_gym_input", "responses_create_params.input is missing or empty")
    if not isinstance(agent, dict) or not isinstance(agent.get("name"), str) or not agent["name"]:
        raise Fault("missing_agent_ref", "agent_ref.name is missing: set default_agent_ref, or name it in the row")
    if not isinstance(agent.get("type"), str | None):
        raise Fault("bad_agent_ref", f"agent_ref.type is a {_kind(agent['type'])}")


def conversation(value: Any, at: str) -> None:
    """Check a list of messages in the OpenAI format; ``at`` is its place in the row.

    Raises:
        Fault: no messages, an unknown role, content that is no text, a broken tool call, an answer without a call.
    """
    if not isinstance(value, list) or not value:
        raise Fault("no_messages", f"{at} is {'empty' if value == [] else 'a ' + _kind(value)}, not a list of messages")
    calls: set[str] | None = None
    for i, message in enumerate(value):
        where = f"{at}[{i}]"
        if not isinstance(message, dict):
            raise Fault("bad_message", f"{where} is a {_kind(message)}")
        role = message.get("role")
        if role not in ROLES:
            raise Fault("bad_role", f"{where}.role is {str(role)[:30]!r}, not one of {', '.join(ROLES)}")
        _content(message, where)
        _text(message.get("name"), f"{where}.name")
        if role == "assistant":
            _text(message.get("reasoning_content"), f"{where}.reasoning_content")
            if message.get("tool_calls") is not None:
                made = _calls(message["tool_calls"], f"{where}.tool_calls")
                calls = (calls or set()) | made if message["tool_calls"] else calls
        elif role == "tool":
            _text(message.get("tool_call_id"), f"{where}.tool_call_id")
            if calls is None or (calls and message.get("tool_call_id") not in calls):
                raise Fault("answer_without_call", f"{where} answers no tool call that was made before it")


def _content(message: Mapping[str, Any], where: str) -> None:
    content = message.get("content")
    if isinstance(content, list):
        for j, part in enumerate(content):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise Fault("bad_message", f"{where}.content[{j}] has no type")
            if not isinstance(part.get("text"), str) and (part["type"] == "text" or part.get("text") is not None):
                raise Fault("bad_message", f"{where}.content[{j}].text is no text")
    elif not isinstance(content, str) and not (
        content is None and message["role"] == "assistant" and message.get("tool_calls")
    ):
        raise Fault("bad_message", f"{where}.content is a {_kind(content)}, neither text nor a list of parts")


def _calls(value: Any, at: str) -> set[str]:
    """The ids of tool calls."""
    if not isinstance(value, list):
        raise Fault("bad_tool_call", f"{at} is a {_kind(value)}, not a list")
    ids = set()
    for i, call in enumerate(value):
        where = f"{at}[{i}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise Fault("bad_tool_call", f"{where} names no function")
        if call.get("type") not in (None, "function"):
            raise Fault("bad_tool_call", f"{where}.type is {str(call['type'])[:30]!r}, not 'function'")
        _text(call.get("id"), f"{where}.id")
        if not isinstance(_parsed(function.get("arguments"), f"{where}.function.arguments", "bad_tool_call"), dict):
            raise Fault("bad_tool_call", f"{where}.function.arguments is no JSON object")
        if call.get("id") is not None:
            ids.add(call["id"])
    return ids


def check_tools(value: Any) -> None:
    """Check the functions that a row offers: a list, or one as JSON text.

    Raises:
        Fault: a function has no name, or parameters that are no JSON Schema.
    """
    value = _parsed(value, "tools", "bad_tools")
    if not isinstance(value, list):
        raise Fault("bad_tools", f"tools is a {_kind(value)}, not a list")
    for i, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise Fault("bad_tools", f"tools[{i}] names no function")
        if not isinstance(function.get("description"), str | None):
            raise Fault("bad_tools", f"tools[{i}].function.description is no text")
        if function.get("parameters") is not None:
            _schema(function["parameters"], f"tools[{i}].function.parameters")


def _schema(value: Any, at: str, depth: int = 0) -> None:
    """What a chat template walks through of a JSON Schema."""
    if isinstance(value, bool):
        return
    if not isinstance(value, dict):
        raise Fault("bad_tools", f"{at} is a {_kind(value)}, not a JSON Schema")
    types = value.get("type")
    for name in types if isinstance(types, list) else [types]:
        if name is not None and name not in _TYPES:
            raise Fault("bad_tools", f"{at}.type is {str(name)[:30]!r}, which JSON Schema does not have")
    required, properties = value.get("required"), value.get("properties")
    if required is not None and not (isinstance(required, list) and all(isinstance(r, str) for r in required)):
        raise Fault("bad_tools", f"{at}.required is no list of names")
    if not isinstance(properties, dict | None):
        raise Fault("bad_tools", f"{at}.properties is a {_kind(properties)}")
    if depth < _DEEPEST:
        for name, inner in (properties or {}).items():
            if inner is not None:
                _schema(inner, f"{at}.properties.{name}", depth + 1)
        if isinstance(value.get("items"), dict):
            _schema(value["items"], f"{at}.items", depth + 1)


def _sharegpt(turns: Any) -> None:
    if not isinstance(turns, list) or not turns:
        raise Fault("no_messages", "conversations is empty or no list")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(k), str) for k in ("from", "value")):
            raise Fault("bad_message", f"conversations[{i}] lacks the text fields from and value")


def _said(value: Any, at: str) -> None:
    """Text that says something, or messages."""
    if isinstance(value, list):
        conversation(value, at)
    elif not isinstance(value, str):
        raise Fault("field_not_text", f"{at!r} is a {_kind(value)}, neither text nor messages")
    elif not value.strip():
        raise Fault("empty_text", f"{at!r} is empty")


def _parsed(value: Any, at: str, reason: str, parse: Callable[[str], Any] = json.loads) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except (ValueError, RecursionError) as e:
        raise Fault(reason, f"{at} is text that is no JSON ({str(e)[:60]})") from None


def _text(value: Any, at: str) -> None:
    if not isinstance(value, str | None):
        raise Fault("bad_message", f"{at} is a {_kind(value)}, not text")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
