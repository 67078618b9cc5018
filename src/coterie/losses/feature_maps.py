"""Losses between feature maps of a student and a frozen teacher, each for one pair of layers (FSP: for a list of them).

Where maps may differ in height or width, the larger one is average-pooled to the smaller: AT, FT, NST and FSP do so by
themselves, for the others there is `pool_to_smaller`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.losses.teaching import in_pairs, lesson, same_images, same_maps


def pool_to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool two maps to the smaller of their heights and the smaller of their widths.

    The bins are those of adaptive average pooling, but the gradient is deterministic on every device.

    Args:
        first: `[B, C, H, W]`; gradient passes.
        second: `[B, C', H', W']`; gradient passes.

    Returns:
        Both with `min(H, H')` rows and `min(W, W')` columns; a map that has this size already is returned as it is.

    Example:
        >>> small, same = pool_to_smaller(torch.arange(4.0).view(1, 1, 2, 2), torch.zeros(1, 5, 1, 1))
        >>> small.flatten(), same.shape
        (tensor([1.5000]), torch.Size([1, 5, 1, 1]))
    """
    height, width = (min(sizes) for sizes in zip(first.shape[2:], second.shape[2:], strict=True))
    return _pool(first, height, width), _pool(second, height, width)


def at_loss(student: Tensor, teacher: Tensor, *, p: int = 2) -> Tensor:
    """Attention transfer: equal maps of how strongly each position answers.

    An attention map is the mean over channels of `|activation|^p`, given length 1 for each image; the loss is the mean
    squared difference over images and positions.

    Args:
        student: `[B, C, H, W]`; receives gradient.
        teacher: `[B, C', H', W']`; a constant.
        p: 1 or more; a large one looks at the strongest channels only.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: no maps, or another number of images.

    Example:
        >>> maps = torch.arange(8.0).view(1, 2, 2, 2)
        >>> float(at_loss(maps, torch.cat([maps, -maps], dim=1)))  # neither sign nor number of channels counts
        0.0

    Reference:
        Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv:1612.03928.
    """
    own, goal = pool_to_smaller(*same_images(student, teacher))
    return F.mse_loss(_attention(own, p), _attention(goal, p))


def ft_loss(student: Tensor, teacher: Tensor, *, p: int = 2, distance: int = 1) -> Tensor:
    """Factor transfer: equal factors, compared by their attention maps.

    Args:
        student: `[B, C, H, W]` factors from the student's translator; receives gradient.
        teacher: `[B, C', H', W']` factors from the teacher's paraphraser; a constant.
        p: power of the attention maps, as in `at_loss`.
        distance: power of the absolute differences whose mean is taken; 2 makes this `at_loss`.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: no maps, or another number of images.

    Example:
        >>> left, right = torch.eye(2)[:, None, None]
        >>> float(ft_loss(left[None], right[None]))
        1.0

    Reference:
        Kim, Park and Kwak, Paraphrasing Complex Network, NeurIPS 2018, arXiv:1802.04977.
    """
    own, goal = (_attention(maps, p) for maps in pool_to_smaller(*same_images(student, teacher)))
    return (own - goal).abs().pow(distance).mean()


