"""Batches by row number: permutations that depend on seed and epoch alone."""

from __future__ import annotations

import pytest
import torch

from coterie.core.errors import ConfigError, DataError
from coterie.data import ShuffledOrder


def epoch_of(order: ShuffledOrder, epoch: int) -> list[int]:
    return torch.cat([order.rows(epoch, position) for position in range(order.batches_per_epoch)]).tolist()


def test_an_epoch_visits_every_row_once() -> None:
    order = ShuffledOrder(60, 12, seed=5)
    assert order.batches_per_epoch == 5
    assert sorted(epoch_of(order, 3)) == list(range(60))
    assert epoch_of(order, 3) != list(range(60))


def test_the_incomplete_batch_is_dropped_and_differs_between_epochs() -> None:
    order = ShuffledOrder(10, 4, seed=0)
    assert order.batches_per_epoch == 2
    missed = {frozenset(range(10)) - frozenset(epoch_of(order, epoch)) for epoch in range(8)}
    assert all(len(rows) == 2 for rows in missed)
    assert len(missed) > 1


def test_rows_do_not_depend_on_what_was_asked_before() -> None:
    first, second = ShuffledOrder(100, 10, seed=1), ShuffledOrder(100, 10, seed=1)
    for epoch, position in [(4, 9), (0, 0), (4, 3), (2, 5)]:
        first.rows(epoch, position)
    assert torch.equal(first.rows(2, 7), second.rows(2, 7))


def test_seed_and_epoch_change_the_order() -> None:
    assert epoch_of(ShuffledOrder(50, 10, seed=1), 0) != epoch_of(ShuffledOrder(50, 10, seed=2), 0)
    assert epoch_of(ShuffledOrder(50, 10, seed=1), 0) != epoch_of(ShuffledOrder(50, 10, seed=1), 1)


def test_places_are_uniform() -> None:
    order = ShuffledOrder(8, 8, seed=0)
    counts = torch.zeros(8, 8)
    for epoch in range(2000):
        counts[order.rows(epoch, 0), torch.arange(8)] += 1
    chi_square = ((counts - 250) ** 2 / 250).sum()
    assert chi_square < 98  # 49 degrees of freedom, p > 1e-4; the draws are fixed, so this never flakes


def test_fewer_images_than_a_batch() -> None:
    with pytest.raises(DataError, match="3 training images do not fill one batch of 4"):
        ShuffledOrder(3, 4, seed=0)


def test_a_batch_has_images() -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size=0"):
        ShuffledOrder(3, 0, seed=0)
