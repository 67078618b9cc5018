"""Batches by class: several images of each, every image once an epoch, whatever the sizes of the classes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from coterie.core.errors import ConfigError, DataError
from coterie.data import ClassAwareOrder


def labels_of(*counts: int) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def epoch_of(order: ClassAwareOrder, epoch: int = 0) -> Tensor:
    return torch.stack([order.rows(epoch, position) for position in range(order.batches_per_epoch)])


def class_counts(order: ClassAwareOrder, epoch: int = 0) -> Tensor:
    """Images of each class in each batch, `[P, K]`."""
    own = order.labels[epoch_of(order, epoch)]
    return torch.stack([batch.bincount(minlength=int(order.labels.max()) + 1) for batch in own])


@pytest.mark.slow
def test_a_balanced_set_as_large_as_cifar100() -> None:
    order = ClassAwareOrder(torch.arange(50_000) % 100, 128, 2, seed=3)
    rows, counts = epoch_of(order), class_counts(order)
    assert rows.shape == (390, 128) and rows.unique().numel() == 390 * 128
    assert counts.unique().tolist() == [0, 2] and counts.bool().sum(dim=1).unique().tolist() == [64]
    met = counts.bool().float().T @ counts.bool().float()
    others = met[~torch.eye(100, dtype=torch.bool)]
    assert float(others.mean()) == pytest.approx(250 * 63 / 99, rel=0.01)
    assert float(others.std()) < 15  # which classes meet is as random as independent draws: about 10


@pytest.mark.parametrize("size", [2, 4, 8])
def test_every_batch_has_exactly_so_many_of_each_class(size: int) -> None:
    order = ClassAwareOrder(labels_of(*[24] * 12), 16, size, seed=1)
    counts = class_counts(order)
    assert counts.unique().tolist() == [0, size]
    assert sorted(epoch_of(order).flatten().tolist()) == list(range(288))


@pytest.mark.parametrize(
    ("counts", "batch_size", "size"),
    [
        ((5, 40, 13, 22, 7, 31, 9, 3), 8, 2),
        ((90, 3, 4, 3), 10, 2),
        ((7, 7, 7, 7, 7, 7, 7, 7), 16, 4),
        ((1, 1, 1, 1, 1, 1, 9), 4, 4),
        ((0, 11, 0, 6), 6, 3),
    ],
)
def test_uneven_classes_are_visited_once(counts: tuple[int, ...], batch_size: int, size: int) -> None:
    order = ClassAwareOrder(labels_of(*counts), batch_size, size, seed=2)
    for epoch in range(3):
        rows = epoch_of(order, epoch)
        assert rows.shape == (sum(counts) // batch_size, batch_size)
        assert rows.unique().numel() == rows.numel()


def test_groups_are_of_one_class_but_for_what_classes_leave_over() -> None:
    order = ClassAwareOrder(labels_of(5, 40, 13, 22, 7, 31, 9, 3), 8, 2, seed=2)
    groups = order.labels[epoch_of(order)].view(-1, 2)
    assert int((groups[:, 0] != groups[:, 1]).sum()) <= 3  # six classes of odd size leave one image each
    per_batch = class_counts(order)
    assert int(per_batch.max()) <= 6  # 20 groups of the largest class in 16 batches, and images left over


def test_few_classes_fill_a_batch_evenly() -> None:
    order = ClassAwareOrder(labels_of(64, 64, 64), 48, 4, seed=0)
    assert class_counts(order).unique().tolist() == [16]
    uneven = class_counts(ClassAwareOrder(labels_of(40, 80), 16, 2, seed=0))
    assert uneven[:, 0].unique().tolist() in ([4, 6], [4, 6, 8]) and int(uneven[:, 0].sum()) >= 36


def test_one_large_class_is_spread_over_the_batches() -> None:
    counts = class_counts(ClassAwareOrder(labels_of(90, 6, 4), 10, 2, seed=5))
    assert counts[:, 0].tolist() == pytest.approx([9] * 10, abs=1)


def test_left_over_images_of_one_class_stay_together() -> None:
    order = ClassAwareOrder(labels_of(7, 7, 7, 7), 4, 4, seed=0)
    mixed = [row for epoch in range(20) for row in order.labels[epoch_of(order, epoch)] if row.unique().numel() > 1]
    assert mixed
    for row in mixed:
        assert len(row.unique_consecutive()) == row.unique().numel()


@pytest.mark.slow
def test_every_image_is_dropped_as_often_as_any_other() -> None:
    order = ClassAwareOrder(labels_of(11, 11, 11, 11), 8, 2, seed=0)
    seen = torch.zeros(44)
    for epoch in range(4000):
        seen[epoch_of(order, epoch).flatten()] += 1
    share = 40 / 44
    deviation = (seen - 4000 * share) / (4000 * share * (1 - share)) ** 0.5
    assert float(deviation.abs().max()) < 4.5  # the draws are fixed, so this never flakes


@pytest.mark.slow
def test_places_within_an_epoch_are_uniform() -> None:
    order = ClassAwareOrder(labels_of(4, 4, 4), 4, 2, seed=0)
    counts = torch.zeros(12, 3)
    for epoch in range(3000):
        for position in range(3):
            counts[order.rows(epoch, position), position] += 1
    assert ((counts - 1000).abs() / (3000 * 2 / 9) ** 0.5).max() < 4.5


def test_batches_follow_from_seed_and_epoch_alone() -> None:
    labels = labels_of(20, 30, 25, 40)
    first, second = ClassAwareOrder(labels, 10, 2, seed=1), ClassAwareOrder(labels, 10, 2, seed=1)
    for epoch, position in [(4, 9), (0, 0), (4, 3), (2, 5)]:
        first.rows(epoch, position)
    assert torch.equal(first.rows(2, 7), second.rows(2, 7))
    runs = [epoch_of(second, 0), epoch_of(second, 1), epoch_of(ClassAwareOrder(labels, 10, 2, seed=2), 0)]
    assert not any(torch.equal(a, b) for a, b in pairwise(runs))


def test_rows_are_those_of_shuffled_labels() -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 1, 2, 0, 0, 1, 2])
    own = labels[epoch_of(ClassAwareOrder(labels, 4, 2, seed=0))].view(-1, 2)
    assert torch.equal(own[:, 0], own[:, 1])


@pytest.mark.parametrize(
    ("counts", "batch_size", "size", "kind", "words"),
    [
        ((3, 3), 8, 2, DataError, "6 training images do not fill one batch of 8"),
        ((30, 30), 9, 2, ConfigError, r"data\.batch_size=9 cannot be made of groups of 2 .* such as 8"),
        ((30, 30), 3, 4, ConfigError, "such as 4"),
        ((30, 30), 8, 0, ConfigError, "give at least 1"),
        ((3, 2, 3), 4, 4, DataError, r"no class has more than 3; lower method\.samples_per_class"),
    ],
)
def test_bad_input_is_one_line(
    counts: tuple[int, ...], batch_size: int, size: int, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        ClassAwareOrder(labels_of(*counts), batch_size, size, seed=0)
    assert "\n" not in str(caught.value)
