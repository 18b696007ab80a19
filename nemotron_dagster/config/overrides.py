"""``key=value`` overrides: the grammar, and how they are set."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_dagster.config.keys import parse_key, put, split_assignment
from nemotron_dagster.config.source import read_value
from nemotron_dagster.errors import ConfigError

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+")
#: What YAML does not let stand in a text as it is. JSON's escapes of all else beyond 16 bits are none of YAML's.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")


@dataclass(frozen=True)
class Tokens:
    """Command-line tokens after the step id, told apart."""

    dotlist: tuple[str, ...]
    passthrough: tuple[str, ...]


def split_tokens(tokens: Sequence[str]) -> Tokens:
    """``key=value`` tokens become overrides; everything after ``--`` and every other token goes to the payload."""
    dotlist: list[str] = []
    passthrough: list[str] = []
    for i, token in enumerate(tokens):
        if token == "--":
            passthrough += tokens[i + 1 :]
            break
        if "=" in token and not token.startswith("-"):
            dotlist.append(token)
        else:
            passthrough.append(token)
    return Tokens(tuple(dotlist), tuple(passthrough))


def parse_dotlist(dotlist: Iterable[str]) -> list[tuple[str, Any]]:
    """``(key, value)`` pairs; values are YAML as OmegaConf reads it (``1e-5`` is a float).

    Raises:
        ConfigError: a key or a value is malformed.
    """
    pairs: list[tuple[str, Any]] = []
    for token in dotlist:
        key, text = split_assignment(token)
        shown = token if len(token) <= 80 else token[:77] + "..."
        try:
            parse_key(key)
        except ValueError as e:
            raise ConfigError(
                f"override {shown!r}: {key[:80]!r} is not a key: {e}. "
                "Write section.key=value, list[0].key=value or section[odd.key]=value."
            ) from e
        pairs.append((key, read_value(text, f"override {shown!r}")))
    return pairs


def apply(data: dict[str, Any], pairs: Iterable[tuple[str, Any]]) -> None:
    """Set every override in ``data``, in order: mappings merge, lists and values replace.

    Raises:
        ConfigError: a key runs through a value, or an index is not in its list.
    """
    for key, value in pairs:
        try:
            put(data, key, value)
        except ValueError as e:
            raise ConfigError(f"{key}={value}: cannot be set: {e}. Name a key that is there.") from e


def to_dotlist(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The same overrides as ``key=value`` tokens, for values that came as data (a Launchpad, a pipeline file).

    Text stays text, but for numbers like ``1e-5``, which YAML 1.1 readers such as Dagster's hand over as text.
    """
    tokens: list[str] = []
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            tokens += to_dotlist(value, name)
        elif isinstance(value, str) and _NUMBER.fullmatch(value):
            tokens.append(f"{name}={value}")
        elif isinstance(value, float) and not math.isfinite(value):
            tokens.append(f"{name}={'.nan' if math.isnan(value) else '.inf' if value > 0 else '-.inf'}")
        else:
            tokens.append(f"{name}={_UNSAFE.sub(_escaped, json.dumps(value, ensure_ascii=False))}")
    return tokens


def _escaped(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"
