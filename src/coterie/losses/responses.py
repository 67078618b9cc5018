"""Losses on single responses of feature maps: which are active (AB), by how much (Overhaul), how certainly (VID).

AB and Overhaul compare maps before their ReLU, layer by layer, the last one with weight 1 and each before it with half
the weight of the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.logits import at_least_float32
from coterie.losses.teaching import in_pairs, same_maps


def ab_layer_loss(
    student: Tensor, teacher: Tensor, *, margin: float = 1.0, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Activation boundaries of one layer: a response lies on the teacher's side of 0, a margin away from it.

    The square of `max(0, margin - s)` where the teacher's response is positive and of `max(0, margin + s)` elsewhere.

    Args:
        student: `[B, C, H, W]` before the ReLU, from a connector; receives gradient.
        teacher: `[B, C, H, W]` before the ReLU; a constant.
        margin: at least 0.
        reduction: `sum` over everything but the images, whose mean is taken, or `mean` over everything; both are
            published.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: the two shapes differ or are not `[B, C, H, W]`.

    Example:
        >>> maps = torch.tensor([3.0, -3.0, 0.5, 0.5]).view(1, 4, 1, 1)
        >>> goals = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 4, 1, 1)
        >>> float(ab_layer_loss(maps, goals))  # 0.5^2 + 1.5^2
        2.5

    Reference:
        Heo et al., Knowledge Transfer via Distillation of Activation Boundaries, AAAI 2019, arXiv:1811.03233.
    """
    student, teacher = same_maps(student, teacher)
    errors = F.relu(margin - torch.where(teacher > 0, student, -student)).square()
    return errors.mean() if reduction == "mean" else errors.sum() / len(errors)


def ab_loss(
    students: Sequence[Tensor], teachers: Sequence[Tensor], *, margin: float = 1.0, scale: float = 0.003
) -> Tensor:
    """Activation boundaries of several layers: the sums of `ab_layer_loss`, layers weighted, times a scale.

    Args:
        students: maps `[B, C_l, H_l, W_l]` before the ReLU, shallow to deep; receive gradient.
        teachers: as many of the same shapes; constants.
        margin: at least 0.
        scale: factor of the total.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: the layers do not pair up.
    """
    layers = [ab_layer_loss(own, goal, margin=margin) for own, goal in in_pairs(students, teachers)]
    return scale * _doubling(layers)


def overhaul_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """The expected value of the negative responses of each channel, from the batch norm that makes them.

    After batch norm a channel is close to normal with mean `bias` and standard deviation `|weight|`; this is the mean
    of its negative part, in closed form. Channels that are hardly ever negative get three standard deviations.

    Args:
        weight: `[C]` of the batch norm.
        bias: `[C]` of the batch norm.

    Returns:
        `[C]`, at most 0, at least float32; a constant.

    Raises:
        ShapeError: the two shapes differ.

    Example:
        >>> overhaul_margin(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 20.0]))  # minus the square root of 2 / pi
        tensor([-0.7979, -6.0000])

    Reference:
        Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019, arXiv:1904.01866.
    """
    if weight.dim() != 1 or weight.shape != bias.shape:
        raise ShapeError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must both be [C]; give those of one batch norm"
        )
    mean, spread = at_least_float32(bias.detach()), at_least_float32(weight.detach()).abs()
    ratio = mean / spread.clamp(min=1e-12)
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(below > 0.001, mean - spread * density / below.clamp(min=0.001), -3 * spread)


def overhaul_target(teacher: Tensor, margins: Tensor) -> Tensor:
    """The teacher's map with responses raised to the margin of their channel, what the student is to match.

    Args:
        teacher: `[B, C, H, W]` before the ReLU.
        margins: `[C]` of `overhaul_margin`.

    Returns:
        `[B, C, H, W]`, at least float32; a constant.

    Raises:
        ShapeError: there is not one margin for each channel.

    Example:
        >>> overhaul_target(torch.tensor([2.0, -3.0]).view(1, 2, 1, 1), torch.tensor([-1.0, -1.0])).flatten()
        tensor([ 2., -1.])
    """
    if teacher.dim() != 4 or margins.shape != teacher.shape[1:2]:
        raise ShapeError(
            f"map {tuple(teacher.shape)} and margins {tuple(margins.shape)} must be [B, C, H, W] and [C];"
            " give the margins of the batch norm that made the map"
        )
    return torch.maximum(at_least_float32(teacher.detach()), at_least_float32(margins.detach())[:, None, None])


