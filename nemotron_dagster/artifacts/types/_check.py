"""Checks one piece of JSON lines: the fast way, and each row that it refuses once more, exactly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from nemotron_dagster.artifacts.types import _rows, _scan, _tally
from nemotron_dagster.errors import ArtifactError

EVERY = 997  # of these rows one is parsed whole, for its columns
FIRST = 50


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
    tally.lengths = Counter({max(n - 1, 0): count for n, count in tally.lengths.items()})  # without the line feed
    return tally


def _block(block: _scan.Lines, checker: _Checker) -> None:
    tally, lines = checker.tally, block.lines
    bad: set[int] = set()
    if all(map(bytes.isascii, lines)):
        tally.lengths.update(map(len, lines))
    else:
        try:
            tally.lengths.update(list(map(len, map(bytes.decode, lines))))
        except UnicodeDecodeError:
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


class _Checker:
    """Counts rows; ``slowly`` takes those that the fast way refused."""

    def __init__(self, tally: _tally.Tally, rules: Rules) -> None:
        self.tally, self.rules = tally, rules
        self.cut = -1
        self.next_look = 0

    def lines(self, lines: list[bytes], first: int) -> None:
        raise NotImplementedError

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
        self.decoders = _fast.decoders()
        self.order = list(self.decoders)
        self.skim = True
        self.known_tools: set[int] = set()

    def lines(self, lines: list[bytes], first: int) -> None:
        fast = self.fast
        taken, refused = self.decoded(lines)
        if fast.Chat in taken:
            self.with_parts(lines, taken, refused)
        for kind, (rows, at) in taken.items():
            more = fast.with_more(rows)
            doubts = {*fast.doubtful(rows, kind), *self.wrong_tools(more)}
            if doubts:
                refused += [at[n] for n in doubts]
                rows = [row for n, row in enumerate(rows) if n not in doubts]
            self.count(kind, rows, [row for n, row in more if n not in doubts])
        for i in sorted(refused):
            self.slowly(lines[i], first + i, i == self.cut)
        self.look(lines)

    def decoded(self, lines: list[bytes]) -> tuple[dict[type, tuple[list[Any], list[int]]], list[int]]:
        """Decoder -> the rows that it took and their places among ``lines``; the places of rows that none took."""
        fast, kinds = self.fast, self.order[:1]
        if kinds == [fast.ToolChat] and self.skim:  # one row with tools makes not all of them slow
            kinds = [fast.Chat, fast.ToolChat]
        for kind in kinds:
            try:
                return {kind: (list(map(self.decoders[kind], lines)), list(range(len(lines))))}, []
            except fast.REFUSED:
                continue
        taken: dict[type, tuple[list[Any], list[int]]] = {}
        refused: list[int] = []
        for i, line in enumerate(lines):
            for n, kind in enumerate(self.order):
                try:
                    row = self.decoders[kind](line)
                except fast.REFUSED:
                    continue
                self.order.insert(0, self.order.pop(n))
                rows, at = taken.setdefault(kind, ([], []))
                rows.append(row)
                at.append(i)
                break
            else:
                refused.append(i)
        return taken, refused

    def with_parts(
        self, lines: list[bytes], taken: dict[type, tuple[list[Any], list[int]]], refused: list[int]
    ) -> None:
        """Decode the skimmed rows again whose content is not text, but parts most likely."""
        fast = self.fast
        rows, at = taken[fast.Chat]
        parts = set(fast.not_text(rows))
        if not parts:
            return
        self.skim = False
        self.order.insert(0, self.order.pop(self.order.index(fast.ToolChat)))
        taken[fast.Chat] = (
            [r for n, r in enumerate(rows) if n not in parts],
            [i for n, i in enumerate(at) if n not in parts],
        )
        full = taken.setdefault(fast.ToolChat, ([], []))
        for n in parts:
            try:
                row = self.decoders[fast.ToolChat](lines[at[n]])
            except fast.REFUSED:
                refused.append(at[n])
            else:
                full[0].append(row)
                full[1].append(at[n])

    def wrong_tools(self, rows: list[tuple[int, Any]]) -> list[int]:
        """Which rows offer functions that are wrong. The same ones stand in row after row: each is looked at once."""
        wrong, unset = [], self.fast.MISSING
        for n, raw in [(n, bytes(row.tools)) for n, row in rows if row.tools is not unset]:
            known = hash(raw)
            if known not in self.known_tools and raw != b"null":
                try:
                    _rows.tools(json.loads(raw))
                except (_rows.Fault, RecursionError):
                    wrong.append(n)
                    continue
                if len(self.known_tools) < 100_000:
                    self.known_tools.add(known)
        return wrong

    def count(self, kind: type, rows: list[Any], more: list[Any]) -> None:
        """Count rows that are right; ``more``: those of them that have more keys."""
        fast, tally = self.fast, self.tally
        for language, n in fast.named(more).items():
            tally.language(language, n)
        if kind not in (fast.Chat, fast.ToolChat):
            tally.kinds[kind.__name__.lower()] += len(rows)
            return
        tally.kinds["chat"] += len(rows)
        tally.with_tools += sum(map(fast.has_tools, rows if kind is fast.ToolChat else more))
        messages = list(map(fast.MESSAGES, rows))
        tally.turns.update(map(len, messages))
        for type_, n in Counter(map(type, chain.from_iterable(messages))).items():
            tally.roles[fast.ROLES[type_]] += n
        said = {fast.Assistant, fast.AssistantSkimmed}
        if not said.issuperset(map(type, map(fast.LAST, messages))):
            tally.without_assistant += sum(said.isdisjoint(map(type, some)) for some in messages)


class _Loose(_Checker):
    """Rows that need only be JSON objects."""

    def __init__(self, tally: _tally.Tally, rules: Rules) -> None:
        from nemotron_dagster.artifacts.types import _fast

        super().__init__(tally, rules)
        self.fast = _fast
        self.decode = _fast.loose_decoder(rules.translated)
        self.order = [] if rules.translated else _fast.loose_decoders()

    def lines(self, lines: list[bytes], first: int) -> None:
        rows: list[Any]
        for n, (decode, kind, value) in enumerate(self.order):
            try:
                rows = list(map(decode, lines))
            except self.fast.REFUSED:
                continue
            if not self.fast.any_null(map(value, rows)):
                self.tally.kinds[kind] += len(rows)
                self.order.insert(0, self.order.pop(n))
                break
        else:
            rows = []
            for i, line in enumerate(lines):
                try:
                    rows.append(self.decode(line))
                except self.fast.REFUSED:
                    self.slowly(line, first + i, i == self.cut)
            self.tally.kinds.update(self.fast.loose_kinds(rows))
        for language, count in self.fast.named(rows).items():
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
