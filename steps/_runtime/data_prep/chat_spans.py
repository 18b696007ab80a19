"""Which characters of a rendered conversation the model writes itself.

Where a template has generation blocks they say it. Elsewhere the conversation is rendered up to each answer, with the
generation prompt and without: what the whole text has beyond that prompt, up to the end of the turn, is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from _runtime.data_prep.chat_template import END, START, ChatTemplate, TemplateFault

#: Pieces of text in order, each with whether the model is trained to write it; none is empty.
Pieces = list[tuple[str, bool]]
Messages = Sequence[Mapping[str, Any]]


class SpansFault(Exception):
    """The answers cannot be found in the rendered text."""


def pieces(template: ChatTemplate, messages: Messages, tools: Any, first: int, thinking: bool) -> Pieces:
    """Render a conversation and cut it where the model begins and ends to write.

    Args:
        first: the first message that is trained on if it is the assistant's; the ones before are context.
        thinking: does the conversation hold reasoning? Templates see it as ``enable_thinking``.

    Raises:
        TemplateFault: the template does not take the conversation.
        SpansFault: answers cannot be found.
    """
    text = template.render(messages, tools, enable_thinking=thinking)
    answers = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
    if template.marks_answers:
        return _marked(template, text, messages, tools, answers, first, thinking)
    return _rendered(template, text, messages, tools, [n for n in answers if n >= first], thinking)


def _marked(
    template: ChatTemplate,
    text: str,
    messages: Messages,
    tools: Any,
    answers: Sequence[int],
    first: int,
    thinking: bool,
) -> Pieces:
    opened = text.count(START)
    if opened != text.count(END) or (opened != len(answers) and _holds_marks((messages, tools))):
        raise SpansFault("the conversation holds U+FDD0 or U+FDD1, which mark answers")
    before = sum(n < first for n in answers)
    if opened != len(answers):  # it marks some answers only: go by where they stand
        history = template.render(messages[:first], tools, enable_thinking=thinking)
        before = history.count(START)
    found: Pieces = []
    head, *rest = text.split(START)
    found.append((head, False))
    for number, part in enumerate(rest):
        answer, mark, after = part.partition(END)
        if not mark:
            raise SpansFault("generation blocks of the template lie within each other")
        found += [(answer, number >= before), (after, False)]
    return _joined(found)


def _holds_marks(value: Any) -> bool:
    if isinstance(value, str):
        return START in value or END in value
    if isinstance(value, Mapping):
        return any(_holds_marks(v) for pair in value.items() for v in pair)
    return isinstance(value, (list, tuple)) and any(map(_holds_marks, value))


def _rendered(
    template: ChatTemplate, text: str, messages: Messages, tools: Any, answers: Sequence[int], thinking: bool
) -> Pieces:
    found: Pieces = []
    at = 0
    for n in answers:
        start = _prompt_end(template, text, messages, tools, n)
        end = len(text)
        if n + 1 < len(messages):
            upto = template.render(messages[: n + 1], tools, enable_thinking=thinking)
            if not text.startswith(upto):
                raise SpansFault(f"message {n}: the template writes it otherwise once others follow")
            end = len(upto)
        if not at <= start <= end:
            raise SpansFault(f"message {n}: its place in the rendered text is not clear")
        found += [(text[at:start], False), (text[start:end], True)]
        at = end
    found.append((text[at:], False))
    return _joined(found)


def _prompt_end(template: ChatTemplate, text: str, messages: Messages, tools: Any, n: int) -> int:
    """Where message ``n`` begins to be the model's: after what the generation prompt has in common with the text."""
    kwargs = {"enable_thinking": reasons(messages[n])}
    if n == 0:  # nothing to render before it; the prompt is the same after it
        alone = template.render(messages[:1], tools, **kwargs)
        prompt = template.render(messages[:1], tools, add_generation_prompt=True, **kwargs)[len(alone) :]
        return max(0, text.find(prompt)) + len(prompt) if prompt in text else 0
    prompted = template.render(messages[:n], tools, add_generation_prompt=True, **kwargs)
    if text.startswith(prompted):
        return len(prompted)
    before = template.render(messages[:n], tools, **kwargs)
    if not text.startswith(before):
        raise SpansFault(f"message {n}: the template writes what is before it otherwise once it follows")
    same = len(before)
    while same < min(len(text), len(prompted)) and text[same] == prompted[same]:
        same += 1
    return same


def reasons(message: Mapping[str, Any]) -> bool:
    """Does the assistant's message hold reasoning?"""
    thought = message.get("reasoning_content")
    if isinstance(thought, str) and thought.strip():
        return True
    content = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, str) or "</think>" not in content:
        return False
    return bool(content.partition("</think>")[0].replace("<think>", "").strip())


def _joined(found: Pieces) -> Pieces:
    """Without empty pieces; neighbours of one kind become one."""
    out: Pieces = []
    for text, trained in found:
        if not text:
            continue
        if out and out[-1][1] == trained:
            out[-1] = (out[-1][0] + text, trained)
        else:
            out.append((text, trained))
    return out


__all__ = ["Pieces", "SpansFault", "TemplateFault", "pieces", "reasons"]
