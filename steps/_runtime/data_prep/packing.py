"""Places sequences into bins of a fixed number of tokens.

Everything is arrays: nothing is kept per sequence but two integers, so ten million sequences cost time, not memory.
``first_fit_shuffle``, ``first_fit_decreasing`` and ``concatenative`` give the bins that Nemotron's own scan over all
open bins gives, found through a tree; ``best_fit_decreasing`` leaves the least space empty.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ALGORITHMS = ("first_fit_shuffle", "first_fit_decreasing", "best_fit_decreasing", "concatenative")
_CHUNK = 1 << 16  # so many Python numbers live at a time


@dataclass(frozen=True)
class Bins:
    """Which sequences share a bin.

    Attributes:
        order: (sequences,) int64, numbers of the sequences, one bin after the other.
        offsets: (bins + 1,) int64, where each bin begins in ``order``.
    """

    order: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1


def pack(lengths: Array, capacity: int, algorithm: str, seed: int = 0, stratify: bool = False) -> Bins:
    """Place every sequence into exactly one bin of ``capacity`` tokens; the same arguments always give the same bins.

    Args:
        lengths: (sequences,) integers, in tokens. One above ``capacity`` counts as ``capacity``: it will be cut.
        algorithm: one of ``ALGORITHMS``.
        seed: of what the algorithm shuffles; ``first_fit_decreasing`` and ``concatenative`` shuffle nothing.
        stratify: ``best_fit_decreasing`` only: mix long and short sequences in every bin, at the cost of some fill.

    Raises:
        ValueError: an unknown algorithm, a capacity below 1, a length below 1.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm is {algorithm!r}, not one of {', '.join(ALGORITHMS)}")
    if capacity < 1:
        raise ValueError(f"the capacity of a bin is {capacity}; it must be at least 1")
    sizes = np.minimum(np.asarray(lengths, np.int64), capacity)
    if sizes.size and sizes.min() < 1:
        raise ValueError(f"sequence {int(sizes.argmin())} has {int(sizes.min())} tokens; leave it out")
    if not sizes.size:
        return Bins(np.empty(0, np.int64), np.zeros(1, np.int64))
    if algorithm == "concatenative":
        return _bins(np.arange(len(sizes)), _in_a_row(sizes, capacity))
    if algorithm == "first_fit_shuffle":
        order = _shuffled(len(sizes), seed)
        return _bins(order, _first_fit(sizes[order], capacity))
    if algorithm == "first_fit_decreasing":
        order = _longest_first(np.asarray(lengths, np.int64))  # Nemotron sorts before it cuts
        return _bins(order, _first_fit(sizes[order], capacity))
    keys = _keys(len(sizes), seed)
    mixed = np.argsort(keys, kind="stable")  # which of equal lengths goes where is chance
    order = mixed[_longest_first(sizes[mixed])]
    if stratify:
        order, bin_of = _mixed_best_fit(sizes, order, mixed, capacity)
    else:
        bin_of = _best_fit(sizes[order], capacity)
    place = np.empty(int(bin_of.max()) + 1, np.int64)
    place[np.argsort(_keys(len(place), seed + 1), kind="stable")] = np.arange(len(place))
    return _bins(order, place[bin_of])


def length_mix(lengths: Array, bins: Bins) -> float:
    """Share of the variance of lengths that lies within bins: near 1 where bins mix, 0 where each holds one length."""
    values = np.asarray(lengths, np.float64)[bins.order]
    total = float(np.square(values - values.mean()).sum()) if values.size else 0.0
    if not total:
        return 1.0
    counts = np.diff(bins.offsets)
    means = np.add.reduceat(values, bins.offsets[:-1]) / counts
    return float(np.square(values - np.repeat(means, counts)).sum()) / total


def _bins(order: Array, bin_of: Array) -> Bins:
    """Gather what ``bin_of`` says of the sequences as ``order`` lists them; a bin keeps that order."""
    counts = np.bincount(bin_of)
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return Bins(order[np.argsort(bin_of, kind="stable")].astype(np.int64), offsets)


def _shuffled(n: int, seed: int) -> Array:
    """The order that ``random.Random(seed).shuffle`` gives a list of ``n``, as Nemotron shuffles."""
    order = array("q", range(n))
    random.Random(seed).shuffle(order)
    return np.frombuffer(order, np.int64)


def _longest_first(sizes: Array) -> Array:
    narrow = sizes.max() < 1 << 16  # numpy sorts 16 bits by radix, in linear time
    largest = sizes.max() - sizes
    return np.argsort(largest.astype(np.uint16) if narrow else largest, kind="stable")


