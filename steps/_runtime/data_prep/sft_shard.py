"""Makes one shard of packed chats; runs in worker processes and Ray tasks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from _runtime.data_prep import chat, chat_tokens, packed, packing, rows
from _runtime.data_prep.chat_spans import Pieces
from _runtime.data_prep.chat_template import ChatTemplate
from _runtime.data_prep.shards import Job, Made
from _runtime.data_prep.tokenizers_ import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Reasons that a person chose, rather than damage.
_CHOSEN = ("used_in_filter", "no_trainable_turn")


def pack_shard(job: Job) -> Made:
    """Read, render, tokenize and pack the rows of a shard.

    Returns:
        The Parquet file and a file of hashes, one little-endian uint64 per row that was used, of its rendered text.

    Raises:
        PayloadError, BadRow: as ``rows.read``, and for a row that cannot be used where on_bad_row is ``fail``.
    """
    settings = job.settings
    tokenizer, apart = _tokenizer(settings["tokenizer_file"])
    template = _template(settings)
    fields = chat.RowFields(**settings["fields"])
    stats = dict.fromkeys(("rows", "max_doc_truncated", "over_long", "untrained"), 0)
    parts, hashes = [], []
    for part in job.shard.slices:
        columns = [fields.messages, fields.tools, "conversations", *([fields.used_in] if fields.used_in_filter else [])]
        for batch in rows.read(part, job.rejects, columns):
            rendered = _render(job, batch, part.staged, fields, template, hashes)
            tokens = _tokenize(tokenizer, apart, rendered, settings, stats)
            parts.append(tokens)
            stats["rows"] += len(batch.rows)
            job.tell(len(batch.rows), len(tokens.ids), batch.bytes)
    tokens = chat_tokens.join(parts)
    del parts
    takes = packed.padded(tokens.lengths, settings["multiple"])
    bins = packing.pack(
        takes, settings["pack_size"], settings["algorithm"], settings["packing_seed"], settings["stratify"]
    )
    spread = takes.astype(np.float64)
    varied = float(np.square(spread - spread.mean()).sum()) if len(spread) else 0.0
    stats |= {
        "sequences": len(tokens),
        "packs": len(bins),
        "tokens": len(tokens.ids),
        "padding": int(takes.sum()) - len(tokens.ids),
        "trained_tokens": int(tokens.mask.sum(dtype=np.int64)),
        "length_variance": round(varied),
        "length_variance_within": round(varied * packing.length_mix(takes, bins)),
    }
    if not len(tokens):
        return Made(stats=stats)
    name = f"shard_{job.shard.index:06d}"
    files = {"parquet": f"{name}.parquet", "hashes": f"receipts/{name}.xxh3"}
    packed.write(
        Path(job.temporary(files["parquet"])),
        tokens,
        bins,
        pad_id=settings["pad_id"],
        multiple=settings["multiple"],
        row_group_size=settings["row_group_size"],
    )
    np.array(hashes, "<u8").tofile(job.temporary(files["hashes"]))
    return Made(files, stats)


def _render(
    job: Job,
    batch: rows.Batch,
    read: str | None,
    fields: chat.RowFields,
    template: ChatTemplate,
    hashes: list[int],
) -> list[Pieces]:
    import xxhash

    nulls = batch.file.endswith(".parquet")
    found: list[Pieces] = []
    for row, at in zip(batch.rows, batch.at, strict=True):
        try:
            sequences = chat.sequences(chat.read(chat.without_nulls(row) if nulls else row, fields), template)
        except chat.Rejected as e:
            job.rejects.add(e.reason, batch.file, at, batch.unit, e.message, bad=e.reason not in _CHOSEN, read=read)
            continue
        found += sequences
        text = "".join(text for text, _ in sequences[-1])
        hashes.append(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")))
    return found


def _tokenize(
    tokenizer: Tokenizer, apart: bool, rendered: list[Pieces], settings: Mapping[str, Any], stats: dict[str, int]
) -> chat_tokens.Tokens:
    tokens = chat_tokens.encode(tokenizer, rendered, apart)
    if settings["max_doc_tokens"]:
        tokens, cut = chat_tokens.fit(tokens, settings["max_doc_tokens"], "truncate")
        stats["max_doc_truncated"] += cut
    tokens, over = chat_tokens.fit(tokens, settings["longest"], settings["long_sequences"])
    tokens, untrained = chat_tokens.trained(chat_tokens.shifted(tokens))
    stats["over_long"] += over
    stats["untrained"] += untrained
    return tokens


@lru_cache(maxsize=2)
def _tokenizer(file: str) -> tuple[Tokenizer, bool]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = load_tokenizer(file)
    return tokenizer, chat_tokens.splits_apart(tokenizer)


def _template(settings: Mapping[str, Any]) -> ChatTemplate:
    found = _TEMPLATES.get(settings["template_text"])
    if found is None or found.kwargs != settings["template_kwargs"] or found.today != settings["template_date"]:
        found = ChatTemplate(
            settings["template_name"],
            settings["template_text"],
            settings["special_tokens"],
            settings["template_kwargs"],
            settings["template_date"],
        )
        _TEMPLATES.clear()
        _TEMPLATES[settings["template_text"]] = found
    return found


_TEMPLATES: dict[str, ChatTemplate] = {}  # compiling one takes longer than rendering many rows
