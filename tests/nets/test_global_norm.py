"""Batch norm over several ranks is torch's own where there is one, to the second derivative."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import coterie.core.world
from coterie.core.world import World, inside
from coterie.nets.global_norm import batch_norm, shared_statistics
from ranks import in_ranks


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


Slopes = list[torch.Tensor]


def first_slopes(norm: Callable[..., torch.Tensor], images: torch.Tensor, toward: torch.Tensor) -> Slopes:
    """What a layer gives, and its gradients to images, weight and bias."""
    given = [images.clone().requires_grad_(), torch.arange(1.0, 4), torch.arange(3.0)]
    vectors = [vector.to(torch.promote_types(images.dtype, torch.float32)).requires_grad_() for vector in given[1:]]
    out = norm(given[0], None, None, *vectors, True, 0.1, 1e-5)
    return [out, *torch.autograd.grad(out, [given[0], *vectors], toward)]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gradients_that_are_not_differentiated_again(
    order: torch.memory_format, dtype: torch.dtype, close: float
) -> None:
    images, toward = torch.randn(2, 6, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    images = images.contiguous(memory_format=order)
    for one, other in zip(*(first_slopes(norm, images, toward) for norm in (F.batch_norm, batch_norm)), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=close, atol=close)


def test_images_far_from_zero_have_the_statistics_that_torch_finds() -> None:
    images = 1000 + torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    variance = torch.zeros(3)
    batch_norm(images, None, variance, training=True, momentum=1.0)
    torch.testing.assert_close(variance.double(), images.double().var([0, 2, 3]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("few", [8, 1])
def test_gradients_of_two_shares_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(coterie.core.world, "FEW", few)
    images, toward = torch.randn(2, 6, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()

    def share(rank: int) -> Slopes:
        with inside(World(rank=rank, size=2)):
            return [found.detach() for found in first_slopes(batch_norm, *(t[rank::2] for t in (images, toward)))]

    (first, (out, to_images, *_)), (second, (other_out, to_others, *_)) = in_ranks(2, share)
    assert (first, second) == ("ok", "ok")
    expected = first_slopes(F.batch_norm, images, toward)
    torch.testing.assert_close(torch.stack([out, other_out], 1).flatten(0, 1), expected[0].detach())
    torch.testing.assert_close(torch.stack([to_images, to_others], 1).flatten(0, 1), expected[1])


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
