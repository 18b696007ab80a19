"""Checks one piece of JSON lines: the fast way, and each row that it refuses once more, exactly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemotron_dagster.artifacts.types import _rows, _scan, _tally
from nemotron_dagster.errors import ArtifactError

if TYPE_CHECKING:
    pass

EVERY = 997  # of these rows one is parsed whole, for its columns
FIRST = 50
_SMALL = 1 << 18  # below it, importing pyarrow costs more than it saves


@dataclass(frozen=True)
class Rules:
    """What a type's rows must be.

    Attributes:
        train: rows are to be trained on, so their kind must be known and whole.
        others: with ``train``, rows of no known kind pass too.
        translated: FAITH scores are finite, and translated messages well formed.
    """

    train: bool = False
    others: bool = False
    translated: bool = False

    def examine(self, row: Any) -> str:
        """A parsed row's kind.

        Raises:
            Fault: what is wrong with it.
        """
        kind = _rows.kind(_rows.mapping(row))
        if self.train and not (self.others and kind in ("text", "other")):
            _rows.check(row)
        if self.translated:
            _rows.finite(row)
            if row.get("translated_messages") is not None:
                _rows.conversation(row["translated_messages"], "translated_messages")
        return kind


def check_piece(task: tuple[_scan.Piece, Rules]) -> _tally.Tally:
    """Read every row of a piece."""
    piece, rules = task
    return check_blocks(_scan.read(piece), rules)


def check_blocks(blocks: Iterable[_scan.Lines], rules: Rules) -> _tally.Tally:
    """Check every row of these blocks of lines."""
    tally = _tally.Tally()
    checker = _Train(tally, rules) if rules.train else _Loose(tally, rules)
    try:
        for block in blocks:
            if block.too_long:
                tally.lines += 1
                tally.rows += 1
                size = f"{block.too_long / 1e6:,.0f} MB"
                tally.problem(tally.lines, f"is a line of {size}. Split it, or check that lines end in a line feed")
            else:
                _block(block, checker)
            tally.fold()
    except ArtifactError as e:
        tally.damage = str(e)
    checker.finish()
    tally.lengths = Counter({max(n - 1, 0): count for n, count in tally.lengths.items()})  # without the line feed
    return tally


def _block(block: _scan.Lines, checker: _Checker) -> None:
    tally, lines, body = checker.tally, block.lines, block.body
    if b"\r" in body:
        tally.carriage_returns += body.count(b"\r\n")
    bad: set[int] = set()
    if body.isascii():
        tally.lengths.update(map(len, lines))
    else:
        try:
            tally.lengths.update(_characters(lines, body))
        except ValueError:
            bad = {i for i, line in enumerate(lines) if not _is_utf8(line)}
    before = tally.lines
    tally.lines += len(lines)
    tally.rows += len(lines)
    for i in bad:
        tally.problem(before + i + 1, _encoding(lines[i]))
        lines[i] = b""
        tally.blank -= 1
        tally.rows += 1
    checker.cut = len(lines) - 1 if block.cut else -1
    checker.lines(lines, before + 1)


def _characters(lines: list[bytes], body: bytes) -> list[int]:
    """How many characters each line has.

    Raises:
        ValueError: ``body`` is not UTF-8.
    """
    if len(body) < _SMALL:
        return [len(line.decode()) for line in lines]
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    ends = np.cumsum(np.fromiter(map(len, lines), np.int32, len(lines)), dtype=np.int32)
    offsets = np.concatenate([np.zeros(1, np.int32), ends])
    text = pa.Array.from_buffers(pa.string(), len(lines), [None, pa.py_buffer(offsets), pa.py_buffer(body)])
    text.validate(full=True)  # three times as fast as bytes.decode
    return list(pc.utf8_length(text).to_pylist())


class _Checker:
    """Counts rows; ``slowly`` takes those that the fast way refused."""

    def __init__(self, tally: _tally.Tally, rules: Rules) -> None:
        self.tally, self.rules = tally, rules
        self.cut = -1
        self.next_look = 0

    def lines(self, lines: list[bytes], first: int) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Move what was counted in quicker ways to the tally."""

    def look(self, lines: list[bytes]) -> None:
        """Parse some of the rows whole: the first ones, and one of ``EVERY``."""
        import orjson

        tally, at = self.tally, self.next_look
        while at < len(lines):
            line = lines[at]
            try:
                row = orjson.loads(line)
            except ValueError:
                row = None  # it was refused, or is blank
            if isinstance(row, dict):
                tally.look(row)
            at += 1 if tally.looked_at < FIRST else EVERY
        self.next_look = at - len(lines)

    def slowly(self, line: bytes, number: int, cut: bool) -> None:
        """Examine a row that the fast way did not take."""
        tally = self.tally
        if not line.strip():
            tally.blank += 1
            tally.rows -= 1
            tally.lengths[len(line)] -= 1
            return
        try:
            row = parse(line, cut)
            kind = self.rules.examine(row)
        except _rows.Fault as e:
            tally.problem(number, str(e))
        except RecursionError:
            tally.problem(number, "is nested too deeply. Flatten it")
        else:
            _tally.count(tally, row, kind)