def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """FitNets' hint: the mean squared difference of two maps.

    Args:
        student: `[B, C, H, W]` from the student's regressor; receives gradient.
        teacher: `[B, C, H, W]`; a constant.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: the two shapes differ or are not `[B, C, H, W]`.

    Example:
        >>> float(fitnet_loss(torch.zeros(1, 2, 1, 1), torch.full((1, 2, 1, 1), 3.0)))
        9.0

    Reference:
        Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv:1412.6550, without its factor 1/2.
    """
    return F.mse_loss(*same_maps(student, teacher))


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Neuron selectivity transfer: equal distributions of channels, by their maximum mean discrepancy.

    A channel is its map over positions, given length 1 for each image; the kernel is the squared inner product. The
    teacher's own, constant term is part of the value.

    Args:
        student: `[B, C, H, W]`; receives gradient.
        teacher: `[B, C', H', W']`; a constant.

    Returns:
        `[]`, at least float32, mean over images.

    Raises:
        ShapeError: no maps, or another number of images.

    Example:
        >>> maps = torch.eye(4).view(1, 4, 2, 2)
        >>> float(nst_loss(maps, maps.flip(1))), float(nst_loss(maps, maps[:, :1]))
        (0.0, 0.75)

    Reference:
        Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, arXiv:1707.01219;
        polynomial kernel of degree 2.
    """
    own, goal = (F.normalize(maps.flatten(2), dim=2) for maps in pool_to_smaller(*same_images(student, teacher)))
    with torch.autocast(own.device.type, enabled=False):
        if own.shape[2] <= max(own.shape[1], goal.shape[1]):  # the smaller of two equal forms
            gap = own.mT @ own / own.shape[1] - goal.mT @ goal / goal.shape[1]
            return gap.square().sum(dim=(1, 2)).mean()
        return _alike(own, own) + _alike(goal, goal) - 2 * _alike(own, goal)


def fsp_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Flow of solution procedure: equal products of the channels of each layer with those of the next.

    The larger map of two neighbouring layers is pooled to the smaller; a flow matrix is the mean over positions of the
    products of channels; its mean squared difference is summed over neighbours.

    Args:
        students: two or more maps `[B, C_l, H_l, W_l]`, shallow to deep; receive gradient.
        teachers: as many, each with the channels of the student's; constants.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: the layers do not pair up, or differ in images or channels.

    Example:
        >>> maps = [torch.ones(1, 3, 4, 4), torch.ones(1, 5, 2, 2)]
        >>> float(fsp_loss(maps, [2 * maps[0], maps[1]]))  # every product is 1 against 2
        1.0

    Reference:
        Yim et al., A Gift from Knowledge Distillation, CVPR 2017.
    """
    remedy = "connect the student's map to the teacher's channels first"
    pairs = in_pairs(students, teachers, least=2)
    layers = [lesson(own, goal, axes="B, C, H, W", shared=2, remedy=remedy) for own, goal in pairs]
    flows = [(_flow(upper[0], lower[0]), _flow(upper[1], lower[1])) for upper, lower in pairwise(layers)]
    return torch.stack([F.mse_loss(own, goal) for own, goal in flows]).sum()


def _pool(maps: Tensor, height: int, width: int) -> Tensor:
    given = maps.shape[2:]
    if given == (height, width):
        return maps
    if given[0] % height == given[1] % width == 0:
        return F.avg_pool2d(maps, (given[0] // height, given[1] // width))
    rows, columns = (_bins(*sizes).to(maps) for sizes in zip(given, (height, width), strict=True))
    with torch.autocast(maps.device.type, enabled=False):
        return rows @ maps @ columns.t()


def _bins(given: int, wanted: int) -> Tensor:
    """Matrix `[wanted, given]` that averages the bins of adaptive pooling, which may share an entry."""
    place, target = torch.arange(given), torch.arange(wanted)[:, None]
    inside = (place >= target * given // wanted) & (place * wanted < (target + 1) * given)
    return inside / inside.sum(dim=1, keepdim=True).double()


def _attention(maps: Tensor, p: int) -> Tensor:
    """`[B, C, H, W]` to rows `[B, H W]` of length 1."""
    strength = maps.pow(p) if p % 2 == 0 else maps.abs().pow(p)
    return F.normalize(strength.mean(dim=1).flatten(1), dim=1)


def _alike(first: Tensor, second: Tensor) -> Tensor:
    """Mean over images and pairs of channels of the squared inner product; `[B, C, P]` and `[B, C', P]` to `[]`."""
    return (first @ second.mT).square().mean()


def _flow(upper: Tensor, lower: Tensor) -> Tensor:
    """`[B, C, H, W]` and `[B, C', H', W']` to `[B, C, C']`."""
    first, second = (maps.flatten(2) for maps in pool_to_smaller(upper, lower))
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.mT / first.shape[2]
