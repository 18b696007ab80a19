"""The grammar of interpolations, as OmegaConf has it: ``${a.b}``, ``${.c}``, ``${name:arg,[list],'text'}``.

A parser of its own because OmegaConf's resolvers are one table per process: a compile must neither add to it nor see
what others added, and a reference that only the job can resolve must come out as it went in. What both accept reads
the same in both; the tests hold them against each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_INT = re.compile(r"[+-]?(?:\d|[1-9](?:_?\d)+)")
_FLOAT = re.compile(
    r"[+-]?(?:(?:\d|[1-9](?:_?\d)+)\.(?:\d(?:_?\d)*)?|\.\d(?:_?\d)*"
    r"|(?:(?:\d|[1-9](?:_?\d)+)\.?(?:\d(?:_?\d)*)?|\.\d(?:_?\d)*)[eE][+-]?\d(?:_?\d)*|[Ii][Nn][Ff]|[Nn][Aa][Nn])"
)
_NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
_KEY_END = "\\{}()[]:., \t'\""
_ESCAPED = "\\()[]{}:=, \t"


class GrammarError(Exception):
    """An interpolation is malformed; says what and where."""


@dataclass(frozen=True)
class Node:
    """``${a.b}``: another key; ``dots`` leading dots make it relative."""

    dots: int
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """``${name:args}``; the name and every argument are parts of their own."""

    name: tuple[Any, ...]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Text:
    """Literal text and interpolations in turn. ``typed``: a bare word in an argument, which may be a number."""

    parts: tuple[Any, ...]
    typed: bool = False


@dataclass(frozen=True)
class Items:
    """A list in an argument."""

    items: tuple[Any, ...]


@dataclass(frozen=True)
class Pairs:
    """A mapping in an argument."""

    pairs: tuple[tuple[Any, Any], ...]


@lru_cache(maxsize=4096)
def parse(text: str) -> Text:
    """The parts of a config value.

    Raises:
        GrammarError: an interpolation is malformed.
    """
    return _Parser(text).value()


@lru_cache(maxsize=256)
def parse_element(text: str) -> Any:
    """The parts of what ``oc.decode`` reads: one argument.

    Raises:
        GrammarError: it is malformed.
    """
    parser = _Parser(text)
    found = parser.element("")
    parser.space()
    if parser.i < len(text):
        raise GrammarError(f"{text[parser.i :]!r} is left over")
    return found


def plain(text: str) -> Any:
    """A bare word as the value that it spells: number, boolean, null or text."""
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return {"true": True, "false": False, "null": None}.get(text.lower(), text)


def escape(text: str) -> str:
    """Text as a config value that means just this text."""
    return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", text)


def unescape(text: str) -> str:
    """The text that a config value without interpolations means."""
    return re.sub(r"((?:\\\\)*)\\\$\{", lambda m: m[1][: len(m[1]) // 2] + "${", text)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.i = text, 0

    def fail(self, what: str) -> GrammarError:
        return GrammarError(f"{what} at character {self.i + 1}")

    def space(self) -> None:
        while self.text[self.i : self.i + 1] in (" ", "\t"):
            self.i += 1

    def at(self, token: str) -> bool:
        return self.text.startswith(token, self.i)

    def take(self, token: str) -> bool:
        if self.at(token):
            self.i += len(token)
            return True
        return False

    def backslashes(self) -> str:
        start = self.i
        while self.at("\\"):
            self.i += 1
        return self.text[start : self.i]

    def value(self) -> Text:
        parts: list[Any] = []
        while self.i < len(self.text):
            if self.at("${"):
                parts.append(self.interpolation())
            elif self.at("\\"):
                run = self.backslashes()
                if not self.at("${"):
                    parts.append(run)
                elif len(run) % 2:
                    self.i += 2
                    parts.append("\\" * (len(run) // 2) + "${")
                else:
                    parts.append("\\" * (len(run) // 2))
            else:
                start = self.i
                self.i += 1
                while self.i < len(self.text) and self.text[self.i] not in "\\$":
                    self.i += 1
                parts.append(self.text[start : self.i])
        return Text(_joined(parts))

    def interpolation(self) -> Node | Call:
        start = self.i
        self.i += 2
        self.space()
        dots = 0
        while self.take("."):
            dots += 1
        parts: list[Any] = []
        while True:
            if self.take("["):
                parts.append(self.key())
                if not self.take("]"):
                    raise self.fail("] is missing")
            elif not parts or self.text[self.i - 1] == ".":
                if dots and not parts and (self.at("}") or self.at(" ")):
                    break
                parts.append(self.key())
            if self.take("."):
                continue
            if not self.at("["):
                break
        self.space()
        if self.take("}"):
            return Node(dots, tuple(parts))
        if self.i < len(self.text) and self.text[self.i] == ":" and not dots:
            for part in parts:
                if isinstance(part, str) and not _NAME.fullmatch(part):
                    raise self.fail(f"{part!r} is no name of a resolver")
            self.i += 1
            return Call(tuple(parts), self.arguments())
        if self.i >= len(self.text):
            self.i = start
            raise self.fail("${ is not closed")
        raise self.fail(f"{self.text[self.i]!r} is unexpected")

    def key(self) -> Any:
        if self.at("${"):
            return self.interpolation()
        found = ""
        while self.i < len(self.text):
            c = self.text[self.i]
            if c == "\\" and self.text[self.i + 1 : self.i + 2] in tuple("\\.[]:="):
                self.i += 1
                c = self.text[self.i]
            elif c in _KEY_END or c == "$":
                break
            found += c
            self.i += 1
        if not found:
            what = f"{self.text[self.i]!r} is unexpected" if self.i < len(self.text) else "a key is missing"
            raise self.fail(what)
        return found

    def arguments(self) -> tuple[Any, ...]:
        self.space()
        if self.take("}"):
            return ()
        found = []
        while True:
            found.append(self.element(",}"))
            self.space()
            if self.take("}"):
                return tuple(found)
            if not self.take(","):
                raise self.fail("${ is not closed" if self.i >= len(self.text) else ", or } is missing")

    def element(self, ends: str) -> Any:
        self.space()
        if self.at("'") or self.at('"'):
            return self.quoted()
        if self.take("["):
            return Items(tuple(self.sequence("]")))
        if self.take("{"):
            pairs = []
            for item in self.sequence("}", pairs=True):
                pairs.append(item)
            return Pairs(tuple(pairs))
        return self.word(ends)

    def sequence(self, end: str, pairs: bool = False) -> list[Any]:
        found: list[Any] = []
        self.space()
        if self.take(end):
            return found
        while True:
            item = self.element((":" if pairs else ",") + end)
            self.space()
            if pairs:
                if not self.take(":"):
                    raise self.fail(": is missing")
                item = (item, self.element("," + end))
                self.space()
            found.append(item)
            if self.take(end):
                return found
            if not self.take(","):
                raise self.fail(f", or {end} is missing")

    def word(self, ends: str) -> Text:
        parts: list[Any] = []
        escaped = kept = 0  # how many parts there are up to the last escaped one, and up to the last not to be stripped
        while self.i < len(self.text):
            if self.at("${"):
                parts.append(self.interpolation())
                continue
            c = self.text[self.i]
            if c == "\\" and self.text[self.i + 1 : self.i + 2] in tuple(_ESCAPED):
                self.i += 1
                parts.append(self.text[self.i])
                escaped = kept = len(parts)
            elif c in ends or c in "[]{}'\"":
                break
            else:
                parts.append(c)
                if c == ":":  # to OmegaConf the blanks after a colon are a part of it
                    while self.text[self.i + 1 : self.i + 2] in (" ", "\t"):
                        self.i += 1
                        parts.append(self.text[self.i])
                    kept = len(parts)
            self.i += 1
        while len(parts) > kept and parts[-1] in (" ", "\t"):
            parts.pop()
        return Text(_joined(parts), typed=not escaped)

    def quoted(self) -> Text:
        quote = self.text[self.i]
        self.i += 1
        parts: list[Any] = []
        while self.i < len(self.text):
            if self.take(quote):
                return Text(_joined(parts))
            if self.at("${"):
                parts.append(self.interpolation())
            elif self.at("\\"):
                run = self.backslashes()
                if self.at(quote) or self.at("${"):
                    parts.append("\\" * (len(run) // 2))
                    if len(run) % 2:
                        parts.append("${" if self.at("${") else quote)
                        self.i += len(parts[-1])
                else:
                    parts.append(run)
            else:
                parts.append(self.text[self.i])
                self.i += 1
        raise self.fail(f"{quote} is not closed")


def _joined(parts: list[Any]) -> tuple[Any, ...]:
    """The parts with neighbouring texts made one."""
    found: list[Any] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        elif part != "":
            found.append(part)
    return tuple(found)
