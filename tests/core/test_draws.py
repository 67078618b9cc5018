"""Draws are functions of their key and counters, on every device alike, and look like random numbers."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core import draws

MASK = (1 << 64) - 1
KEYS = st.integers(0, (1 << 63) - 1)


def scramble(value: int) -> int:
    """The finaliser of splitmix64, from the paper, in whole numbers without a bound."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def slow_bits(key: int, counter: int) -> int:
    golden = 0x9E3779B97F4A7C15
    state = scramble(((counter + 1) * golden + key) & MASK)
    return scramble((state + golden) & MASK) & (MASK >> 1)


def test_the_finaliser_is_splitmix64() -> None:
    state, drawn = 0, []  # the published generator seeded with 0
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        drawn.append(draws._scramble(state))
    assert drawn == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(KEYS, st.integers(0, 1 << 60))
@settings(max_examples=60, deadline=None)
def test_tensors_and_whole_numbers_agree(key: int, counter: int) -> None:
    assert int(draws.bits(key, torch.tensor(counter))) == slow_bits(key, counter)


@given(KEYS)
@settings(max_examples=30, deadline=None)
def test_a_key_on_the_device_is_a_key(key: int) -> None:
    counters = torch.arange(6).view(2, 3)
    keys = torch.tensor([key, key ^ 1])[:, None, None]
    both = draws.bits(keys, counters)
    assert torch.equal(both[0], draws.bits(key, counters))
    assert torch.equal(both[1], draws.bits(key ^ 1, counters))


def test_a_draw_depends_on_its_counter_alone() -> None:
    whole = draws.uniform(5, torch.arange(100))
    assert torch.equal(draws.uniform(5, torch.tensor([70, 3])), whole[[70, 3]])


@given(st.lists(st.one_of(st.integers(-(1 << 62), 1 << 62), st.text(max_size=8)), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_a_mix_is_a_seed(parts: list[int | str]) -> None:
    mixed = draws.mix(*parts)
    assert 0 <= mixed < 1 << 63
    assert draws.mix(*parts) == mixed
    assert draws.mix(*parts, 0) != mixed
    torch.manual_seed(mixed)


def test_mixes_do_not_collide() -> None:
    keys = [(seed, word, epoch) for seed in range(30) for word in ("order", "view", "split") for epoch in range(30)]
    assert len({draws.mix(*key) for key in keys}) == len(keys)
    assert draws.mix(1, 2) != draws.mix(2, 1) != draws.mix("1", 2)


def test_uniform_numbers_are_uniform() -> None:
    values = draws.uniform(draws.mix("test"), torch.arange(200_000))
    assert values.dtype == torch.float32
    assert 0 <= float(values.min()) < float(values.max()) < 1
    counts = torch.histc(values, 20, 0, 1)
    chi = float(((counts - 10_000) ** 2 / 10_000).sum())
    assert chi < 43.8  # 19 degrees of freedom, one in a thousand
    neighbours = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]
    assert abs(float(neighbours)) < 0.01


def test_neighbouring_keys_are_unrelated() -> None:
    counters = torch.arange(20_000)
    first, second = draws.uniform(7, counters), draws.uniform(8, counters)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.03


@pytest.mark.parametrize("below", [1, 2, 7, 50_000])
def test_integers_cover_their_range(below: int) -> None:
    values = draws.integers(3, torch.arange(20_000), below)
    assert int(values.min()) == 0 or below > 20_000
    assert int(values.max()) < below
    if below == 7:
        counts = Counter(values.tolist())
        assert set(counts) == set(range(7))
        assert max(counts.values()) - min(counts.values()) < 500


@given(KEYS, st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_a_permutation_holds_every_number_once(key: int, count: int) -> None:
    shuffled = draws.permutation(key, count)
    assert sorted(shuffled.tolist()) == list(range(count))
    assert torch.equal(shuffled, draws.permutation(key, count))


def test_permutations_are_fair() -> None:
    first = Counter(int(draws.permutation(draws.mix("fair", key), 5)[0]) for key in range(5_000))
    assert all(850 < count < 1150 for count in first.values())
    orders = Counter(tuple(draws.permutation(draws.mix("fair", key), 3).tolist()) for key in range(3_000))
    assert len(orders) == 6
    assert all(400 < count < 600 for count in orders.values())
