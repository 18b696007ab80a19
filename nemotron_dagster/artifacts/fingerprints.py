"""What must agree between artifacts although their types do not say it: tokenizer, chat template, sequence length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_OTHER_TOKENIZERS = ("tokenizer.model", "spiece.model", "tekken.json")
_WORDS_AND_MERGES = ("vocab.json", "merges.txt", "vocab.txt")
_LENGTHS = ("sequence_length", "seq_length", "pack_size")


def tokenizer(directory: Path) -> str:
    """Fingerprint of the tokenizer whose files lie in ``directory``, or empty.

    How it last cut and padded, which saving it writes down too, is left out: the tokens are the same.
    """
    data = _json(directory / "tokenizer.json")
    if data:
        kept = {k: v for k, v in data.items() if k not in ("truncation", "padding")}
        return _sha256(json.dumps(kept, sort_keys=True).encode())
    for name in _OTHER_TOKENIZERS:
        if (directory / name).is_file():
            return _sha256((directory / name).read_bytes())
    found = [(directory / n).read_bytes() for n in _WORDS_AND_MERGES if (directory / n).is_file()]
    return _sha256(b"\0".join(found)) if found else ""


def chat_template(directory: Path) -> str:
    """Fingerprint of the chat template in ``directory``, or empty; the same whichever file holds it."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return _sha256(file.read_bytes().strip())
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _json(directory / name).get("chat_template")
        if isinstance(template, list):
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default", json.dumps(named, sort_keys=True, default=str))
        if isinstance(template, str) and template.strip():
            return _sha256(template.strip().encode())
    return ""


def of(
    path: Path, facts: Mapping[str, Any], reported: Mapping[str, Any], inputs: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """``tokenizer``, ``chat_template`` and ``sequence_length`` of an artifact, as its manifest holds them.

    What the payload reported counts before what the files say; where neither does, ``inputs`` hand on theirs if they
    agree (of a packed data set, those of the checkpoint whose tokenizer made it).
    """
    directory = path if path.is_dir() else path.parent
    found: dict[str, Any] = {}
    for name, read in (("tokenizer", tokenizer), ("chat_template", chat_template)):
        own = str(reported.get(f"{name}_fingerprint") or read(directory))
        given = {str(i[name]) for i in inputs if i.get(name)}
        found[name] = own or (given.pop() if len(given) == 1 else "")
    lengths = [source.get(name) for source in (reported, facts) for name in _LENGTHS]
    found["sequence_length"] = next((n for n in lengths if isinstance(n, int) and not isinstance(n, bool)), None)
    return found


def counts(files: int, figures: Mapping[str, Any]) -> dict[str, int]:
    """The ``counts`` of a manifest: files, and what the type counts."""
    whole = {k: v for k, v in figures.items() if isinstance(v, int) and not isinstance(v, bool)}
    return {**whole, "files": files}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
