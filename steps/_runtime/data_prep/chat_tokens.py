"""From pieces of text to arrays of tokens and loss masks.

Each piece is tokenized by itself: so no token lies across the border between prompt and answer, and an answer begins
with the very tokens that the model is asked for when it is served. A tokenizer that puts a space before every text
would put one before every piece; with it the whole text is tokenized, and a token belongs to the piece it begins in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from _runtime.data_prep.chat_spans import Pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Array = np.ndarray[Any, Any]

LONG = ("truncate", "drop", "split")


@dataclass(frozen=True)
class Tokens:
    """Sequences one after the other.

    Attributes:
        ids: (tokens,) int32.
        mask: (tokens,) uint8; 1 where the token is the model's own.
        lengths: (sequences,) int64, none 0.
    """

    ids: Array
    mask: Array
    lengths: Array

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> Array:
        """(sequences,) int64: where each begins."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])[:-1]

    def where(self, kept: Array) -> Tokens:
        """The sequences for which ``kept`` (sequences,) is true."""
        each = np.repeat(kept, self.lengths)
        return Tokens(self.ids[each], self.mask[each], self.lengths[kept])


def join(parts: Sequence[Tokens]) -> Tokens:
    """All sequences of all parts, in order."""
    empty = Tokens(np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.int64))
    every = [empty, *parts]
    return Tokens(*(np.concatenate([getattr(p, name) for p in every]) for name in ("ids", "mask", "lengths")))


def splits_apart(tokenizer: Tokenizer) -> bool:
    """May pieces be tokenized by themselves: does the tokenizer leave the beginning of a text as it is?"""
    tokens = tokenizer.encode("a", add_special_tokens=False).tokens
    return bool(tokens) and not tokens[0].startswith(("▁", "Ġ"))


def encode(tokenizer: Tokenizer, sequences: Sequence[Pieces], apart: bool) -> Tokens:
    """Tokenize rendered sequences; no special token is added, as the templates write them all."""
    if apart:
        pieces = list(chain.from_iterable(sequences))
        found = tokenizer.encode_batch_fast([text for text, _ in pieces], add_special_tokens=False)
        counts = np.fromiter(map(len, found), np.int64, len(found))
        mask = np.repeat(np.fromiter((trained for _, trained in pieces), np.uint8, len(pieces)), counts)
        firsts = np.cumsum([0, *map(len, sequences)])[:-1]
        lengths = np.add.reduceat(counts, firsts) if len(firsts) else np.empty(0, np.int64)
    else:
        found = tokenizer.encode_batch(["".join(t for t, _ in s) for s in sequences], add_special_tokens=False)
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        masks = [_mask(e.offsets, pieces) for e, pieces in zip(found, sequences, strict=True)]
        mask = np.concatenate([np.empty(0, np.uint8), *masks])
    ids = np.fromiter(chain.from_iterable(e.ids for e in found), np.int32, len(mask))
    out = Tokens(ids, mask, lengths)
    return out if lengths.all() else out.where(lengths > 0)


def _mask(offsets: list[tuple[int, int]], pieces: Pieces) -> Array:
    """1 for each token that begins within a trained piece."""
    ends = np.cumsum([len(text) for text, _ in pieces])
    begins = np.fromiter((first for first, _ in offsets), np.int64, len(offsets))
    trained = np.array([*(trained for _, trained in pieces), False], np.uint8)
    return np.asarray(trained[np.searchsorted(ends, begins, side="right")])


def fit(tokens: Tokens, limit: int, long: str) -> tuple[Tokens, int]:
    """Deal with sequences of more than ``limit`` tokens; also how many there were.

    Args:
        long: ``truncate`` keeps the first ``limit`` tokens, ``drop`` leaves the sequence out, ``split`` makes several
            sequences of up to ``limit`` tokens of it.
    """
    over = tokens.lengths > limit
    count = int(over.sum())
    if not count:
        return tokens, 0
    if long == "drop":
        return tokens.where(~over), count
    if long == "truncate":
        within = np.arange(len(tokens.ids)) - np.repeat(tokens.starts, tokens.lengths)
        kept = within < limit
        return Tokens(tokens.ids[kept], tokens.mask[kept], np.minimum(tokens.lengths, limit)), count
    parts = -(-tokens.lengths // limit)
    lengths = np.full(int(parts.sum()), limit, np.int64)
    lengths[np.cumsum(parts) - 1] = tokens.lengths - (parts - 1) * limit
    return Tokens(tokens.ids, tokens.mask, lengths), count


def shifted(tokens: Tokens) -> Tokens:
    """The mask says at j whether token j + 1 of the same sequence counts; it is 0 at each sequence's last token."""
    mask = np.zeros_like(tokens.mask)
    mask[:-1] = tokens.mask[1:]
    if len(tokens):
        mask[tokens.starts + tokens.lengths - 1] = 0
    return Tokens(tokens.ids, mask, tokens.lengths)


def trained(tokens: Tokens) -> tuple[Tokens, int]:
    """The sequences that have something to learn, by their shifted mask; also how many have not."""
    if not len(tokens):
        return tokens, 0
    some = np.add.reduceat(tokens.mask, tokens.starts, dtype=np.int64) > 0
    return (tokens if some.all() else tokens.where(some)), int((~some).sum())
