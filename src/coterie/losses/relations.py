"""Losses between the relations of the images of a batch, as a student and a frozen teacher embed them.

Relations compare images with images, never a student's embedding with a teacher's, so that their sizes may differ;
`cc_neighbour_loss` alone needs equal ones.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.losses.logits import in_longest
from coterie.losses.teaching import lesson

_SAME_BATCH = "give both networks the same batch"
_SAME_SIZE = "project both to one size first"


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation of distances between images, each network's in units of its mean distance.

    Smooth L1 with threshold 1 between the distances, averaged over all B x B pairs, an image with itself included.

    Args:
        student: `[B, D]` embeddings; receives gradient, through the mean distance too.
        teacher: `[B, E]` embeddings; a constant.

    Returns:
        `[]`, at least float32; 0 for a batch of one.

    Raises:
        ShapeError: not `[B, D]`, or another number of images.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> round(float(rkd_distance(points, 5 * points + 1)), 6)
        0.0

    Reference:
        Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv:1904.05068, section 3.2.1.
    """
    student, teacher = lesson(student, teacher, axes="B, D", shared=1, remedy=_SAME_BATCH)
    with torch.autocast(student.device.type, enabled=False):
        return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation of the angles in all triangles of images.

    Smooth L1 with threshold 1 between cosines, averaged over all B x B x B triples; triples with two equal images have
    cosine 0. Cosines come from the B x B distances: no tensor of B x B x D is built, but a few of B x B x B.

    Args:
        student: `[B, D]` embeddings; receives gradient.
        teacher: `[B, E]` embeddings; a constant.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: not `[B, D]`, or another number of images.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> turned = points @ torch.tensor([[0.0, 3.0], [-3.0, 0.0]])
        >>> round(float(rkd_angle(points, turned)), 6)
        0.0

    Reference:
        Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv:1904.05068, section 3.2.2.
    """
    student, teacher = lesson(student, teacher, axes="B, D", shared=1, remedy=_SAME_BATCH)
    with torch.autocast(student.device.type, enabled=False):
        return F.smooth_l1_loss(_angle_cosines(student), _angle_cosines(teacher))


def cc_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Literal["gaussian", "bilinear"] = "gaussian",
    form: Literal["unit", "raw"] = "unit",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """Correlation congruence: equal matrices of a kernel between the images of a batch.

    Two quantities are published under this name. `unit` gives embeddings length 1 and takes the mean squared
    difference of the matrices, the paper's form; `raw` takes embeddings as they are and the Frobenius norm of the
    difference, not squared, over B squared.

    Args:
        student: `[B, D]` embeddings; receives gradient.
        teacher: `[B, E]` embeddings; a constant.
        kernel: `bilinear` is the inner product; `gaussian` is `exp(-gamma |a - b|^2)` of unit rows as a Taylor series
            in the inner product.
        form: `unit` or `raw`.
        gamma: width of the Gaussian.
        order: highest power of its series.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: not `[B, D]`, or another number of images.

    Example:
        >>> rows = torch.eye(2)
        >>> round(float(cc_loss(rows, torch.ones(2, 3), kernel="bilinear")), 4), float(cc_loss(rows, 2 * rows))
        (0.5, 0.0)

    Reference:
        Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019, arXiv:1904.01802.
    """
    student, teacher = lesson(student, teacher, axes="B, D", shared=1, remedy=_SAME_BATCH)
    if form == "unit":
        student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    with torch.autocast(student.device.type, enabled=False):
        own, goal = student @ student.t(), teacher @ teacher.t()
    if kernel == "gaussian":
        own, goal = _gaussian(own, gamma, order), _gaussian(goal, gamma, order)
    return F.mse_loss(own, goal) if form == "unit" else torch.linalg.vector_norm(own - goal) / own.numel()


def cc_neighbour_loss(student: Tensor, teacher: Tensor, *, detach: bool = True) -> Tensor:
    """What published benchmarks call correlation: agreement of the errors of images that are neighbours in the batch.

    With `d` the absolute difference of both embeddings, the mean of the inner products of each row of `d` with the
    next. It depends on the order of the batch and shares only its name with `cc_loss`.

    Args:
        student: `[B, D]` embeddings; receives gradient.
        teacher: `[B, D]` embeddings; receives gradient only with `detach=False`.
        detach: treat the teacher's as constants. Off when a head projects them to D, as in the published benchmark,
            and learns.

    Returns:
        `[]`, at least float32; 0 for a batch of one.

    Raises:
        ShapeError: the two shapes differ or are not `[B, D]`.

    Example:
        >>> float(cc_neighbour_loss(torch.ones(3, 2), torch.zeros(3, 2)))
        2.0
    """
    student, teacher = lesson(student, teacher, axes="B, D", shared=2, remedy=_SAME_SIZE, detach=detach)
    gaps = (student - teacher).abs()
    return (gaps[:-1] * gaps[1:]).sum() / max(len(gaps) - 1, 1)


def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer: equal chances that one image of the batch picks another, by their cosine.

    A cosine c becomes (c + 1) / 2, an image's own included, each row divided by its sum; then the mean over all B x B
    entries of `p_teacher log(p_teacher / p_student)`.

    Args:
        student: `[B, D]` embeddings; receives gradient.
        teacher: `[B, E]` embeddings; a constant.
        eps: added to every length and every probability.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: not `[B, D]`, or another number of images.

    Example:
        >>> rows = torch.eye(3)
        >>> round(float(pkt_loss(rows, torch.ones(3, 2))), 4)
        0.0189

    Reference:
        Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018,
        arXiv:1803.10837.
    """
    student, teacher = lesson(student, teacher, axes="B, D", shared=1, remedy=_SAME_BATCH)
    own, goal = _chances(student, eps) + eps, _chances(teacher, eps) + eps
    return ((goal - eps) * (goal / own).log()).mean()


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation: equal inner products between images, rows given length 1.

    The squared Frobenius norm of the difference of both B x B matrices, over B squared.

    Args:
        student: `[B, ...]` embeddings or maps, flattened; receives gradient.
        teacher: `[B, ...]`, of any size; a constant.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: no `[B, ...]`, or another number of images.

    Example:
        >>> float(sp_loss(torch.eye(2), torch.ones(2, 3, 2, 2)))  # (1 - 0.7071)^2 + 0.7071^2, twice, over 4
        0.2928...

    Reference:
        Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv:1907.09682.
    """
    student, teacher = lesson(student, teacher, axes="B, ...", shared=1, remedy=_SAME_BATCH)
    student, teacher = student.flatten(1), teacher.flatten(1)
    with torch.autocast(student.device.type, enabled=False):
        return F.mse_loss(F.normalize(student @ student.t(), dim=1), F.normalize(teacher @ teacher.t(), dim=1))


def _squared_distances(rows: Tensor) -> Tensor:
    """`[B, D]` to `[B, B]`, exactly 0 for rows that rounding cannot tell apart.

    Inner products of centred rows in float64 cost little and keep close pairs apart, without differences of B x B x D.
    """
    wide = in_longest(rows)
    wide = wide - wide.mean(dim=0).detach()
    gram = wide @ wide.t()
    lengths = gram.diagonal()
    both = lengths[:, None] + lengths
    squares = both - 2 * gram
    same = squares <= 8 * torch.finfo(squares.dtype).eps * both.detach()
    same = same | torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return squares.masked_fill(same, 0).to(rows.dtype)


def _relative_distances(rows: Tensor) -> Tensor:
    """Distances `[B, B]` in units of the mean over pairs of two different images."""
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    distances = _squared_distances(rows).clamp(min=1e-12).sqrt().masked_fill(itself, 0)
    mean = distances.sum() / max(len(rows) * (len(rows) - 1), 1)
    return distances / mean.clamp(min=1e-12)


def _angle_cosines(rows: Tensor) -> Tensor:
    """Cosine of the angle at i between j and k, `[B, B, B]`, by the law of cosines; 0 where i is j or k."""
    squares = _squared_distances(rows)
    apart = squares > 1e-24
    inverse = squares.where(apart, 1).rsqrt().where(apart, 0)
    sides = squares[:, :, None] + squares[:, None] - squares
    return sides * (inverse[:, :, None] * (inverse[:, None] / 2))


def _gaussian(products: Tensor, gamma: float, order: int) -> Tensor:
    """Taylor series of `exp(2 gamma (products - 1))` in the products, by Horner's rule."""
    series = torch.ones_like(products)
    for power in range(order, 0, -1):
        series = 1 + series * products * (2 * gamma / power)
    return math.exp(-2 * gamma) * series


def _chances(rows: Tensor, eps: float) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = rows / (lengths + eps)
    with torch.autocast(rows.device.type, enabled=False):
        closeness = ((unit @ unit.t() + 1) / 2).clamp(min=0)
    return closeness / closeness.sum(dim=1, keepdim=True)
