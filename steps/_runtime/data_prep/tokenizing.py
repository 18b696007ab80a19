"""Make one shard of token documents from the text of its rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from _runtime.data_prep import binidx, rows
from _runtime.data_prep.shards import Job, Made
from _runtime.data_prep.tokenizers_ import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_AT_ONCE = 32 << 10  # bytes per thread: what the library makes of a text is many times as large, and best kept in cache


@lru_cache(maxsize=1)
def _tokenizer(file: str) -> Tokenizer:
    return load_tokenizer(file)


def tokenize_shard(job: Job) -> Made:
    """Write ``.bin`` and ``.idx``, and the xxh3-64 of every text, by which splits are compared.

    Settings: ``tokenizer_file``, ``text_field``, ``dtype``, ``bos``, ``eos`` (ids or None), ``min_doc_chars``,
    ``max_doc_tokens``, ``long_documents``. What ``max_doc_tokens`` counts includes the two ids, as in the reference: a
    document that is cut has no end token, and of one that is split only the last piece has.

    Raises:
        PayloadError: a file that cannot be read, or a bad row where they are not skipped.
    """
    stem = f"shard_{job.shard.index:06d}"
    names = {"bin": f"{stem}.bin", "idx": f"{stem}.idx", "hashes": f"receipts/{stem}.xxh3"}
    stats: Counter[str] = Counter(rows=0, documents=0, tokens=0, truncated=0, split=0)
    paths = {kind: job.temporary(name) for kind, name in names.items()}
    with binidx.Writer(paths["bin"], paths["idx"], job.settings["dtype"]) as out, open(paths["hashes"], "wb") as hashes:
        for part in job.shard.slices:
            for batch in rows.read(part, job.rejects, [job.settings["text_field"]]):
                before = out.tokens
                used = _batch(batch, job, out, hashes, stats)
                job.tell(used, out.tokens - before, batch.bytes)
        out.finish()
    stats["documents"], stats["tokens"] = out.documents, out.tokens
    if not out.tokens:
        for path in paths.values():
            os.unlink(path)
        return Made({}, stats)
    return Made(names, stats)


def _batch(batch: rows.Batch, job: Job, out: binidx.Writer, hashes: Any, stats: Counter[str]) -> int:
    """Tokenize a batch; returns how many rows were used."""
    tokenizer = _tokenizer(job.settings["tokenizer_file"])
    digests: list[int] = []
    for numbers, texts, found in _parts(batch, job):
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        documents: list[Any] = []
        for number, digest, encoding in zip(numbers, found, encodings, strict=True):
            pieces = _documents(encoding.ids, job.settings, out.dtype, stats)
            if pieces:
                documents += pieces
                digests.append(digest)
            else:
                reason = "over_max_doc_tokens" if len(encoding) else "no_tokens"
                batch.reject(job.rejects, number, reason, bad=False)
        out.add(documents)
    hashes.write(np.array(digests, "<u8").tobytes())
    stats["rows"] += len(digests)
    return len(digests)


def _documents(ids: list[int], settings: Any, dtype: Any, stats: Counter[str]) -> list[Any]:
    """The documents that one text becomes: one, several where it is split, none where it is dropped or empty."""
    if not ids:
        return []
    bos, eos, most = settings["bos"], settings["eos"], settings["max_doc_tokens"]
    if bos is not None:
        ids.insert(0, bos)
    if eos is not None:
        ids.append(eos)
    tokens = np.array(ids, dtype)
    if most is None or len(tokens) <= most:
        return [tokens]
    if settings["long_documents"] == "drop":
        return []
    if settings["long_documents"] == "split":
        stats["split"] += 1
        return [tokens[i : i + most] for i in range(0, len(tokens), most)]
    stats["truncated"] += 1
    return [tokens[:most]]


def _parts(batch: rows.Batch, job: Job) -> Iterator[tuple[list[int], list[str], list[int]]]:
    """Places in the batch, texts and hashes, as many at a time as are encoded at once."""
    from xxhash import xxh3_64_intdigest

    field, least = job.settings["text_field"], job.settings["min_doc_chars"] or 1
    most = _AT_ONCE * int(os.environ.get("RAYON_NUM_THREADS") or 1)
    numbers: list[int] = []
    texts: list[str] = []
    digests: list[int] = []
    size = 0
    for number, row in enumerate(batch.rows):
        text = row.get(field)
        if not isinstance(text, str):
            reason, note = _wrong(row, field)
            batch.reject(job.rejects, number, reason, note)
            continue
        if len(text) < least:
            batch.reject(job.rejects, number, "under_min_doc_chars" if text else "empty_text", bad=False)
            continue
        try:
            data = text.encode()
        except UnicodeEncodeError:
            batch.reject(job.rejects, number, "not_utf8", "half of a surrogate pair")
            continue
        numbers.append(number)
        texts.append(text)
        digests.append(xxh3_64_intdigest(data))
        size += len(data)
        if size >= most:
            yield numbers, texts, digests
            numbers, texts, digests, size = [], [], [], 0
    if texts:
        yield numbers, texts, digests


def _wrong(row: dict[str, Any], field: str) -> tuple[str, str]:
    if row.get(field) is None:
        return "missing_field", f"no {field!r}; it has {', '.join(row)[:100] or 'nothing'}"
    return "field_not_text", f"{field!r} is a {type(row[field]).__name__}"
