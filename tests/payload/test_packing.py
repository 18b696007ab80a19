"""Placing sequences into bins: against the obvious scan, and what must hold for every input."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreters import STEPS

sys.path.insert(0, str(STEPS))

from _runtime.data_prep.packing import ALGORITHMS, Bins, length_mix, pack

LENGTHS = st.lists(st.integers(1, 60), max_size=150)
CAPACITY = st.integers(1, 64)


def rows(bins: Bins) -> list[list[int]]:
    return [bins.order[a:b].tolist() for a, b in zip(bins.offsets[:-1], bins.offsets[1:], strict=True)]


def lognormal(n: int) -> np.ndarray:
    return np.clip(np.random.default_rng(0).lognormal(np.log(490), 0.9, n).astype(np.int64), 8, 4096)


def scan(lengths: list[int], order: list[int], capacity: int) -> list[list[int]]:
    """First fit as anybody would write it: look at every bin from the first one on."""
    bins: list[list[int]] = []
    left: list[int] = []
    for i in order:
        size = min(lengths[i], capacity)
        for b, room in enumerate(left):
            if room >= size:
                bins[b].append(i)
                left[b] -= size
                break
        else:
            bins.append([i])
            left.append(capacity - size)
    return bins


def shuffled(lengths: list[int], seed: int) -> list[int]:
    """The reference shuffles pairs of length and number."""
    pairs = [(size, i) for i, size in enumerate(lengths)]
    random.Random(seed).shuffle(pairs)
    return [i for _, i in pairs]


def one_after_the_other(lengths: list[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = [[]]
    used = 0
    for i, size in enumerate(min(x, capacity) for x in lengths):
        if used + size > capacity:
            bins.append([])
            used = 0
        bins[-1].append(i)
        used += size
    return [b for b in bins if b]


def tightest(lengths: list[int], capacity: int) -> list[int]:
    """The room that best-fit decreasing leaves in each bin, ascending; which of equal bins is taken changes nothing."""
    left: list[int] = []
    for size in sorted((min(x, capacity) for x in lengths), reverse=True):
        fitting = [b for b, room in enumerate(left) if room >= size]
        if fitting:
            left[min(fitting, key=lambda b: left[b])] -= size
        else:
            left.append(capacity - size)
    return sorted(left)


@settings(deadline=None)
@given(LENGTHS, CAPACITY, st.integers(0, 2**40))
def test_first_fit_shuffle_is_the_scan_of_all_bins_in_the_order_of_random_shuffle(
    lengths: list[int], capacity: int, seed: int
) -> None:
    found = pack(np.array(lengths, np.int64), capacity, "first_fit_shuffle", seed)
    assert rows(found) == scan(lengths, shuffled(lengths, seed), capacity)


@settings(deadline=None)
@given(LENGTHS, CAPACITY)
def test_first_fit_decreasing_is_the_scan_of_all_bins_with_equal_lengths_in_their_order(
    lengths: list[int], capacity: int
) -> None:
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    clamped = sorted(range(len(lengths)), key=lambda i: min(lengths[i], capacity), reverse=True)
    expected = scan(lengths, clamped, capacity)
    if max(lengths, default=0) <= capacity:
        assert order == clamped
    assert rows(pack(np.array(lengths, np.int64), capacity, "first_fit_decreasing")) == expected


@settings(deadline=None)
@given(LENGTHS, CAPACITY)
def test_concatenative_fills_one_bin_after_the_other(lengths: list[int], capacity: int) -> None:
    assert rows(pack(np.array(lengths, np.int64), capacity, "concatenative")) == one_after_the_other(lengths, capacity)


@settings(deadline=None, max_examples=300)
@given(LENGTHS, CAPACITY, st.integers(0, 1000))
def test_best_fit_decreasing_leaves_the_room_that_the_obvious_search_leaves(
    lengths: list[int], capacity: int, seed: int
) -> None:
    found = rows(pack(np.array(lengths, np.int64), capacity, "best_fit_decreasing", seed))
    left = sorted(capacity - sum(min(lengths[i], capacity) for i in b) for b in found)
    assert left == tightest(lengths, capacity)


@settings(deadline=None)
@given(LENGTHS, CAPACITY, st.integers(0, 1000), st.sampled_from([*ALGORITHMS, "stratified"]))
def test_every_sequence_is_in_one_bin_none_is_too_full_and_a_seed_decides(
    lengths: list[int], capacity: int, seed: int, algorithm: str
) -> None:
    stratify = algorithm == "stratified"
    name = "best_fit_decreasing" if stratify else algorithm
    found = pack(np.array(lengths, np.int64), capacity, name, seed, stratify)
    assert sorted(i for b in rows(found) for i in b) == list(range(len(lengths)))
    assert all(b and sum(min(lengths[i], capacity) for i in b) <= capacity for b in rows(found))
    again = pack(np.array(lengths, np.int64), capacity, name, seed, stratify)
    assert (again.order == found.order).all() and (again.offsets == found.offsets).all()


def test_first_fit_goes_on_over_many_bins_and_many_chunks() -> None:
    """More bins than the tree begins with, more sequences than are looked at in one go."""
    lengths = np.random.default_rng(1).integers(1, 40, 70_000)
    found = pack(lengths, 41, "first_fit_shuffle", 3)
    assert len(found) > 30_000
    sizes = np.add.reduceat(lengths[found.order], found.offsets[:-1])
    assert sizes.max() <= 41 and (np.bincount(found.order) == 1).all()
    numbers = np.repeat(np.arange(len(found)), np.diff(found.offsets))
    order = shuffled(lengths.tolist(), 3)
    bin_of = dict(zip(found.order.tolist(), numbers.tolist(), strict=True))
    room: dict[int, int] = {}
    smallest_open = 0
    for i in order[:5000]:  # no earlier bin had room when each was placed
        b, size = bin_of[i], int(lengths[i])
        assert all(room.get(k, 41) < size for k in range(smallest_open, b))
        room[b] = room.get(b, 41) - size
        while room.get(smallest_open, 41) == 0:
            smallest_open += 1


def test_best_fit_is_within_a_thousandth_of_the_bound_and_stratifying_mixes_lengths() -> None:
    lengths = lognormal(50_000)
    bound = -(-int(lengths.sum()) // 4096)
    best = pack(lengths, 4096, "best_fit_decreasing", 1)
    mixed = pack(lengths, 4096, "best_fit_decreasing", 1, True)
    assert len(best) <= bound * 1.001
    assert len(mixed) <= bound * 1.004
    assert length_mix(lengths, mixed) > 2 * length_mix(lengths, best)


def test_bins_do_not_come_by_length_and_another_seed_gives_others() -> None:
    lengths = lognormal(5_000)
    one, two = (pack(lengths, 4096, "best_fit_decreasing", seed) for seed in (1, 2))
    longest = np.maximum.reduceat(lengths[one.order], one.offsets[:-1])
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.1
    assert len(one) == len(two) and (one.order != two.order).any()


def test_a_seed_gives_these_very_bins_with_every_version() -> None:
    lengths = np.array([5, 3, 3, 2, 7, 1, 4, 6, 2, 2])
    assert rows(pack(lengths, 8, "best_fit_decreasing", 7)) == [[4], [7, 9], [0, 2], [8, 3], [6, 1, 5]]


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: pack(np.array([1]), 8, "next_fit"), "next_fit"),
        (lambda: pack(np.array([1]), 0, "concatenative"), "capacity"),
        (lambda: pack(np.array([3, 0]), 8, "concatenative"), "sequence 1 has 0 tokens"),
    ],
)
def test_what_cannot_be_packed_is_refused(call: Callable[[], Bins], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        call()
