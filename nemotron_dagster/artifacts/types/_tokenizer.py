"""The tokenizer of a checkpoint: does it load, how large is it, and what tells it from another.

``tokenizer_fingerprint`` is the sha256 of tokenizer.json as compact JSON with sorted keys, without ``truncation`` and
``padding`` (which every use changes) and with merges spelled ``a b``; of another file, the sha256 of its bytes.
``chat_template_fingerprint`` is the sha256 of the default template's text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nemotron_dagster.artifacts.types._documents import LIMIT, parse_json, read_json, text_of
from nemotron_dagster.artifacts.types._problems import Problems
from nemotron_dagster.files import printable

#: Without the first two a tokenizer is rebuilt from what is there; the order is that of preference.
FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
    "tekken.json", "tiktoken.model", "qwen.tiktoken", "tokenizer_config.json",
)  # fmt: skip
_MODELS = ("BPE", "WordPiece", "WordLevel", "Unigram")
_FIX = "Save the tokenizer again."


@dataclass(frozen=True)
class Tokenizer:
    """``size`` counts the ids that text can give, ``largest`` is the largest of those, None where it is not known."""

    file: str
    fingerprint: str
    size: int | None = None
    largest: int | None = None
    largest_added: int | None = None


def read_tokenizer(folder: Path, problems: Problems) -> Tokenizer | None:
    """The tokenizer beside a model; None where there is none or a damaged one, which is then among ``problems``."""
    name = next((n for n in FILES if (folder / n).is_file()), None)
    if name is None:
        problems.add(f"{folder}: has no tokenizer ({', '.join(FILES[:2])} …). Save it beside the model.")
        return None
    if (folder / "tokenizer_config.json").is_file():
        read_json(folder / "tokenizer_config.json", problems, _FIX)
    file = folder / name
    if name == "tokenizer.json":
        return _fast(file, problems)
    if name.endswith(".model") and name != "tiktoken.model":
        return _sentencepiece(file, problems)
    if name == "vocab.json":
        return _byte_level(file, problems)
    return _bytes(file, problems)


def read_template(folder: Path, problems: Problems) -> str | None:
    """The default chat template, where there is one."""
    if (folder / "chat_template.jinja").is_file():
        return text_of(folder / "chat_template.jinja", problems, _FIX) or None
    found: Any = None
    for name in ("tokenizer_config.json", "chat_template.json"):
        if found is None and (folder / name).is_file():
            # of the tokenizer's own files `read_tokenizer` has told what is wrong
            data = read_json(folder / name, Problems() if name == "tokenizer_config.json" else problems, _FIX)
            found = (data or {}).get("chat_template")
    if isinstance(found, list):  # [{"name": .., "template": ..}]
        named = [t for t in found if isinstance(t, dict)]
        default = [t for t in named if t.get("name") == "default"]
        found = next((t.get("template") for t in (*default, *named)), None)
    if found is not None and not isinstance(found, str):
        problems.add(f"{folder}: the chat template is no text. {_FIX}")
        return None
    return found or None


def fingerprint(text: str | None) -> str | None:
    """sha256 of a chat template, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() if text else None


def _fast(file: Path, problems: Problems) -> Tokenizer | None:
    text = text_of(file, problems, _FIX)
    data = None if text is None else parse_json(text, file, problems, _FIX)
    if text is None or data is None:
        return None
    before = problems.count
    model = data.get("model")
    if not isinstance(model, dict):
        problems.add(f"{file}: has no `model`, so it is no tokenizer. {_FIX}")
        return None
    if model.get("type") not in (None, *_MODELS):
        problems.add(f"{file}: model.type is {printable(model['type'], 40)!r}, not one of {', '.join(_MODELS)}. {_FIX}")
    ids = _ids(file, model.get("vocab"), problems)
    added = _added(file, data.get("added_tokens"), problems)
    if problems.count == before:
        _load(file, text, problems)
    if problems.count > before:
        return None
    merges = model.get("merges")
    if isinstance(merges, list):  # newer versions write pairs
        model["merges"] = [" ".join(map(str, m)) if isinstance(m, list) else m for m in merges]
    kept = {k: v for k, v in data.items() if k not in ("truncation", "padding")}
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()
    return Tokenizer(
        file.name,
        hashlib.sha256(canonical).hexdigest(),
        len(ids | added),
        max(ids, default=None),
        max(added, default=None),
    )


