"""Embeddings in a plane: the same picture every time, groups that stay groups, and figures of all dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coterie.evaluation.plane import neighbour_share, plane


def groups(noise: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(5).repeat_interleave(8)
    return 4 * torch.randn(5, 16, generator=generator)[labels] + noise * torch.randn(
        40, 16, generator=generator
    ), labels


def test_groups_stay_groups_and_the_picture_is_the_same_every_time() -> None:
    values, labels = groups(0.3)
    points = plane(values)
    assert points.shape == (40, 2) and torch.equal(points, plane(values.clone()))
    assert neighbour_share(points, labels) == 100.0


@pytest.mark.parametrize("values", [torch.zeros(6, 4), torch.arange(4.0)[:, None], torch.eye(3)], ids=str)
def test_what_cannot_be_laid_out_well_is_laid_out(values: Tensor) -> None:
    assert plane(values).isfinite().all()


def test_the_share_is_that_of_a_slow_loop() -> None:
    values, labels = groups(8.0)
    right = 0
    for row, value in enumerate(values):
        distances = [
            float((value - other).norm()) if other_row != row else 1e9 for other_row, other in enumerate(values)
        ]
        right += int(labels[distances.index(min(distances))] == labels[row])
    assert neighbour_share(values, labels) == pytest.approx(100 * right / len(values))
    assert right < len(values)
