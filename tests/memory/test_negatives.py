from __future__ import annotations

import pytest
import torch

from coterie.core import ConfigError
from coterie.memory.negatives import Negatives

LABELS = torch.tensor([2, 0, 1, 0, 3, 2, 0, 1, 2, 2, 0, 3])  # 4, 2, 4 and 2 images


def step(number: int) -> torch.Tensor:
    return torch.tensor(number)


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def test_per_sample_rows_are_of_other_classes_only_and_uniform() -> None:
    draw = Negatives(LABELS, 8, seed=4)
    indices = torch.arange(12)
    rows = torch.cat([draw.per_sample(LABELS, indices, step(k)) for k in range(500)], dim=1)
    assert not (LABELS[rows] == LABELS[:, None]).any()
    for i in range(12):
        counts = torch.bincount(rows[i], minlength=12)[LABELS[i] != LABELS].double()
        assert chi_square(counts) < 35  # 7 to 9 degrees of freedom, p < 1e-4


def test_shared_rows_are_uniform_and_masked_by_class() -> None:
    draw = Negatives(LABELS, 8, seed=4)
    labels = torch.tensor([2, 3, 0])
    drawn = [draw.shared(labels, step(k)) for k in range(800)]
    assert chi_square(torch.bincount(torch.cat([rows for rows, _ in drawn]), minlength=12).double()) < 40
    rows, same_class = drawn[3]
    assert [[bool(LABELS[row] == label) for row in rows] for label in labels] == same_class.tolist()


def test_draws_are_a_function_of_seed_step_and_image() -> None:
    first, again, other = Negatives(LABELS, 8, seed=1), Negatives(LABELS, 8, seed=1), Negatives(LABELS, 8, seed=2)
    indices = torch.tensor([5, 2, 9])
    there, back = (draw.per_sample(LABELS[indices], indices, step(7)) for draw in (first, again))
    assert torch.equal(there, back)
    flipped = indices.flip(0)
    assert torch.equal(first.per_sample(LABELS[flipped], flipped, step(7)), there.flip(0))
    for changed in (
        first.per_sample(LABELS[indices], indices, step(8)),
        other.per_sample(LABELS[indices], indices, step(7)),
    ):
        assert not torch.equal(changed, there)
    rows = first.shared(LABELS, step(7))[0]
    assert torch.equal(rows, again.shared(LABELS, step(7))[0])
    assert not torch.equal(rows, first.shared(LABELS, step(8))[0])
    assert not torch.equal(rows, other.shared(LABELS, step(7))[0])


def test_positives_are_of_the_same_class_and_uniform() -> None:
    draw = Negatives(LABELS, 1, seed=4)
    rows = torch.stack([draw.same_class(LABELS, torch.arange(12), step(k)) for k in range(600)])
    assert torch.equal(LABELS[rows], LABELS.expand(600, 12))
    counts = torch.bincount(rows[:, 0], minlength=12)[LABELS == 2].double()
    assert chi_square(counts) < 21  # 3 degrees of freedom, p = 1e-4


@pytest.mark.case(59)
@pytest.mark.parametrize("count", [0, -3, 9])
def test_number_is_bounded_by_the_pool(count: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to 8"):
        Negatives(LABELS, count)
    assert Negatives(LABELS, 8).num_negatives == 8


def test_number_defaults_to_the_most_the_data_allow() -> None:
    assert Negatives(LABELS).num_negatives == 8
    assert Negatives(LABELS, most=5).num_negatives == 5
    assert Negatives(torch.arange(50_000) % 100).num_negatives == 16384


@pytest.mark.case(54)
@pytest.mark.parametrize(("labels", "words"), [(torch.zeros(5, dtype=torch.int64), "has 1;"), (LABELS[:0], "has 0;")])
def test_one_class_is_not_enough(labels: torch.Tensor, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Negatives(labels, 1)


def test_classes_without_images_are_no_trouble() -> None:
    labels = torch.tensor([5, 2, 5, 2])
    rows = Negatives(labels, 2).per_sample(labels, torch.arange(4), step(0))
    assert (labels[rows] != labels[:, None]).all()


def test_nothing_is_kept_and_tables_move() -> None:
    draw = Negatives(LABELS, 2)
    moved: list[torch.dtype] = []
    draw.move(lambda table: moved.append(table.dtype) or table)
    assert draw.state() == {} and len(moved) == 4
