"""Resolve the interpolations of plain data, and leave as references what only the job can resolve.

What comes out is a config again: text in which every ``${...}`` still stands for something, and a literal one is
escaped. So it can be written to a file that a payload loads.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from nemotron_dagster.config.grammar import (
    Call,
    GrammarError,
    Items,
    Node,
    Pairs,
    Text,
    escape,
    parse,
    plain,
    unescape,
)
from nemotron_dagster.config.keys import ABSENT, child, join, parse_key
from nemotron_dagster.config.secrets import redact
from nemotron_dagster.errors import did_you_mean

Path = tuple[Any, ...]
#: A resolver: ``(resolution, path of the value that asks, arguments) -> value``.
Resolver = Callable[["Resolution", Path, tuple[Any, ...]], Any]

_MAX_TEXT = 2**20
_MAX_NODES = 100_000
_MAX_CHAIN = 40
_BARE = re.compile(r"[\w./:+@%*?|$-]+", re.ASCII)


class Unresolved(Exception):
    """A value that cannot be resolved.

    Attributes:
        reason: what is wrong with it.
        fix: the next action; may use ``{key}``.
        variable: the environment variable that is not set, where that is the reason.
        path: whose value it is; filled in on the way.
    """

    def __init__(self, reason: str, fix: str = "Mend that key.", variable: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.fix, self.variable = reason, fix, variable
        self.path: Path | None = None


class Reference(str):
    """Text with a reference in it that the job resolves."""


class Unset(Unresolved):
    """A key that is not there, or whose value is ``???``: what ``oc.select`` has a default for."""


class Resolution:
    """One pass over one config. Holds no state that another thread or another pass could see."""

    no_key = "the config has no key {}"
    no_resolver = "there is no resolver {!r}"

    def __init__(self, root: Mapping[str, Any], resolvers: Mapping[str, Resolver]) -> None:
        self.root = root
        self.resolvers = resolvers
        self._done: dict[Path, Any] = {}
        self._open: list[Path] = []
        self._made = 0
        self._edges: dict[Path, set[Path]] = {}  # who refers to what

    def value(self, path: Path) -> Any:
        """The resolved value at a path.

        Raises:
            Unresolved: it, or something it refers to, cannot be resolved.
        """
        if path in self._done:
            return self._done[path]
        node = self._raw(path)
        if isinstance(node, Mapping):
            found: Any = {k: self.value((*path, k)) for k in node}
        elif isinstance(node, list):
            found = [self.value((*path, i)) for i in range(len(node))]
        elif isinstance(node, str) and "${" in node:
            found = self._text(path, node)
        else:
            found = node
        self._done[path] = found
        return found

    def select(self, path: Path) -> Any:
        """The value at a path that may run through interpolations.

        Raises:
            Unset: there is no such key, or it is ``???``.
            Unresolved: it cannot be resolved.
        """
        node: Any = self.root
        seen: Path = ()
        if self._open:
            self._edges.setdefault(self._open[-1], set()).add(tuple(str(p) for p in path))
        for i, part in enumerate(path):
            found = child(node, str(part))
            if found is ABSENT:
                near = [join((*path[:i], k)) for k in node] if isinstance(node, Mapping) else []
                wanted = join(path)
                raise Unset(self.no_key.format(wanted), did_you_mean(wanted, near).strip() or "Add that key.")
            seen, node = (*seen, found), node[found]
            if isinstance(node, str) and "${" in node:
                node = self.value(seen)
                if i < len(path) - 1:
                    return self._below(node, path[i + 1 :], path)
        if node == "???":
            raise Unset(f"{join(path)} must be given", f"Add {join(path)}=VALUE.")
        return self._copied(self.value(seen))

    def users(self, keys: set[Path]) -> list[Path]:
        """The values whose interpolations, however many steps away, lead to one of these keys or into it."""
        found: dict[Path, None] = {}
        wanted = set(keys)
        while True:
            new = [
                asker
                for asker, targets in self._edges.items()
                if asker not in found and any(_touches(t, w) for t in targets for w in wanted)
            ]
            if not new:
                return list(found)
            found |= dict.fromkeys(new)
            wanted |= {tuple(str(p) for p in asker) for asker in new}

    def _below(self, node: Any, parts: Path, path: Path) -> Any:
        for part in parts:
            found = child(node, str(part))
            if found is ABSENT:
                raise Unset(self.no_key.format(join(path)))
            node = node[found]
        return self._copied(node)

    def _raw(self, path: Path) -> Any:
        node: Any = self.root
        for part in path:
            node = node[part]
        return node

    def _copied(self, value: Any) -> Any:
        """A copy, so that nothing is in the result twice; with a limit, for sections that name each other."""
        if not isinstance(value, (dict, list)):
            return value
        self._made += _size(value)
        if self._made > _MAX_NODES:
            raise Unresolved("its interpolations expand without end", "Name sections fewer times.")
        return copy.deepcopy(value)

    def _text(self, path: Path, text: str) -> Any:
        if path in self._open:
            chain = " -> ".join(join(p) for p in [*self._open[self._open.index(path) :], path])
            raise self._at(path, Unresolved(f"interpolations refer to each other in a circle: {chain}", "Cut one."))
        if len(self._open) >= _MAX_CHAIN:
            raise self._at(path, Unresolved(f"more than {_MAX_CHAIN} interpolations in a chain", "Shorten it."))
        self._open.append(path)
        try:
            return self.evaluate(parse(text), path)
        except GrammarError as e:
            problem = Unresolved(f"{short(text)} is malformed: {e}", "Mend it; a literal ${ is written \\${.")
            raise self._at(path, problem) from e
        except Unset as e:  # not what the asking key lacks: that one is there
            raise self._at(path, Unresolved(e.reason, e.fix)) from None
        except Unresolved as e:
            raise self._at(path, e) from None
        except RecursionError as e:
            raise self._at(path, Unresolved("its interpolations nest too deep", "Make them simpler.")) from e
        finally:
            self._open.pop()

    @staticmethod
    def _at(path: Path, problem: Unresolved) -> Unresolved:
        if problem.path is None:
            problem.path = path
        return problem

    def evaluate(self, node: Any, path: Path, *, argument: bool = False) -> Any:
        """The value of a piece of grammar; inside an argument, text is what it says, not a config value."""
        if isinstance(node, Node):
            found = self._node(node, path)
            plain_text = argument and isinstance(found, str) and not isinstance(found, Reference)
            return unescape(found) if plain_text else found
        if isinstance(node, Call):
            return self._call(node, path, argument)
        if isinstance(node, Items):
            return [self.evaluate(n, path, argument=True) for n in node.items]
        if isinstance(node, Pairs):
            pairs = [
                (self.evaluate(k, path, argument=True), self.evaluate(v, path, argument=True)) for k, v in node.pairs
            ]
            return dict(pairs)
        assert isinstance(node, Text)
        if len(node.parts) == 1 and not isinstance(node.parts[0], str):
            return self.evaluate(node.parts[0], path, argument=argument)
        if not node.parts:
            return ""
        if len(node.parts) == 1 and node.typed:
            return plain(node.parts[0])
        values = [p if isinstance(p, str) else self.evaluate(p, path, argument=argument) for p in node.parts]
        kept = any(isinstance(v, Reference) for v in values)
        whole = ""
        for part, v in zip(node.parts, values, strict=True):
            if isinstance(v, Reference):
                run = len(whole) - len(whole.rstrip("\\"))
                whole += "\\" * run + v  # else the backslashes would escape it
            elif isinstance(part, str) or argument:
                whole += escape(_spelled(v, part)) if kept or not argument else _spelled(v, part)
            else:
                whole += _spelled(v, part)
        if len(whole) > _MAX_TEXT:
            raise Unresolved(f"its text grows beyond {_MAX_TEXT // 2**20} MiB", "Make it shorter.")
        return Reference(whole) if kept else whole

    def _node(self, node: Node, path: Path) -> Any:
        parts: list[str] = []
        dots = node.dots
        for i, p in enumerate(node.parts):
            if isinstance(p, str):
                parts.append(p)
                continue
            named = self.evaluate(p, path, argument=True)
            if not isinstance(named, (str, int)) or isinstance(named, bool):
                raise Unresolved(f"{short(named)} stands where a key is needed", "Name a key there.")
            if isinstance(named, Reference):
                raise Unresolved(f"{named} is known to the job only, so it cannot be part of a key", "Name the key.")
            text = str(named)
            if i == 0:
                dots += len(text) - len(text.lstrip("."))
                text = text.lstrip(".")
            parts += parts_of(text)
        return self.select(absolute(path, dots, tuple(parts)))

    def _call(self, call: Call, path: Path, argument: bool) -> Any:
        name = ".".join(str(self.evaluate(p, path, argument=True)) if not isinstance(p, str) else p for p in call.name)
        if name not in self.resolvers:
            close = did_you_mean(name, self.resolvers).strip() or f"Known: {', '.join(sorted(self.resolvers))}."
            raise Unresolved(self.no_resolver.format(name), close)
        if name in LAZY:
            return self.resolvers[name](self, path, call.args)
        values = tuple(self.evaluate(a, path, argument=True) for a in call.args)
        if name in FOLLOWS_REFERENCES or not any(_has_reference(v) for v in values):
            found = self.resolvers[name](self, path, values)
        else:
            found = keep(name, values)
        if isinstance(found, str) and not isinstance(found, Reference) and not argument:
            return escape(found)
        return found


def _touches(target: Path, key: Path) -> bool:
    return target[: len(key)] == key or key[: len(target)] == target


def settled(value: Any) -> Any:
    """The same data in types that every writer knows."""
    if isinstance(value, Mapping):
        return {k: settled(v) for k, v in value.items()}
    if isinstance(value, list):
        return [settled(v) for v in value]
    return str(value) if isinstance(value, Reference) else value


def keep(name: str, values: tuple[Any, ...]) -> Reference:
    """The call as a reference for the job, with its arguments resolved as far as they can be."""
    return Reference("${" + name + ":" + ",".join(_argument(v) for v in values) + "}")


def _argument(value: Any) -> str:
    """A value as the grammar spells it in an argument."""
    if isinstance(value, Reference):
        # a piece of text around a reference needs quotes; a bare reference must have none, to stay typed
        return value if _whole(value) else "'" + value.replace("'", "\\'") + "'"
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_argument(k)}:{_argument(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_argument(v) for v in value) + "]"
    text = str(value)
    if _BARE.fullmatch(text) and "${" not in text and isinstance(plain(text), str):
        return text
    quoted = re.sub(r"(\\*)('|\$\{|\Z)", lambda m: m[1] * 2 + ("\\" + m[2] if m[2] else ""), text)
    return f"'{quoted}'"


def _whole(text: str) -> bool:
    parts = parse(str(text)).parts
    return len(parts) == 1 and not isinstance(parts[0], str)


def _has_reference(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_reference(v) for v in value.values())
    if isinstance(value, list):
        return any(_has_reference(v) for v in value)
    return isinstance(value, Reference)


def _spelled(value: Any, part: Any) -> str:
    """A value inside other text. The job's own ``run`` leaves nothing where it holds null."""
    if value is None and isinstance(part, Node) and part.parts[:1] == ("run",):
        return ""
    return str(value)


