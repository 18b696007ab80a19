"""Chats to tokens and loss masks, slowly and obviously: what data_prep/sft_packing must write, token for token.

A program for the interpreter with jinja2 and tokenizers; it shares no line with the payload. It reads a request from
standard input and prints the answer, both JSON:

    {"rows": [..], "template": str, "tokenizer": file, "prompts": [str], "end": str, "limit": int,
     "whole": bool}
        -> for each row its sequences, each [ids, mask]
    {"decode": [[ids], ..], "tokenizer": file} -> the texts
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

OPENS = "<|im_start|>assistant\n"


class Ignored(Extension):
    """A generation block is what stands in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> Any:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Ignored, loopcontrols])
    env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return env


def normal(message: dict[str, Any]) -> dict[str, Any]:
    message = {**message, "content": message.get("content") or ""}
    for call in message.get("tool_calls", ()):
        if isinstance(call["function"]["arguments"], str):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return message


def sequences(
    row: dict[str, Any], template: jinja2.Template, end: str, prompts: list[str]
) -> list[tuple[str, list[tuple[int, int]]]]:
    """Each text to train on, with the character spans that the assistant wrote."""
    messages = [normal(m) for m in row["messages"]]
    thinking = any((m.get("reasoning_content") or "").strip() for m in messages)
    cuts = [(0, len(messages))]
    if thinking:
        users = [n for n, m in enumerate(messages) if m["role"] == "user"]
        cuts = list(zip(users, [*users[1:], len(messages)], strict=True))
    found = []
    for first, last in cuts:
        text = template.render(
            messages=messages[:last],
            tools=row.get("tools"),
            enable_thinking=thinking,
            chat_template_kwargs={"enable_thinking": thinking},
        )
        spans = []
        at = -1
        for n in range(last):
            if messages[n]["role"] == "assistant":
                at = text.index(OPENS, at + 1)
                begin = at + len(OPENS)
                for prompt in prompts:  # what a server writes before it asks the model
                    if text.startswith(prompt, begin):
                        begin += len(prompt)
                if n >= first:
                    spans.append((begin, text.index(end, begin) + len(end)))
        if spans:
            found.append((text, spans))
    return found


def tokens(text: str, spans: list[tuple[int, int]], tokenizer: Tokenizer, whole: bool) -> tuple[list[int], list[int]]:
    if whole:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [int(any(a <= at < b for a, b in spans)) for at, _ in encoding.offsets]
    ids: list[int] = []
    mask: list[int] = []
    at = 0
    for a, b in [*spans, (len(text), len(text))]:
        for piece, trained in ((text[at:a], 0), (text[a:b], 1)):
            got = tokenizer.encode(piece, add_special_tokens=False).ids if piece else []
            ids += got
            mask += [trained] * len(got)
        at = b
    return ids, mask


def answer(request: dict[str, Any]) -> Any:
    tokenizer = Tokenizer.from_file(request["tokenizer"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if "decode" in request:
        return [tokenizer.decode(ids, skip_special_tokens=False) for ids in request["decode"]]
    template = environment().from_string(request["template"])
    told = []
    for row in request["rows"]:
        of_row = []
        for text, spans in sequences(row, template, request["end"], request["prompts"]):
            ids, mask = tokens(text, spans, tokenizer, request.get("whole", False))
            ids, mask = ids[: request["limit"]], mask[: request["limit"]]
            shifted = [*mask[1:], 0]
            if any(shifted):
                of_row.append([ids, shifted])
        told.append(of_row)
    return told


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
