"""Batch norm over several ranks is torch's own where there is one, to the second derivative."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coterie.core.world import World, inside
from coterie.nets.global_norm import batch_norm, shared_statistics


@pytest.mark.parametrize(("shape", "affine"), list(product([(6, 3), (4, 3, 5, 2)], [True, False])))
def test_equals_torch(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    vectors = [torch.rand(3, dtype=torch.float64).requires_grad_() if affine else None for _ in range(2)]
    found = []
    for norm in (F.batch_norm, batch_norm):
        mean, variance = torch.zeros(3).double(), torch.ones(3).double()
        out = norm(images, mean, variance, *vectors, True, 0.3, 1e-4)
        wanted = [tensor for tensor in (images, *vectors) if tensor is not None]
        slopes = torch.autograd.grad(out.pow(3).sum(), wanted, create_graph=True)
        bent = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), wanted)
        found.append([out, mean, variance, *slopes, *bent])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_half_precision_keeps_its_dtype_and_evaluation_its_statistics() -> None:
    images = torch.randn(8, 3, 4, 4)
    assert batch_norm(images.bfloat16(), None, None, training=True).dtype == torch.bfloat16
    mean, variance = torch.randn(3), torch.rand(3) + 0.5
    assert torch.equal(batch_norm(images, mean, variance), F.batch_norm(images, mean, variance))


def test_nothing_is_replaced_where_there_is_one_process_or_it_is_not_wanted() -> None:
    net, images = nn.BatchNorm1d(2), torch.randn(4, 2)
    with shared_statistics():
        alone = net(images)
    with inside(World(size=2, global_norm=False)), shared_statistics():
        assert torch.equal(net(images), alone)
    with inside(World(size=2)), shared_statistics(), pytest.raises(ValueError, match="process group"):
        net(images)  # now it asks the other rank, and there is none