class _Train(_Checker):
    """Rows to be trained on. The decoder that took the last row is tried first."""

    def __init__(self, tally: _tally.Tally, rules: Rules) -> None:
        from nemotron_dagster.artifacts.types import _fast

        super().__init__(tally, rules)
        self.fast = _fast
        self.order: list[tuple[type, Callable[[bytes], Any]]] = list(_fast.decoders().items())
        self.shapes: Counter[tuple[type, ...]] = Counter()
        self.known_tools: set[int] = set()

    def lines(self, lines: list[bytes], first: int) -> None:
        refused, chat = self.fast.REFUSED, self.fast.Chat
        kind, decode = self.order[0]
        chats: list[Any] = []
        at: list[int] = []
        for i, line in enumerate(lines):
            try:
                row = decode(line)
            except refused:
                row = self.other(line)
                kind, decode = self.order[0]
                if row is None:
                    self.slowly(line, first + i, i == self.cut)
                    continue
            if kind is chat:
                chats.append(row)
                at.append(i)
            elif not self.second_look(row, kind):
                self.slowly(line, first + i, i == self.cut)
            else:
                self.beside(row, first + i)
        self.chats(chats, at, lines, first)
        if len(self.shapes) > 5000:
            self.finish()
        self.look(lines)

    def chats(self, rows: list[Any], at: list[int], lines: list[bytes], first: int) -> None:
        """Check the contents of plain chat rows, all of them at once, and count them."""
        fast = self.fast
        if not fast.all_text([r.messages for r in rows]):
            typed = next(n for n, (t, _) in enumerate(self.order) if t is fast.ToolChat)
            self.order.insert(0, self.order.pop(typed))  # parts, most likely: the rows to come go there at once
            plain = []
            for row, i in zip(rows, at, strict=True):
                if fast.all_text([row.messages]):
                    plain.append((row, i))
                    continue
                full = self.other(lines[i], fast.Chat)
                if full is None or not self.second_look(full, self.order[0][0]):
                    self.slowly(lines[i], first + i, i == self.cut)
                else:
                    self.beside(full, first + i)
            rows, at = [r for r, _ in plain], [i for _, i in plain]
        self.shapes.update(tuple(map(type, r.messages)) for r in rows)
        self.tally.kinds["chat"] += len(rows)
        unset = fast.MISSING
        for row, i in zip(rows, at, strict=True):
            if row.tools is not unset or row.language is not None or row.lang is not None:
                self.tally.with_tools += self.beside(row, first + i)

    def beside(self, row: Any, number: int) -> bool:
        """Count a row's language and check its functions; whether it has any."""
        if row.language is not None or row.lang is not None:
            self.tally.language(row.lang if row.language is None else row.language)
        if row.tools is self.fast.MISSING:
            return False
        raw = bytes(row.tools)
        return raw != b"null" and self.tools(raw, number)

    def other(self, line: bytes, tried: type | None = None) -> Any:
        """The row as the first decoder of a kind not ``tried`` that takes it reads it; None if none does."""
        tried = tried or self.order[0][0]
        for n, (kind, decode) in enumerate(self.order):
            if kind is tried:
                continue
            try:
                row = decode(line)
            except self.fast.REFUSED:
                continue
            self.order.insert(0, self.order.pop(n))
            return row
        return None

    def second_look(self, row: Any, kind: type) -> bool:
        """Check what types cannot say, and count the row; False if it is to be examined."""
        fast, tally = self.fast, self.tally
        if kind is fast.ToolChat:
            if not fast.ordered(row.messages):
                return False
            self.shapes[tuple(map(type, row.messages))] += 1
            used = any(type(m) is fast.Tool or getattr(m, "tool_calls", None) for m in row.messages)
            tally.with_tools += used or row.tools is not fast.MISSING
            tally.kinds["chat"] += 1
            return True
        if kind is fast.Preference:
            if row.chosen == row.rejected or any(s.isspace() for s in (row.prompt, row.chosen, row.rejected)):
                return False
            tally.kinds["preference"] += 1
        elif kind is fast.Prompt:
            if row.prompt.isspace():
                return False
            tally.kinds["prompt"] += 1
        else:
            tally.kinds["gym"] += 1
        return True

    def tools(self, raw: bytes, number: int) -> bool:
        """Check a row's functions; the same ones stand in row after row, so each list is looked at once."""
        known = hash(raw)
        if known not in self.known_tools:
            try:
                _rows.tools(json.loads(raw))
            except _rows.Fault as e:
                self.tally.problem(number, str(e))
                return False
            if len(self.known_tools) < 100_000:
                self.known_tools.add(known)
        return True

    def finish(self) -> None:
        for shape, count in self.shapes.items():
            self.tally.shape("".join(self.fast.LETTERS[t] for t in shape), count)
        self.shapes.clear()


