"""Placing sequences into packs: nothing lost, nothing over, the reference's bins where it has the algorithm."""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreters import STEPS

sys.path.insert(0, str(STEPS))

from _runtime.data_prep import packed, packing

Lengths = list[int]
CAPACITIES = st.integers(1, 60)
LENGTHS = st.lists(st.integers(1, 70), max_size=120)
SEEDS = st.integers(0, 2**40)


def bins(lengths: Lengths, capacity: int, algorithm: str, seed: int = 0, stratify: bool = False) -> list[Lengths]:
    found = packing.pack(np.array(lengths, np.int64), capacity, algorithm, seed, stratify)
    return [found.order[a:b].tolist() for a, b in pairwise(found.offsets.tolist())]


def first_fit(lengths: Lengths, capacity: int, order: Lengths) -> list[Lengths]:
    """The reference's scan: each sequence into the first of all bins that has room."""
    placed: list[Lengths] = []
    room: Lengths = []
    for n in order:
        size = min(lengths[n], capacity)
        for k, free in enumerate(room):
            if free >= size:
                placed[k].append(n)
                room[k] -= size
                break
        else:
            placed.append([n])
            room.append(capacity - size)
    return placed


def concatenative(lengths: Lengths, capacity: int) -> list[Lengths]:
    placed: list[Lengths] = [[]]
    used = 0
    for n, length in enumerate(lengths):
        size = min(length, capacity)
        if used + size > capacity:
            placed.append([])
            used = 0
        placed[-1].append(n)
        used += size
    return [b for b in placed if b]


def slow(lengths: Lengths, capacity: int, algorithm: str, seed: int) -> list[Lengths]:
    if algorithm == "concatenative":
        return concatenative(lengths, capacity)
    if algorithm == "first_fit_shuffle":
        pairs = list(enumerate(lengths))
        random.Random(seed).shuffle(pairs)
    else:
        pairs = sorted(enumerate(lengths), key=lambda pair: pair[1], reverse=True)
    return first_fit(lengths, capacity, [n for n, _ in pairs])


def lognormal(count: int, seed: int = 7) -> Any:
    drawn = np.random.default_rng(seed).lognormal(np.log(490), 0.8, count)
    return np.clip(drawn, 1, 4096).astype(np.int64)


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("algorithm", packing.ALGORITHMS)
@settings(max_examples=120, deadline=None)
@given(lengths=LENGTHS, capacity=CAPACITIES, seed=SEEDS)
def test_every_sequence_is_in_one_bin_and_no_bin_is_over_its_capacity(
    algorithm: str, stratify: bool, lengths: Lengths, capacity: int, seed: int
) -> None:
    found = bins(lengths, capacity, algorithm, seed, stratify)
    assert sorted(n for b in found for n in b) == list(range(len(lengths)))
    assert all(found)
    assert all(sum(min(lengths[n], capacity) for n in b) <= capacity for b in found)
    assert bins(lengths, capacity, algorithm, seed, stratify) == found


@pytest.mark.parametrize("algorithm", ["first_fit_shuffle", "first_fit_decreasing", "concatenative"])
@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, capacity=CAPACITIES, seed=SEEDS)
def test_bins_are_those_of_the_reference(algorithm: str, lengths: Lengths, capacity: int, seed: int) -> None:
    assert bins(lengths, capacity, algorithm, seed) == slow(lengths, capacity, algorithm, seed)


@pytest.mark.parametrize("algorithm", ["first_fit_shuffle", "first_fit_decreasing", "concatenative"])
def test_bins_are_those_of_the_reference_when_the_tree_has_grown_twice(algorithm: str) -> None:
    lengths = np.random.default_rng(1).integers(2000, 4097, 3000).tolist()
    found = bins(lengths, 4096, algorithm, 3)
    assert len(found) > 2048
    assert found == slow(lengths, 4096, algorithm, 3)


def test_another_seed_gives_other_bins_and_another_order_of_full_ones() -> None:
    lengths = lognormal(2000).tolist()
    for algorithm in ("first_fit_shuffle", "best_fit_decreasing"):
        assert bins(lengths, 4096, algorithm, 1) != bins(lengths, 4096, algorithm, 2)
    longest = [max(lengths[n] for n in b) for b in bins(lengths, 4096, "best_fit_decreasing", 1)]
    assert longest != sorted(longest, reverse=True)


def test_best_fit_decreasing_leaves_less_than_a_thousandth_empty() -> None:
    lengths = lognormal(100_000)
    found = packing.pack(lengths, 4096, "best_fit_decreasing", 42)
    least = -(-int(lengths.sum()) // 4096)
    assert least <= len(found) <= least * 1.001 + 1


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, capacity=CAPACITIES, seed=SEEDS)
def test_best_fit_takes_the_tightest_bin_of_all(lengths: Lengths, capacity: int, seed: int) -> None:
    """Which of equal bins is taken is free, so what is left free in each is compared."""
    room: Lengths = []
    for size in sorted((min(n, capacity) for n in lengths), reverse=True):
        fitting = [k for k, free in enumerate(room) if free >= size]
        if fitting:
            room[min(fitting, key=lambda k: room[k])] -= size
        else:
            room.append(capacity - size)
    found = bins(lengths, capacity, "best_fit_decreasing", seed)
    assert sorted(capacity - sum(min(lengths[n], capacity) for n in b) for b in found) == sorted(room)


def test_stratified_bins_mix_long_and_short_and_stay_full() -> None:
    lengths = lognormal(50_000)
    plain = packing.pack(lengths, 4096, "best_fit_decreasing", 5)
    mixed = packing.pack(lengths, 4096, "best_fit_decreasing", 5, stratify=True)
    assert packing.length_mix(lengths, mixed) > packing.length_mix(lengths, plain) + 0.1
    assert len(mixed) <= len(plain) * 1.01


def test_length_mix_is_the_share_of_variance_within_bins() -> None:
    lengths = [5, 5, 9, 9, 1, 1]
    for order, expected in (([0, 1, 2, 3, 4, 5], 0.0), ([0, 3, 4, 1, 2, 5], 1.0)):
        three = packing.Bins(np.array(order), np.array([0, 2, 4, 6] if not expected else [0, 3, 6]))
        assert packing.length_mix(np.array(lengths), three) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lengths", "capacity", "algorithm", "text"),
    [([1], 0, "concatenative", "0"), ([3, 0], 4, "concatenative", "sequence 1"), ([1], 4, "worst_fit", "worst_fit")],
)
def test_what_cannot_be_packed_is_refused(lengths: Lengths, capacity: int, algorithm: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        bins(lengths, capacity, algorithm)


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 500), multiple=st.integers(1, 64), pack_size=st.integers(66, 600))
def test_padding_makes_what_a_trainer_sees_of_a_sequence_a_multiple(length: int, multiple: int, pack_size: int) -> None:
    takes = int(packed.padded(np.array([length]), multiple)[0])
    if multiple > 1:  # the last token is a label only
        assert (takes - 1) % multiple == 0
        assert 0 <= takes - length < multiple or length == 1
    most = packed.longest(pack_size, multiple)
    assert packed.padded(np.array([most]), multiple)[0] == most <= pack_size
    assert packed.padded(np.array([most + 1]), multiple)[0] > pack_size