def absolute(path: Path, dots: int, parts: Path) -> Path:
    """Where a relative key lies: one dot is the section of the value that asks, each further one a level up.

    Raises:
        Unresolved: it leads out of the config.
    """
    if not dots:
        return parts
    if dots > len(path):
        raise Unresolved(f"{'.' * dots}{join(parts)} leads out of the config", "Take away a dot.")
    return (*path[: len(path) - dots], *parts)


def parts_of(text: str) -> tuple[str, ...]:
    """The parts of a key that a config computes.

    Raises:
        Unresolved: it is no key.
    """
    try:
        return parse_key(text) if text else ()
    except ValueError as e:
        raise Unresolved(f"{short(text)} is no key: {e}", "Name a key there.") from e


def _size(value: Any) -> int:
    if isinstance(value, Mapping):
        return 1 + sum(_size(v) for v in value.values())
    return 1 + sum(_size(v) for v in value) if isinstance(value, list) else 1


def short(value: Any) -> str:
    """The value as a message shows it."""
    text = redact(value if isinstance(value, str) else json.dumps(value, default=str))
    return repr(text if len(text) <= 120 else text[:117] + "...")


#: Resolvers that choose which of their arguments to look at.
LAZY = {"oc.select", "oc.env"}
#: Resolvers that can do with an argument that only the job knows.
FOLLOWS_REFERENCES = {"auto_mount"}
