"""A tokenizer as its tokenizer.json: found, fingerprinted, and loaded without transformers."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _runtime.data_prep import hub
from _runtime.payload import PayloadError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_UINT16_BELOW = 65_500  # megatron-core's own limit
_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
DTYPES = ("auto", "int32", "uint16")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer on this machine.

    Attributes:
        model: as it was asked for.
        file: its tokenizer.json.
        fingerprint: sha256 of tokenizer.json as compact JSON with sorted keys, without ``truncation`` and ``padding``,
            merges spelled ``a b``: what the artifact types take for the tokenizer's identity.
        vocab_size: the largest id, added tokens included, plus one.
        bos, eos: ids, or None where the tokenizer names none.
        config: tokenizer_config.json, {} where there is none.
        template: the default chat template, or None.
        revision: commit of a Hub snapshot, else ``"local"``.
    """

    model: str
    file: str
    fingerprint: str
    vocab_size: int
    bos: int | None
    eos: int | None
    config: dict[str, Any]
    template: str | None
    revision: str


def find_tokenizer(model: str, revision: str | None = None) -> TokenizerFiles:
    """The tokenizer of a directory (a checkpoint), a tokenizer.json, or a Hub id whose snapshot is cached or fetched.

    Raises:
        PayloadError: there is none, or it is damaged.
    """
    path = Path(model).expanduser()
    local = path.exists() or model.startswith(("/", "./", "../", "~"))
    folder = path if local else hub.model_folder(model, revision, _FILES)
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    if not file.is_file():
        has = f"; it has {', '.join(sorted(p.name for p in folder.iterdir())[:6])}" if folder.is_dir() else ""
        raise _bad(
            f"tokenizer.model: {file}: no such file{has}",
            "Set tokenizer.model to a directory with tokenizer.json; AutoTokenizer(...).save_pretrained writes one.",
        )
    data = _read(file)
    config = _config(file.parent)
    ids = _ids(data)
    return TokenizerFiles(
        model=model,
        file=str(file.absolute()),
        fingerprint=fingerprint(data),
        vocab_size=max(ids.values(), default=-1) + 1,
        bos=ids.get(_content(config.get("bos_token"))),
        eos=ids.get(_content(config.get("eos_token"))),
        config=config,
        template=_template(file.parent, config),
        revision="local" if local else folder.name,
    )


def fingerprint(data: dict[str, Any]) -> str:
    """The fingerprint of a parsed tokenizer.json (see ``TokenizerFiles``)."""
    model = dict(data["model"])
    if isinstance(model.get("merges"), list):  # newer versions write pairs
        model["merges"] = [" ".join(map(str, m)) if isinstance(m, list) else m for m in model["merges"]]
    kept = {**{k: v for k, v in data.items() if k not in ("truncation", "padding")}, "model": model}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_tokenizer(file: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, with neither truncation nor padding.

    Raises:
        PayloadError: the library cannot load it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(file)
    except BaseException as e:  # a panic of its Rust code is no Exception
        if isinstance(e, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise _bad(f"tokenizer.model: {file} does not load ({str(e)[:200]})", "Save the tokenizer again.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def dtype_for(wanted: str, vocab_size: int) -> str:
    """``uint16`` or ``int32``: ``auto`` takes the smaller one that megatron-core would take for the vocabulary.

    Raises:
        PayloadError: uint16 for a vocabulary that it cannot hold, or an unknown name.
    """
    if wanted not in DTYPES:
        raise PayloadError("config_invalid", f"dtype: {wanted!r} is not one of {', '.join(DTYPES)}", "Set dtype=auto.")
    if wanted == "uint16" and vocab_size > 1 << 16:
        message = f"dtype: uint16 cannot hold the tokenizer's {vocab_size} ids"
        raise PayloadError("config_invalid", message, "Set dtype=int32, or dtype=auto.")
    return wanted if wanted != "auto" else "uint16" if vocab_size < _UINT16_BELOW else "int32"


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise _bad(f"tokenizer.model: {file}: {e}", "Save the tokenizer again.") from None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise _bad(f"tokenizer.model: {file}: has no `model`, so it is no tokenizer", "Save the tokenizer again.")
    return data


def _ids(data: dict[str, Any]) -> dict[str | None, int]:
    vocab = data["model"].get("vocab")
    pieces = {p[0]: i for i, p in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab or {})
    return {**pieces, **{t["content"]: t["id"] for t in data.get("added_tokens") or ()}}


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the second one decides
        try:
            data = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as e:
            raise _bad(f"tokenizer.model: {folder / name}: {e}", "Save the tokenizer again.") from None
        found.update({k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else {})
    return found


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8") or None
    found = config.get("chat_template")
    if isinstance(found, list):  # [{"name": .., "template": ..}]
        named = [t for t in found if isinstance(t, dict)]
        default = [t for t in named if t.get("name") == "default"]
        found = next((t.get("template") for t in (*default, *named)), None)
    return found if isinstance(found, str) and found else None


def _bad(message: str, recovery: str) -> PayloadError:
    return PayloadError("tokenizer_mismatch", message, recovery)