class _Loose(_Checker):
    """Rows that need only be JSON objects."""

    def __init__(self, tally: _tally.Tally, rules: Rules) -> None:
        from nemotron_dagster.artifacts.types import _fast

        super().__init__(tally, rules)
        self.refused, self.kinds = _fast.REFUSED, _fast.loose_kinds
        self.decode = _fast.loose_decoder(rules.translated)

    def lines(self, lines: list[bytes], first: int) -> None:
        decode, rows = self.decode, []
        for i, line in enumerate(lines):
            try:
                rows.append(decode(line))
            except self.refused:
                self.slowly(line, first + i, i == self.cut)
        self.tally.kinds.update(self.kinds(rows))
        named = Counter([row.lang if row.language is None else row.language for row in rows])
        for language, count in named.items():
            self.tally.language(language, count)
        self.look(lines)


def parse(line: bytes, cut: bool = False) -> Any:
    """One line of JSON.

    Raises:
        Fault: it is not JSON; why, as far as that can be told.
    """
    import orjson

    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as e:
        raise _rows.Fault(_not_json(line, e, cut)) from e


def _not_json(line: bytes, error: Exception, cut: bool) -> str:
    if line.startswith(b"\xef\xbb\xbf"):
        return "begins with a byte order mark. Save the file as UTF-8 without one"
    if b"\0" in line:
        return "is not JSON: it has NUL bytes, as a file has that was not written to its end. Make it again"
    if not _is_utf8(line):
        return _encoding(line)
    if cut:
        return f"is not JSON ({error}), and the file ends within it: it was cut off. Make it again"
    try:
        json.loads(line, parse_constant=_constant)
    except _rows.Fault as e:
        return str(e)
    except (ValueError, RecursionError):
        return f"is not JSON ({error}). Mend or remove the line"
    if b"\\u" in line:
        return f"has half of a surrogate pair ({error}). No tokenizer takes it: replace it"
    return f"is not JSON ({error}). Mend or remove the line"


def _constant(name: str) -> None:
    raise _rows.Fault(f"has the value {name}, which JSON does not. Write null or a number")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _encoding(line: bytes) -> str:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16. Save the file as UTF-8"
    try:
        line.decode()
    except UnicodeDecodeError as e:
        return f"is not UTF-8 (byte 0x{line[e.start]:02x} at {e.start}). Save the file as UTF-8"
    return "is not UTF-8. Save the file as UTF-8"