def _keys(n: int, seed: int) -> Array:
    """(n,) uint64 as splitmix64 gives them: the same with every version of every library."""
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) + np.uint64((seed * 0x632BE59BD9B4E019) % (1 << 64))
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def _in_a_row(sizes: Array, capacity: int) -> Array:
    """Fill one bin after the other, in the order given."""
    ends = np.cumsum(sizes)
    bin_of = np.empty(len(sizes), np.int64)
    first, number = 0, 0
    while first < len(sizes):
        before = int(ends[first] - sizes[first])
        last = int(np.searchsorted(ends, before + capacity, side="right"))
        bin_of[first:last] = number
        first, number = last, number + 1
    return bin_of


def _first_fit(sizes: Array, capacity: int) -> Array:
    """Each into the bin of the lowest number that has room.

    ``tree[1]`` is the most room that any bin has, ``tree[2k]`` and ``tree[2k + 1]`` that of each half below ``k``; the
    leaves are the bins, those not yet opened too, so one way down finds the bin.
    """
    bin_of = np.empty(len(sizes), np.int64)
    leaves = 1024
    tree = [capacity] * (2 * leaves)
    for at in range(0, len(sizes), _CHUNK):
        found = []
        for size in sizes[at : at + _CHUNK].tolist():
            if tree[1] < size:
                tree = _twice(tree, leaves, capacity)
                leaves *= 2
            k = 1
            while k < leaves:
                k += k
                if tree[k] < size:
                    k += 1
            found.append(k - leaves)
            room = tree[k] - size
            tree[k] = room
            while k > 1:
                other = tree[k ^ 1]
                k >>= 1
                if other > room:  # noqa: PLR1730 - half the time of max()
                    room = other
                if tree[k] == room:
                    break
                tree[k] = room
        bin_of[at : at + len(found)] = found
    return bin_of


def _twice(tree: list[int], leaves: int, capacity: int) -> list[int]:
    """The tree over twice as many bins."""
    row = tree[leaves:] + [capacity] * leaves
    rows = [row]
    while len(row) > 1:
        row = list(map(max, row[::2], row[1::2]))
        rows.append(row)
    return [capacity, *(room for row in reversed(rows) for room in row)]


def _best_fit(sizes: Array, capacity: int) -> Array:
    """Each into the bin that it leaves the least room in; ``sizes`` descend.

    Equal lengths and bins with equal room are interchangeable, so a whole run is placed at once: the cost grows with
    the different lengths and rooms, not with the sequences. ``open_`` maps a room to the bins that have it, and a bit
    of ``rooms`` says that there are some.
    """
    bin_of = np.empty(len(sizes), np.int64)
    open_: dict[int, list[Array]] = {}
    rooms = 0
    opened = 0
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(sizes)) + 1, [len(sizes)]])
    for first, last in zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True):
        size = int(sizes[first])
        while first < last:
            fitting = rooms >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                some = open_[room].pop()
            else:  # a new bin takes as many of them as go in
                room = capacity
                needed = -(-(last - first) // (room // size))
                some = np.arange(opened, opened + needed)
                opened += needed
                open_[room] = []
            each = room // size
            whole = min(len(some), (last - first) // each)
            bin_of[first : first + whole * each] = np.repeat(some[:whole], each)
            first += whole * each
            rooms |= _put(open_, room - each * size, some[:whole])
            rest = last - first if whole < len(some) else 0
            if rest:
                bin_of[first:last] = some[whole]
                first = last
                rooms |= _put(open_, room - rest * size, some[whole : whole + 1])
                whole += 1
            rooms |= _put(open_, room, some[whole:])
            if not open_[room]:
                del open_[room]
                rooms &= ~(1 << room)
    return bin_of


def _put(open_: dict[int, list[Array]], room: int, bins: Array) -> int:
    """Remember bins with room; the bit to set."""
    if not room or not len(bins):
        return 0
    open_.setdefault(room, []).append(bins)
    return 1 << room


def _mixed_best_fit(sizes: Array, descending: Array, mixed: Array, capacity: int) -> tuple[Array, Array]:
    """Best fit of all but the shortest quarter in chance order, then of that quarter, longest first, into the gaps."""
    short = np.zeros(len(sizes), bool)
    short[descending[3 * len(sizes) // 4 :]] = True
    order = np.concatenate([mixed[~short[mixed]], descending[3 * len(sizes) // 4 :]])
    bin_of = np.empty(len(sizes), np.int64)
    open_: dict[int, list[int]] = {}
    rooms, opened = 0, 0
    for at in range(0, len(order), _CHUNK):
        found = []
        for size in sizes[order[at : at + _CHUNK]].tolist():
            fitting = rooms >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                some = open_[room]
                number = some.pop()
                if not some:
                    rooms ^= 1 << room
            else:
                room, number, opened = capacity, opened, opened + 1
            room -= size
            if room:
                open_.setdefault(room, []).append(number)
                rooms |= 1 << room
            found.append(number)
        bin_of[at : at + len(found)] = found
    return order, bin_of
