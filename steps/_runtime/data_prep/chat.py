"""From a row to the sequences that a model is trained on, as text: who says what, and which of it is learned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from _runtime.data_prep.chat_spans import Pieces, SpansFault, pieces, reasons
from _runtime.data_prep.chat_template import ChatTemplate, TemplateFault

#: Why a row is left out, and what to do about it.
REASONS = {
    "used_in_filter": "The row's used_in_field does not name used_in_filter.",
    "no_messages": "The row has no messages: name messages_field, or drop the row.",
    "bad_message": "A message is no object with a role and text.",
    "bad_tools": "The tools are no list of objects.",
    "bad_tool_call": "A tool call has no name, or its arguments are no JSON object.",
    "tool_call_without_tools": "A message has <tool_call> as text, but the row offers no tools.",
    "template_error": "The chat template does not take the conversation.",
    "template_mismatch": "The answers cannot be found in the rendered text.",
    "no_trainable_turn": "No assistant turn follows a user turn.",
}
_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}


class Rejected(Exception):
    """A row that cannot be trained on: one of ``REASONS``, and what is wrong with this one."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class RowFields:
    """Where a row has what."""

    messages: str = "messages"
    tools: str = "tools"
    used_in: str = "used_in"
    used_in_filter: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Messages with ``role`` and text ``content``, arguments of tool calls parsed; tools or None."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


def read(row: Mapping[str, Any], fields: RowFields) -> Conversation:
    """The conversation of a row, OpenAI's messages or ShareGPT's.

    Raises:
        Rejected: the row has none, or one that no template could render.
    """
    if fields.used_in_filter and not _used_in(row.get(fields.used_in), fields.used_in_filter):
        raise Rejected("used_in_filter", f"{fields.used_in} is {row.get(fields.used_in)!r}")
    given = row.get(fields.messages)
    if given is None and isinstance(row.get("conversations"), list):
        given = row["conversations"]
    if not isinstance(given, list) or not given:
        what = (
            f"has {type(given).__name__}"
            if given is not None
            else f"the row has {', '.join(map(str, row)) or 'nothing'}"
        )
        raise Rejected("no_messages", f"{fields.messages}: {'is empty' if given == [] else what}")
    tools = _tools(row.get(fields.tools))
    messages = [_message(m, n) for n, m in enumerate(given)]
    if not tools:
        texts = [str(m.get(k) or "") for m in messages for k in ("content", "reasoning_content")]
        if any("<tool_call>" in t for t in texts) and not any("# Tools" in t for t in texts):
            raise Rejected("tool_call_without_tools", "<tool_call> as text, no tools and no `# Tools` section")
    return Conversation(messages, tools)


def sequences(conversation: Conversation, template: ChatTemplate) -> list[Pieces]:
    """What is trained on: the conversation, or where it holds reasoning one sequence per user turn.

    A template leaves out the reasoning of turns before the last user turn, so only what follows the last one is
    rendered as the model wrote it; the reference cuts such conversations in the same way.

    Raises:
        Rejected: the template does not take it, or the assistant says nothing that could be learned.
    """
    try:
        found = [
            pieces(template, part, conversation.tools, first, thinking)
            for part, first, thinking in _parts(conversation)
        ]
    except TemplateFault as e:
        raise Rejected("template_error", str(e)) from None
    except SpansFault as e:
        raise Rejected("template_mismatch", str(e)) from None
    found = [p for p in found if any(trained for _, trained in p)]
    if not found:
        roles = ", ".join(str(m["role"]) for m in conversation.messages[:6])
        raise Rejected("no_trainable_turn", f"roles are {roles}")
    return found


def _parts(conversation: Conversation) -> Iterator[tuple[list[dict[str, Any]], int, bool]]:
    """(messages, the first one to train on, with reasoning?) of each sequence."""
    messages = conversation.messages
    if not any(map(reasons, messages)):
        if any(m["role"] == "assistant" for m in messages):
            yield messages, 0, False
        return
    users = [n for n, m in enumerate(messages) if m["role"] == "user"]
    for user, following in zip(users, [*users[1:], len(messages)], strict=True):
        if any(m["role"] == "assistant" for m in messages[user + 1 : following]):
            yield messages[:following], user + 1, True


def _used_in(value: Any, wanted: str) -> bool:
    if isinstance(value, str):
        return wanted == value or wanted in (part.strip() for part in value.split(","))
    return isinstance(value, (list, tuple)) and wanted in value


def _tools(value: Any) -> list[dict[str, Any]] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as e:
            raise Rejected("bad_tools", f"tools: not JSON ({e})") from None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Rejected("bad_tools", f"tools: {str(value)[:80]!r} is no list of objects")
    return value


def _message(message: Any, n: int) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise Rejected("bad_message", f"message {n}: {str(message)[:80]!r} is no object")
    if "role" not in message and "from" in message:  # ShareGPT
        said = message["from"]
        message = {
            "role": _SHAREGPT.get(said, said) if isinstance(said, str) else said,
            "content": message.get("value"),
        }
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise Rejected("bad_message", f"message {n}: its role is {role!r}")
    out = {k: v for k, v in message.items() if v is not None}  # of Parquet, what a row leaves out
    out["content"] = _text(message.get("content"), n)
    if role == "assistant":
        if out.get("tool_calls"):
            out["tool_calls"] = [_call(call, n) for call in _calls(out["tool_calls"], n)]
        return out
    if message.get("content") is None:
        raise Rejected("bad_message", f"message {n}: the {role}'s content is missing")
    return out


def _text(content: Any, n: int) -> str:
    """The text of a message, which may come in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [p.get("text") if isinstance(p, dict) and p.get("type", "text") == "text" else p for p in parts]
    if not all(isinstance(t, str) for t in texts):
        raise Rejected("bad_message", f"message {n}: its content is no text: {str(content)[:80]!r}")
    return "".join(texts)


def _calls(value: Any, n: int) -> list[Any]:
    if not isinstance(value, list):
        raise Rejected("bad_tool_call", f"message {n}: tool_calls is no list")
    return value


def _call(call: Any, n: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Rejected("bad_tool_call", f"message {n}: {str(call)[:80]!r} names no function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as e:
            raise Rejected("bad_tool_call", f"message {n}: the arguments of {function['name']}: {e}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise Rejected("bad_tool_call", f"message {n}: the arguments of {function['name']} are no object")
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def without_nulls(value: Any) -> Any:
    """Without the fields that are null at any depth: Parquet gives every row the fields of all rows."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value
