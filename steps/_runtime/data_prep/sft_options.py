"""The configuration of data_prep/sft_packing, checked once and then fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _runtime.data_prep import options, packed, packing
from _runtime.data_prep.chat import RowFields
from _runtime.data_prep.chat_tokens import LONG
from _runtime.data_prep.rejects import POLICIES

KEYS = (
    "blend_path", "output_dir", "num_shards", "tokenizer", "pack_size", "algorithm", "seed", "stratify",
    "pad_seq_to_multiple", "long_sequences", "chat_template", "chat_template_kwargs", "template_date", "messages_field",
    "tools_field", "used_in_filter", "used_in_field", "max_doc_tokens", "max_rows", "train_ratio", "valid_ratio",
    "test_ratio", "valid_shards", "test_shards", "sample", "sample_seed", "on_bad_row", "parquet_row_group_size",
    "force", "reuse", "launch", "workers", "ray_address", "config_name",
    "plan", "download", "tokenization", "observability",
)  # fmt: skip


@dataclass(frozen=True)
class SftOptions:
    """As the step's README lists them; ``seed`` is that of packing, ``sample_seed`` all others."""

    blend_path: str
    output_dir: Path
    num_shards: int
    tokenizer: str
    revision: str | None
    chat_template: str
    chat_template_kwargs: Mapping[str, Any]
    template_date: str | None
    pack_size: int
    algorithm: str
    seed: int
    stratify: bool
    multiple: int
    long_sequences: str
    fields: RowFields
    max_doc_tokens: int | None
    max_rows: int | None
    ratios: tuple[float, float, float]
    valid_shards: int | None
    test_shards: int | None
    sample: str | int | None
    sample_seed: int
    on_bad_row: str
    row_group_size: int
    force: bool
    reuse: Path | None
    workers: Mapping[str, Any]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that a pack holds."""
        return packed.longest(self.pack_size, self.multiple)


def read_options(cfg: Mapping[str, Any]) -> SftOptions:
    """Check the configuration.

    Raises:
        PayloadError: naming the key, its value and the fix.
    """
    options.check_keys(cfg, KEYS)
    blend_path = options.text(cfg, "blend_path")
    if blend_path.startswith("/path/to/"):
        raise options.bad(f"blend_path is still {blend_path}", "Set it to a blend, a file, a directory or a glob.")
    model, revision = _tokenizer(cfg.get("tokenizer"))
    pack_size = options.whole(cfg, "pack_size", 4096, 2)
    multiple = options.whole(cfg, "pad_seq_to_multiple", 1, 1)
    if multiple >= pack_size:
        raise options.bad(
            f"pad_seq_to_multiple: {multiple} leaves no room in a pack_size of {pack_size}",
            "It is a small number: twice the trainer's context parallel size.",
        )
    stratify = options.flag(cfg, "stratify", False)
    algorithm = options.choice(cfg, "algorithm", "first_fit_shuffle", packing.ALGORITHMS)
    if stratify and algorithm != "best_fit_decreasing":
        raise options.bad(f"stratify goes with algorithm best_fit_decreasing, not {algorithm}", "Set stratify=false.")
    sample_seed = options.whole(cfg, "sample_seed", 42)
    reuse = cfg.get("reuse")
    used_in = cfg.get("used_in_filter")
    return SftOptions(
        blend_path=blend_path,
        output_dir=Path(options.text(cfg, "output_dir")).expanduser(),
        num_shards=options.whole(cfg, "num_shards", 128, 1),
        tokenizer=model,
        revision=revision,
        chat_template=options.text(cfg, "chat_template", "nano3"),
        chat_template_kwargs=options.section(cfg, "chat_template_kwargs"),
        template_date=_day(cfg.get("template_date")),
        pack_size=pack_size,
        algorithm=algorithm,
        seed=options.whole(cfg, "seed", sample_seed),
        stratify=stratify,
        multiple=multiple,
        long_sequences=options.choice(cfg, "long_sequences", "truncate", LONG),
        fields=RowFields(
            options.text(cfg, "messages_field", "messages"),
            options.text(cfg, "tools_field", "tools"),
            options.text(cfg, "used_in_field", "used_in"),
            None if used_in is None else options.text(cfg, "used_in_filter"),
        ),
        max_doc_tokens=options.whole_or_none(cfg, "max_doc_tokens"),
        max_rows=options.whole_or_none(cfg, "max_rows"),
        ratios=(
            options.number(cfg, "train_ratio", 0.98, 0, 1),
            options.number(cfg, "valid_ratio", 0.01, 0, 1),
            options.number(cfg, "test_ratio", 0.01, 0, 1),
        ),
        valid_shards=options.whole_or_none(cfg, "valid_shards", 0),
        test_shards=options.whole_or_none(cfg, "test_shards", 0),
        sample=cfg.get("sample"),
        sample_seed=sample_seed,
        on_bad_row=options.choice(cfg, "on_bad_row", "skip", POLICIES),
        row_group_size=options.whole(cfg, "parquet_row_group_size", 1000, 1),
        force=options.flag(cfg, "force", False),
        reuse=None if reuse is None else Path(options.text(cfg, "reuse")).expanduser(),
        workers={
            "launch": options.choice(cfg, "launch", "auto", ("auto", "processes", "ray")),
            "workers": options.whole_or_none(cfg, "workers"),
            "ray_address": cfg.get("ray_address"),
        },
    )


def _tokenizer(given: Any) -> tuple[str, str | None]:
    """Model and revision; the section may be the model's name alone."""
    if isinstance(given, Mapping):
        known = ("model", "revision", "add_bos", "add_eos", "trust_remote_code", "type")
        options.check_keys(given, known, "tokenizer.")
        revision = given.get("revision")
        return options.text(given, "model", where="tokenizer."), None if revision is None else str(revision)
    return options.text({"tokenizer": given}, "tokenizer"), None


def _day(given: Any) -> str | None:
    from datetime import date

    if given is None:
        return None
    try:
        return date.fromisoformat(str(given)).isoformat()
    except ValueError:
        raise options.bad(f"template_date: {given!r} is no date", "Write YYYY-MM-DD, or null for today.") from None
