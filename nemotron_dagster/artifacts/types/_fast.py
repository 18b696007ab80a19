"""Accepts the common rows at the speed of the disk: typed structs, decoded by msgspec.

Everything accepted here would be accepted by ``_rows.py``; what is not is examined there. Imported inside functions
only. msgspec checks the JSON syntax of skipped values too, but not their UTF-8: that is the caller's to check.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Annotated, Any

import msgspec  # noqa: TID253
from msgspec import UNSET, Meta, Raw, Struct, UnsetType  # noqa: TID253
from msgspec.structs import astuple  # noqa: TID253

from nemotron_dagster.artifacts.types import _rows

Said = Annotated[str, Meta(min_length=1)]
#: What a decoder raises for a row that it does not take.
REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError)


class Part(Struct, gc=False):
    type: str
    text: str | None = None

    def __post_init__(self) -> None:
        if self.type == "text" and self.text is None:
            raise ValueError("text")


class _Message(Struct, gc=False, tag_field="role"):
    content: str | list[Part]
    name: str | None = None


class System(_Message, gc=False, tag="system"):
    pass


class Developer(_Message, gc=False, tag="developer"):
    pass


class User(_Message, gc=False, tag="user"):
    pass


class _Skimmed(Struct, gc=False, tag_field="role"):
    """A message whose content is passed over, at twice the speed; ``not_text`` looks at how it begins."""

    content: Raw
    name: str | None = None


class SystemSkimmed(_Skimmed, gc=False, tag="system"):
    pass


class DeveloperSkimmed(_Skimmed, gc=False, tag="developer"):
    pass


class UserSkimmed(_Skimmed, gc=False, tag="user"):
    pass


class AssistantSkimmed(_Skimmed, gc=False, tag="assistant"):
    """Without tool calls."""

    reasoning_content: str | None = None
    tool_calls: None = None


class Function(Struct, gc=False):
    name: Said
    arguments: str | dict[str, Raw]

    def __post_init__(self) -> None:
        if type(self.arguments) is str:
            _OBJECT(self.arguments)


class Call(Struct, gc=False):
    function: Function
    id: str | None = None
    type: Annotated[str, Meta(pattern="^function$")] | None = None


class Assistant(Struct, gc=False, tag_field="role", tag="assistant"):
    content: str | list[Part] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None

    def __post_init__(self) -> None:
        if self.content is None and not self.tool_calls:
            raise ValueError("content")


class Tool(_Message, gc=False, tag="tool"):
    tool_call_id: str | None = None


class FunctionRole(_Message, gc=False, tag="function"):
    pass


Score = float | None


class _Row(Struct, gc=False):
    language: str | None = None
    lang: str | None = None
    tools: Raw | UnsetType = UNSET


class Chat(_Row, gc=False, kw_only=True):
    """Chat without tool calls."""

    messages: Annotated[list[SystemSkimmed | DeveloperSkimmed | UserSkimmed | AssistantSkimmed], Meta(min_length=1)]
    chosen: None = None
    rejected: None = None


class ToolChat(_Row, gc=False, kw_only=True):
    messages: Annotated[list[System | Developer | User | Assistant | Tool | FunctionRole], Meta(min_length=1)]
    chosen: None = None
    rejected: None = None


class Preference(_Row, gc=False, kw_only=True):
    prompt: Said
    chosen: Said
    rejected: Said
    chosen_score: Score = None
    rejected_score: Score = None
    score_chosen: Score = None
    score_rejected: Score = None


class Prompt(_Row, gc=False, kw_only=True):
    prompt: Said
    messages: None = None
    chosen: None = None
    rejected: None = None
    responses_create_params: None = None
    completions: None = None
    conversations: None = None


class _Params(Struct, gc=False):
    input: Said | Annotated[list[Raw], Meta(min_length=1)]


class _Agent(Struct, gc=False):
    name: Said
    type: str | None = None


class Gym(_Row, gc=False, kw_only=True):
    responses_create_params: _Params
    agent_ref: _Agent
    messages: None = None
    chosen: None = None
    rejected: None = None


class Loose(Struct, gc=False):
    """Any object: only which of the known keys it has is looked at."""

    messages: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    chosen: Raw | UnsetType = UNSET
    rejected: Raw | UnsetType = UNSET
    problem: Raw | UnsetType = UNSET
    question: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    responses_create_params: Raw | UnsetType = UNSET
    context: Raw | UnsetType = UNSET
    completions: Raw | UnsetType = UNSET
    conversations: Raw | UnsetType = UNSET
    language: str | None = None
    lang: str | None = None


class Translated(Loose, gc=False):
    """As Loose; an overflowing score is no number to msgspec."""

    translated_messages: list[System | Developer | User | Assistant] | None = None
    faith_avg: Score = None
    faith_score: Score = None
    faith_fluency: Score = None
    faith_accuracy: Score = None
    faith_idiomaticity: Score = None
    faith_terminology: Score = None
    faith_handling: Score = None
    faith_scores: dict[str, Score] | None = None


class _Kind(Struct, gc=False):
    """Rows of one kind, by the keys that they have and do not have; ``_rows.kind`` says which."""

    chosen: None = None
    rejected: None = None
    language: str | None = None
    lang: str | None = None


class LooseChat(_Kind, gc=False, kw_only=True):
    messages: Raw


class LooseText(_Kind, gc=False, kw_only=True):
    text: Raw
    messages: None = None
    responses_create_params: None = None
    completions: None = None
    conversations: None = None
    prompt: None = None
    problem: None = None
    question: None = None
    input: None = None


#: The role of each class of messages.
ROLES: dict[type, str] = {
    System: "system", SystemSkimmed: "system", Developer: "developer", DeveloperSkimmed: "developer", User: "user",
    UserSkimmed: "user", Assistant: "assistant", AssistantSkimmed: "assistant", Tool: "tool", FunctionRole: "function",
}  # fmt: skip

_OBJECT = msgspec.json.Decoder(dict[str, Raw]).decode
MISSING = UNSET
MESSAGES, LAST = attrgetter("messages"), itemgetter(-1)
_CONTENT = attrgetter("content")
_NBYTES = attrgetter("nbytes")
_VIEW: Callable[[Any], Any] = memoryview
_FIRST_BYTE = struct.Struct("c").unpack_from  # without a copy, and sooner than a memoryview
_QUOTE, _N = (b'"',), (b"n",)
_LOOSE = ((LooseChat, "chat", MESSAGES), (LooseText, "text", attrgetter("text")))


def decoders() -> dict[type, Callable[[bytes], Any]]:
    """A decoder for each kind of row that is to be trained on, the likeliest first."""
    return {t: msgspec.json.Decoder(t).decode for t in (Chat, ToolChat, Preference, Gym, Prompt)}


def loose_decoder(translated: bool) -> Callable[[bytes], Loose]:
    """A decoder for rows of any kind."""
    return msgspec.json.Decoder(Translated if translated else Loose).decode


def loose_decoders() -> list[tuple[Callable[[bytes], Any], str, Callable[[Any], Any]]]:
    """(decoder, kind of the rows that it takes if the value is not null, that value) for the commonest kinds."""
    return [(msgspec.json.Decoder(t).decode, kind, value) for t, kind, value in _LOOSE]


def any_null(values: Iterable[Any]) -> bool:
    """Whether one of these values, as they lie in the file, is null."""
    return _N in map(_FIRST_BYTE, values)


def loose_kinds(rows: list[Any]) -> dict[str, int]:
    """Rows per kind, where only the keys of rows are known."""
    found: Counter[str] = Counter()
    alike: dict[tuple[type, ...], list[Any]] = {}
    for row in rows:
        alike.setdefault(tuple(map(type, astuple(row))), []).append(row)
    for shape, some in alike.items():
        has = [n for n, t in zip(some[0].__struct_fields__, shape, strict=True) if t is Raw]
        if any(len(b"null") in map(_NBYTES, map(_VIEW, map(attrgetter(n), some))) for n in has):
            for row in some:
                found[_rows.kind({n: 1 for n in has if bytes(getattr(row, n)) != b"null"})] += 1
        else:
            found[_rows.kind(dict.fromkeys(has, 1))] += len(some)
    return found


def not_text(rows: list[Any]) -> list[int]:
    """Which rows have a skimmed message whose content is not text."""
    if _all_text(map(MESSAGES, rows)):
        return []
    return [n for n, row in enumerate(rows) if not _all_text([row.messages])]


def _all_text(messages: Iterable[list[Any]]) -> bool:
    firsts = list(map(_FIRST_BYTE, map(_CONTENT, chain.from_iterable(messages))))
    return firsts.count(_QUOTE) == len(firsts)


def doubtful(rows: list[Any], kind: type) -> list[int]:
    """Which rows may be wrong in a way that types cannot say."""
    if kind is ToolChat:
        return [n for n, row in enumerate(rows) if not _ordered(row.messages)]
    if kind is Prompt:
        return [n for n, row in enumerate(rows) if row.prompt.isspace()]
    if kind is Preference:
        return [
            n
            for n, row in enumerate(rows)
            if row.chosen == row.rejected
            or row.prompt.isspace()
            or row.chosen.isspace()
            or row.rejected.isspace()
            or _inverted(row.chosen_score, row.rejected_score)
            or _inverted(row.score_chosen, row.score_rejected)
        ]
    return []


def _inverted(better: Score, worse: Score) -> bool:
    return better is not None and worse is not None and better < worse


def _ordered(messages: list[Any]) -> bool:
    """Whether every tool's answer follows a call that it names; how ``_rows.conversation`` decides it."""
    ids: set[str] | None = None
    for m in messages:
        kind = type(m)
        if kind is Assistant:
            if m.tool_calls:
                ids = (ids or set()) | {c.id for c in m.tool_calls if c.id is not None}
        elif kind is Tool and (ids is None or (ids and m.tool_call_id not in ids)):
            return False
    return True


def with_more(rows: list[Any]) -> list[tuple[int, Any]]:
    """The rows, with their places, that offer functions or name a language."""
    unset = UNSET
    return [
        (n, row)
        for n, row in enumerate(rows)
        if row.tools is not unset or row.language is not None or row.lang is not None
    ]


def has_tools(row: Any) -> bool:
    """Whether a row offers functions, calls some, or has their answers."""
    if row.tools is not UNSET and bytes(row.tools) not in (b"null", b"[]"):
        return True
    for m in row.messages:
        kind = type(m)
        if kind is Tool or (kind is Assistant and m.tool_calls):
            return True
    return False


def named(rows: list[Any]) -> Counter[str]:
    """Rows per language, of those that name one."""
    some = [row for row in rows if row.language is not None or row.lang is not None]
    return Counter(row.lang if row.language is None else row.language for row in some)
