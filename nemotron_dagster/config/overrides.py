"""``key=value`` overrides: the grammar, and the check of keys against what the config knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_dagster.catalog.model import Step
from nemotron_dagster.config.secrets import is_secret
from nemotron_dagster.config.source import read_value
from nemotron_dagster.errors import ConfigError, did_you_mean

_KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+|\[\d+\])*")

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+")


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
        key, _, text = token.partition("=")
        if not _KEY.fullmatch(key):
            raise ConfigError(f"override {token!r}: {key!r} is not a key. Write section.key=value.")
        pairs.append((key, read_value(text, f"override {key}")))
    return pairs


def check_keys(step: Step, pairs: Iterable[tuple[str, Any]], known: Mapping[str, Any]) -> None:
    """Refuse an override whose key the step's config does not have.

    ``known`` is the compiled config merged over the step's default one. A key is free below a section that the
    manifest declares ``freeform``, below ``run``, and where the config's own value is null or empty.

    Raises:
        ConfigError: unknown key, a section replaced by a scalar, or a value that the manifest's choices exclude.
    """
    parameters = {p.name: p for p in step.parameters}
    for key, value in pairs:
        if is_secret(key) and isinstance(value, str) and value and "${" not in value:
            raise ConfigError(f"override {key}=…: a secret must not be written down. Use {key}='${{oc.env:NAME}}'.")
        choices = [str(c) for c in parameters[key].choices] if key in parameters else []
        if choices and not isinstance(value, Mapping) and ("null" if value is None else str(value)) not in choices:
            raise ConfigError(f"{key}={value}: not one of {', '.join(choices)}. Use one of them.")
        parts = [x for x in re.split(r"\.|\[(\d+)\]", key) if x]
        free = any(key == f or key.startswith(f + ".") for f in (*step.freeform, "run"))
        named = [*parameters, *(p.bind for p in (*step.consumes, *step.produces) if p.bind)]
        if free or any(key == n or n.startswith(key + ".") or key.startswith(n + ".") for n in named):
            continue
        node: Any = known
        for i, part in enumerate(parts):
            if isinstance(node, list):
                break
            if node is None or node == {}:
                break
            if not isinstance(node, Mapping) or part not in node:
                prefix = ".".join(parts[:i])
                siblings = [f"{prefix}.{k}" if prefix else str(k) for k in node] if isinstance(node, Mapping) else []
                hint = did_you_mean(".".join(parts[: i + 1]), siblings) or (
                    f" Known keys{f' of {prefix}' if prefix else ''}: {', '.join(sorted(siblings))}."
                    if siblings
                    else ""
                )
                raise ConfigError(f"unknown config key {key!r} for {step.id}.{hint} --allow-unknown lets it through.")
            node = node[part]
        else:
            if isinstance(node, Mapping) and node and value is not None and not isinstance(value, Mapping):
                raise ConfigError(
                    f"{key}={value}: {key} is a section ({', '.join(node)}), not a value. Name a key in it."
                )


def to_dotlist(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The same overrides as ``key=value`` tokens, for values that came as data (a Launchpad, a pipeline file).

    Text stays text, but for numbers like ``1e-5``, which YAML 1.1 readers such as Dagster's hand over as text.
    """
    import json

    tokens: list[str] = []
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            tokens += to_dotlist(value, name)
        elif isinstance(value, str) and _NUMBER.fullmatch(value):
            tokens.append(f"{name}={value}")
        else:
            tokens.append(f"{name}={json.dumps(value)}")
    return tokens