def _ids(file: Path, vocab: Any, problems: Problems) -> set[int]:
    if isinstance(vocab, list):  # Unigram: pairs of piece and score, numbered by position
        if all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in vocab):
            return set(range(len(vocab)))
    elif isinstance(vocab, dict) and all(type(i) is int and 0 <= i < 2**32 for i in vocab.values()):
        return set(vocab.values())
    problems.add(f"{file}: model.vocab does not map tokens to ids. {_FIX}")
    return set()


def _added(file: Path, added: Any, problems: Problems) -> set[int]:
    tokens = [] if added is None else added
    if isinstance(tokens, list) and all(
        isinstance(t, dict) and type(t.get("id")) is int and 0 <= t["id"] < 2**32 and isinstance(t.get("content"), str)
        for t in tokens
    ):
        return {t["id"] for t in tokens}
    problems.add(f"{file}: added_tokens are not objects with id and content. {_FIX}")
    return set()


def _load(file: Path, text: str, problems: Problems) -> None:
    """Load it for real where the library is there; it is not among ours."""
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        return
    try:
        library.Tokenizer.from_str(text)
    except BaseException as e:  # a panic of its Rust code is no Exception
        if isinstance(e, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        problems.add(f"{file}: does not load ({printable(e, 200)}). {_FIX}")


def _sentencepiece(file: Path, problems: Problems) -> Tokenizer | None:
    data = _raw(file, problems)
    if data is None:
        return None
    pieces = _ranks(data)
    if pieces is None:
        pieces = _pieces(data)
    if not pieces:
        problems.add(f"{file}: is no SentencePiece model, or was cut off. {_FIX}")
        return None
    return Tokenizer(file.name, hashlib.sha256(data).hexdigest(), pieces, pieces - 1)


def _ranks(data: bytes) -> int | None:
    """How many lines ``base64 rank`` there are, as tiktoken writes them; None where it is another format."""
    lines = data.splitlines()
    try:
        for line in islice(lines, 20):
            token, rank = line.split(b" ")
            base64.b64decode(token, validate=True)
            int(rank)
    except (ValueError, binascii.Error):
        return None
    return len(lines) or None


def _pieces(data: bytes) -> int:
    """How many pieces the protocol buffer holds (its field 1); 0 where its fields do not end with the file."""
    at, pieces = 0, 0
    while at < len(data):
        key, at = _varint(data, at)
        kind, field = key & 7, key >> 3
        if at < 0 or field == 0:
            return 0
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            at += length if at >= 0 else 0
            pieces += field == 1
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return 0
        if at < 0:
            return 0
    return pieces if at == len(data) else 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at ``at`` and where it ends, which is -1 where it does not."""
    value = 0
    for shift in range(0, 64, 7):
        if at + shift // 7 >= len(data):
            return 0, -1
        byte = data[at + shift // 7]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + shift // 7 + 1
    return 0, -1


def _byte_level(file: Path, problems: Problems) -> Tokenizer | None:
    vocab = read_json(file, problems, _FIX)
    if vocab is None:
        return None
    if not (file.parent / "merges.txt").is_file():
        problems.add(f"{file.parent}: has vocab.json, but neither merges.txt nor tokenizer.json. {_FIX}")
    ids = _ids(file, vocab, problems)
    made = _bytes(file, problems)
    return made and Tokenizer(file.name, made.fingerprint, len(ids), max(ids, default=None))


def _bytes(file: Path, problems: Problems) -> Tokenizer | None:
    data = _raw(file, problems)
    return None if data is None else Tokenizer(file.name, hashlib.sha256(data).hexdigest())


def _raw(file: Path, problems: Problems) -> bytes | None:
    try:
        if file.stat().st_size <= LIMIT:
            return file.read_bytes()
        problems.add(f"{file}: is larger than {LIMIT // 2**20} MiB, which no tokenizer is. {_FIX}")
    except OSError as e:
        problems.add(f"{file}: cannot be read ({e.strerror}). Check its permissions.")
    return None