def partial_l2(student: Tensor, target: Tensor) -> Tensor:
    """Squared error, but none where the student is below a target that is not positive: both are inactive there.

    Args:
        student: `[B, C, H, W]` before the ReLU, from a connector; receives gradient.
        target: `[B, C, H, W]` of `overhaul_target`; a constant.

    Returns:
        `[]`, at least float32, summed over everything but the images, whose mean is taken.

    Raises:
        ShapeError: the two shapes differ or are not `[B, C, H, W]`.

    Example:
        >>> maps = torch.tensor([-3.0, 1.0, 1.0]).view(1, 3, 1, 1)
        >>> float(partial_l2(maps, torch.tensor([-1.0, -1.0, 4.0]).view(1, 3, 1, 1)))  # 0 + 2^2 + 3^2
        13.0

    Reference:
        Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019, arXiv:1904.01866.
    """
    student, target = same_maps(student, target)
    idle = (student <= target) & (target <= 0)
    return (student - target).square().masked_fill(idle, 0).sum() / len(student)


def overhaul_loss(students: Sequence[Tensor], targets: Sequence[Tensor], *, scale: float = 0.001) -> Tensor:
    """Feature distillation overhauled: `partial_l2` of several layers, weighted, times a scale.

    Args:
        students: maps `[B, C_l, H_l, W_l]` before the ReLU, from connectors, shallow to deep; receive gradient.
        targets: as many of the same shapes, of `overhaul_target`; constants.
        scale: factor of the total.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: the layers do not pair up.
    """
    return scale * _doubling([partial_l2(own, goal) for own, goal in in_pairs(students, targets)])


def vid_mean(maps: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The mean that a student predicts for a teacher's map: 1x1 convolutions without bias, a ReLU after all but one.

    Args:
        maps: `[B, C, H, W]` of the student; receives gradient.
        weights: `[C_1, C]`, `[C_2, C_1]` and so on, the last with the teacher's channels; receive gradient.

    Returns:
        `[B, C', H, W]`, in the precision that autocast gives convolutions.

    Example:
        >>> vid_mean(torch.ones(1, 2, 1, 1), [torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), torch.ones(1, 2)]).flatten()
        tensor([2.])
    """
    for weight in weights[:-1]:
        maps = F.relu(F.conv2d(maps, weight[:, :, None, None]))
    return F.conv2d(maps, weights[-1][:, :, None, None])


def vid_loss(mean: Tensor, teacher: Tensor, raw_scale: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Variational information distillation: the teacher's map under a normal distribution that the student predicts.

    The mean over all entries of `((mean - teacher)^2 / variance + log variance) / 2`, with one variance for each
    channel, `log(1 + exp(raw_scale)) + eps`.

    Args:
        mean: `[B, C, H, W]` predicted from the student, for instance by `vid_mean`; receives gradient.
        teacher: `[B, C, H, W]`; a constant.
        raw_scale: `[C]`, starts at `vid_raw_scale`; receives gradient.
        eps: least variance.

    Returns:
        `[]`, at least float32; may be negative.

    Raises:
        ShapeError: the two maps differ, or there is not one scale for each channel.

    Example:
        >>> raw = torch.full((3,), vid_raw_scale(math.exp(2.0)))
        >>> round(float(vid_loss(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2), raw)), 5)  # no error, log variance 2
        1.0

    Reference:
        Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019, arXiv:1904.05835.
    """
    mean, teacher = same_maps(mean, teacher)
    if raw_scale.shape != mean.shape[1:2]:
        raise ShapeError(
            f"map {tuple(mean.shape)} and raw_scale {tuple(raw_scale.shape)} must be [B, C, H, W] and [C];"
            " give one scale for each channel of the teacher"
        )
    raw_scale = at_least_float32(raw_scale)[:, None, None]
    variance = torch.logaddexp(raw_scale, torch.zeros_like(raw_scale)) + eps
    return ((mean - teacher).square() / variance + variance.log()).mean() / 2


def vid_raw_scale(variance: float = 5.0, *, eps: float = 1e-5) -> float:
    """The raw scale at which `vid_loss` has a given variance, above `eps`.

    Example:
        >>> round(vid_raw_scale(5.0), 6)
        4.993229
    """
    return math.log(math.expm1(variance - eps))


def _doubling(layers: Sequence[Tensor]) -> Tensor:
    """Sum with weight 1 for the last and half the weight of the next for each before it."""
    return torch.stack([loss * 2.0 ** (place + 1 - len(layers)) for place, loss in enumerate(layers)]).sum()
