"""What sft_packing should make of a conversation, written as obviously as possible: one message at a time.

It knows the ``nano3`` layout: an answer follows ``<|im_start|>assistant`` and a thought that is opened, or empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Render = Callable[[list[dict[str, Any]]], str]


def thinks(message: dict[str, Any]) -> bool:
    return bool((message.get("reasoning_content") or "").strip())


def parts(messages: list[dict[str, Any]]) -> list[tuple[list[dict[str, Any]], int]]:
    """(messages of a sequence, the first one to learn from): one sequence per user turn where there is reasoning."""
    if not any(map(thinks, messages)):
        return [(messages, 0)]
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    return [(messages[:end], user + 1) for user, end in zip(users, [*users[1:], len(messages)], strict=True)]


def learned(messages: list[dict[str, Any]], first: int, render: Render) -> tuple[str, list[int]]:
    """The text of a sequence, and for each character whether the model learns to write it."""
    text = render(messages)
    mask = [0] * len(text)
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and i >= first:
            prompt = render(messages[:i]) + "<|im_start|>assistant\n"
            prompt += "<think>\n" if thinks(message) else "<think></think>"
            until = render(messages[: i + 1])
            assert text.startswith(prompt) and text.startswith(until)
            for at in range(len(prompt), len(until)):
                mask[at] = 1
    return text, mask


def stretches(text: str, mask: list[int]) -> list[tuple[str, int]]:
    """The text cut where the mask changes."""
    found: list[tuple[str, int]] = []
    for character, bit in zip(text, mask, strict=True):
        if found and found[-1][1] == bit:
            found[-1] = (found[-1][0] + character, bit)
        else:
            found.append((character, bit))
    return found


def shifted(ids: list[int], mask: list[int]) -> list[int]:
    """Whether the next token counts; the last one has none."""
    return [mask[j + 1] if j + 1 < len(ids) else 0 for j in range(len(ids))]
