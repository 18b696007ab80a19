"""Keys of configs: their grammar (``a.b``, ``a[0].b``, ``a["x.y"]``), and plain data read and written by them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Key = tuple[str, ...]

_ESCAPABLE = ".[]="
_PLAIN = re.compile(r"[^\s.\[\]=\\\"'](?:[^.\[\]=\\]*[^\s.\[\]=\\])?")
_POINTER = re.compile(r"\$\{([^\s{}:]+)\}")
ABSENT: Any = object()


def parse_key(text: str) -> Key:
    """The parts of a key. A part with dots, brackets or ``=`` is written in brackets, quoted or escaped.

    Raises:
        ValueError: saying what is wrong.
    """
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ValueError("it holds a control character")
    parts: list[str] = []
    i, fresh = 0, True
    while i < len(text) or fresh:
        if i < len(text) and text[i] == "[":
            part, i = _bracket(text, i)
        else:
            part = ""
            while i < len(text) and text[i] not in ".[":
                if text[i] == "\\" and text[i + 1 : i + 2] and text[i + 1] in _ESCAPABLE:
                    i += 1
                elif text[i] in "]=":
                    raise ValueError(f"{text[i]!r} needs brackets around the part that has it")
                part += text[i]
                i += 1
            if not part:
                raise ValueError("a part of it is empty")
            if part != part.strip() or part[0] in "\"'":
                raise ValueError(f"{part!r} needs brackets")
        parts.append(part)
        fresh = i < len(text) and text[i] == "."
        i += fresh
    return tuple(parts)


def _bracket(text: str, i: int) -> tuple[str, int]:
    quote = text[i + 1 : i + 2]
    end = text.find(f"{quote}]", i + 2) + 1 if quote in ("'", '"') else text.find("]", i)
    part = text[i + 2 : end - 1] if quote in ("'", '"') else text[i + 1 : end]
    if end <= 0:
        raise ValueError("a [ is not closed")
    if not part:
        raise ValueError("a part of it is empty")
    after = text[end + 1 : end + 2]
    if after not in ("", ".", "["):
        raise ValueError(f"{after!r} follows a ]")
    return part, end + 1


def split_assignment(token: str) -> tuple[str, str]:
    """Key and value of ``key=value``: the first ``=`` that is neither in brackets nor escaped parts them."""
    depth = 0
    for i, c in enumerate(token):
        if c == "[":
            depth += 1
        elif c == "]":
            depth -= 1
        elif c == "=" and depth <= 0 and token[i - 1 : i] != "\\":
            return token[:i], token[i + 1 :]
    key, _, value = token.partition("=")
    return key, value


def join(parts: tuple[Any, ...]) -> str:
    """The key as it is written; list indices in brackets."""
    text = ""
    for part in parts:
        if isinstance(part, int) and not isinstance(part, bool):
            text += f"[{part}]"
        elif _PLAIN.fullmatch(str(part)):
            text += f".{part}" if text else str(part)
        else:
            text += f'["{part}"]' if '"' not in str(part) else f"['{part}']"
    return text


def child(node: Any, part: str) -> Any:
    """The key or index under which ``node`` holds ``part``; ABSENT where it does not. Keys may be numbers."""
    if isinstance(node, Mapping):
        return part if part in node else next((k for k in node if str(k) == part), ABSENT)
    if isinstance(node, list) and re.fullmatch(r"\d{1,9}", part) and int(part) < len(node):
        return int(part)
    return ABSENT


def get(data: Any, key: str | Key, default: Any = None) -> Any:
    """The value at a key of plain data, or ``default``."""
    for part in parse_key(key) if isinstance(key, str) else key:
        found = child(data, part)
        if found is ABSENT:
            return default
        data = data[found]
    return data


def put(data: Any, key: str | Key, value: Any, root: Any = None) -> None:
    """Set a key: a mapping merges into a mapping, anything else replaces. Sections on the way are made.

    Raises:
        ValueError: the key runs through a value, or an index is not in its list.
    """
    parts = parse_key(key) if isinstance(key, str) else key
    root = data if root is None else root
    for i, part in enumerate(parts):
        found = child(data, part)
        if found is ABSENT and not isinstance(data, dict):
            what = f"list of {len(data)}" if isinstance(data, list) else "value"
            raise ValueError(f"{join(parts[:i])} is a {what}, it has no {part}")
        slot = part if found is ABSENT else found
        if i == len(parts) - 1:
            old = None if found is ABSENT else data[slot]
            data[slot] = merge(old, value, root)
            return
        below = None if found is ABSENT else _followed(data[slot], root)
        if below is None:
            below = {}
        elif not isinstance(below, (dict, list)):
            raise ValueError(f"{join(parts[: i + 1])} is a value, not a section")
        data[slot] = below
        data = below


def merge(base: Any, over: Any, root: Any = None) -> Any:
    """``over`` on top of ``base``, as OmegaConf merges: mappings key by key, lists replaced, ``???`` gives way.

    A base value that refers to a section (``${a.b}`` of ``root``) is that section. Neither argument is changed.
    """
    if not isinstance(over, Mapping):
        return copy.deepcopy(over)
    base = _followed(base, root)
    if not isinstance(base, Mapping):
        return {k: merge(None, v, root) for k, v in over.items()}
    merged = dict(base)
    for k, v in over.items():
        if v != "???" or k not in merged:
            merged[k] = merge(merged.get(k), v, root)
    return merged


def _followed(value: Any, root: Any) -> Any:
    """The section that ``${a.b}`` names, copied; any other value as it is."""
    pointer = _POINTER.fullmatch(value) if isinstance(value, str) and root is not None else None
    if pointer and not pointer[1].startswith("."):
        try:
            target = get(root, pointer[1])
        except ValueError:
            return value
        if isinstance(target, (dict, list)):
            return copy.deepcopy(target)
    return value


def change(data: Any, key: Key, function: Callable[[Any], Any]) -> None:
    """Replace the value at a key by ``function`` of it, where there is one."""
    *above, last = key
    node = get(data, tuple(above), ABSENT)
    found = child(node, last)
    if found is not ABSENT:
        node[found] = function(node[found])


def flat(value: Any, path: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every key of plain data and its value, down to what is no section; an empty section is a value."""
    if isinstance(value, Mapping) and value:
        for k, v in value.items():
            yield from flat(v, (*path, str(k)))
    else:
        yield path, value


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every path of plain data and its value, down to what is neither a mapping nor a list."""
    if isinstance(value, Mapping) and value:
        for k, v in value.items():
            yield from leaves(v, (*path, k))
    elif isinstance(value, list) and value:
        for i, v in enumerate(value):
            yield from leaves(v, (*path, i))
    else:
        yield path, value
