"""What must agree between artifacts although their types do not say it: tokenizer, chat template, sequence length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_LENGTHS = ("sequence_length", "seq_length", "pack_size")


def of(
    facts: Mapping[str, Any], reported: Mapping[str, Any], inputs: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """``tokenizer``, ``chat_template`` and ``sequence_length`` of an artifact, as its manifest holds them.

    What validation found counts before what the payload reported; where neither tells, ``inputs`` (manifests) hand on
    theirs if they agree: a packed data set has the tokenizer of the checkpoint that it was made with.
    """
    found: dict[str, Any] = {}
    inputs = list(inputs)
    for name in ("tokenizer", "chat_template"):
        own = facts.get(f"{name}_fingerprint") or reported.get(f"{name}_fingerprint")
        given = {str(i[name]) for i in inputs if i.get(name)}
        found[name] = str(own or (given.pop() if len(given) == 1 else ""))
    lengths = [source.get(name) for source in (facts, reported) for name in _LENGTHS]
    found["sequence_length"] = next((n for n in lengths if isinstance(n, int) and not isinstance(n, bool)), None)
    return found


def counts(files: int, figures: Mapping[str, Any]) -> dict[str, int]:
    """The ``counts`` of a manifest: files, and what the type counts."""
    whole = {k: v for k, v in figures.items() if isinstance(v, int) and not isinstance(v, bool)}
    return {**whole, "files": files}
