"""The configuration of ``data_prep/pretrain_prep``, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _runtime.data_prep import options
from _runtime.data_prep.options import bad
from _runtime.data_prep.rejects import POLICIES
from _runtime.data_prep.tokenizers_ import DTYPES

LONG_DOCUMENTS = ("truncate", "split", "drop")
LAUNCHES = ("auto", "processes", "ray")
#: What the reference's own pipeline reads from these has no counterpart here; old configs may keep them.
IGNORED = ("plan", "download", "tokenization", "observability", "config_name", "execution_mode")
KEYS = (
    *("blend_path", "output_dir", "num_shards", "valid_shards", "test_shards", "split_seed", "tokenizer", "dtype"),
    *("text_field", "min_doc_chars", "max_doc_tokens", "long_documents", "max_rows", "sample", "sample_seed", "force"),
    *("on_bad_row", "reuse", "launch", "workers", "ray_address", *IGNORED),
)
TOKENIZER_KEYS = ("model", "revision", "add_bos", "add_eos", "type", "trust_remote_code")


@dataclass(frozen=True, kw_only=True)
class Options:
    """See ``step.toml`` for what each key means."""

    blend_path: str
    output_dir: Path
    tokenizer: str
    tokenizer_revision: str | None = None
    add_bos: bool = False
    add_eos: bool = True
    num_shards: int = 128
    valid_shards: int = 1
    test_shards: int = 1
    split_seed: int = 42
    dtype: str = "int32"
    text_field: str = "text"
    min_doc_chars: int | None = None
    max_doc_tokens: int | None = None
    long_documents: str = "truncate"
    on_bad_row: str = "skip"
    max_rows: int | None = None
    sample: str | int | None = None
    sample_seed: int = 42
    force: bool = False
    reuse: Path | None = None
    workers: Mapping[str, Any] = field(default_factory=dict)


def read_options(cfg: Mapping[str, Any]) -> Options:
    """Turn the loaded YAML into ``Options``.

    Raises:
        PayloadError: an unknown key, a missing one, or a value of the wrong kind, by its name.
    """
    options.check_keys(cfg, KEYS)
    tokenizer = options.section(cfg, "tokenizer")
    options.check_keys(tokenizer, TOKENIZER_KEYS, "tokenizer.")
    if tokenizer.get("type") not in (None, "huggingface"):
        raise bad(
            f"tokenizer.type: {tokenizer['type']!r} is not 'huggingface'", "Save the tokenizer as tokenizer.json."
        )
    if tokenizer.get("trust_remote_code"):
        raise bad("tokenizer.trust_remote_code: no code of a tokenizer is ever run", "Use one with tokenizer.json.")
    sample = cfg.get("sample")
    if sample is not None and (isinstance(sample, bool) or not isinstance(sample, str | int)):
        raise bad(f"sample: {sample!r} is neither a percentage such as '10%' nor a number of shards")
    revision = tokenizer.get("revision")
    return Options(
        blend_path=options.text(cfg, "blend_path"),
        output_dir=Path(options.text(cfg, "output_dir")).expanduser(),
        tokenizer=options.text(tokenizer, "model", where="tokenizer."),
        tokenizer_revision=None if revision is None else str(revision),
        add_bos=options.flag(tokenizer, "add_bos", False, "tokenizer."),
        add_eos=options.flag(tokenizer, "add_eos", True, "tokenizer."),
        num_shards=options.whole(cfg, "num_shards", 128, 1),
        valid_shards=options.whole(cfg, "valid_shards", 1),
        test_shards=options.whole(cfg, "test_shards", 1),
        split_seed=options.whole(cfg, "split_seed", int(cfg.get("sample_seed") or 42)),
        dtype=options.choice(cfg, "dtype", "int32", DTYPES),
        text_field=options.text(cfg, "text_field", "text"),
        min_doc_chars=options.whole_or_none(cfg, "min_doc_chars"),
        max_doc_tokens=options.whole_or_none(cfg, "max_doc_tokens"),
        long_documents=options.choice(cfg, "long_documents", "truncate", LONG_DOCUMENTS),
        on_bad_row=options.choice(cfg, "on_bad_row", "skip", POLICIES),
        max_rows=options.whole_or_none(cfg, "max_rows"),
        sample=sample,
        sample_seed=options.whole(cfg, "sample_seed", 42),
        force=options.flag(cfg, "force", False),
        reuse=None if cfg.get("reuse") is None else Path(options.text(cfg, "reuse")).expanduser(),
        workers={
            "launch": options.choice(cfg, "launch", "auto", LAUNCHES),
            "workers": options.whole_or_none(cfg, "workers"),
            "ray_address": cfg.get("ray_address"),
        },
    )
