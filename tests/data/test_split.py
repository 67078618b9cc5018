"""Held-out and limited rows: proportions, seeds, and never an empty class."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coterie.core.errors import ConfigError
from coterie.data import hold_out, limit_per_class, limit_rows

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def labels_of(counts: list[int]) -> torch.Tensor:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


@settings(deadline=None)
@given(sizes, st.floats(0.01, 0.9), st.integers(0, 5))
@example([1, 1, 1, 25], 0.19921875, 0)
def test_hold_out_partitions_and_leaves_every_class_something(counts: list[int], share: float, seed: int) -> None:
    labels = labels_of(counts)
    train, held = hold_out(labels, share, seed)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert set(labels[train].tolist()) == set(range(len(counts)))
    passed_on = sum(max(0.0, count * share - (count - 1)) for count in counts)  # by classes that keep their last image
    for label, count in enumerate(counts):
        gap = abs(int((labels[held] == label).sum()) - count * share)
        assert gap < 1 + passed_on + 1e-6 or count * share > count - 1


@settings(deadline=None)
@given(sizes, st.integers(0, 120), st.integers(0, 5))
def test_limit_keeps_the_number_and_every_class(counts: list[int], limit: int, seed: int) -> None:
    labels = labels_of(counts)
    if 0 < limit < len(counts):
        with pytest.raises(ConfigError, match=f"data.limit={limit} is less than one image for each"):
            limit_rows(labels, limit, seed)
        return
    rows = limit_rows(labels, limit, seed)
    assert len(rows) == len(set(rows.tolist())) == (min(limit, len(labels)) or len(labels))
    assert set(labels[rows].tolist()) == set(range(len(counts)))


def test_proportions_of_a_balanced_set_are_exact() -> None:
    labels = torch.arange(1000) % 10
    _, held = hold_out(labels, 0.1, 0)
    assert torch.bincount(labels[held]).tolist() == [10] * 10
    assert torch.bincount(labels[limit_rows(labels, 200, 0)]).tolist() == [20] * 10


def test_the_seed_decides() -> None:
    labels = torch.arange(1000) % 10
    again, other = hold_out(labels, 0.1, 3)[1], hold_out(labels, 0.1, 4)[1]
    assert torch.equal(hold_out(labels, 0.1, 3)[1], again)
    assert not torch.equal(again, other)
    assert not torch.equal(limit_rows(labels, 100, 3), limit_rows(labels, 100, 4))


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_is_below_one(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.validation"):
        hold_out(torch.tensor([0, 0, 1, 1]), share, 0)


def test_nothing_is_held_out_for_zero() -> None:
    train, held = hold_out(torch.tensor([0, 0, 1, 1]), 0.0, 0)
    assert train.tolist() == [0, 1, 2, 3]
    assert not len(held)


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_a_limit_per_class_keeps_what_there_is(limit: int) -> None:
    labels = torch.tensor([0] * 5 + [1] * 9 + [3] * 2)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    rows = limit_per_class(labels, limit, seed=4)
    assert torch.bincount(labels[rows]).tolist() == [min(limit, count) for count in (5, 9, 0, 2)]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.equal(rows, limit_per_class(labels, limit, seed=4))


def test_a_limit_per_class_is_drawn_by_seed() -> None:
    labels = torch.arange(60) % 3
    assert not torch.equal(limit_per_class(labels, 5, seed=0), limit_per_class(labels, 5, seed=1))
    assert torch.equal(limit_per_class(labels, 0, seed=0), torch.arange(60))
    with pytest.raises(ConfigError, match="a limit of -1 images per class is negative"):
        limit_per_class(labels, -1, seed=0)
