"""The global term of WCoRD: the Kantorovich-Rubinstein dual of the distance between matched and mismatched pairs.

The critic g is never steeper than 1, so mean g(matched) - mean g(mismatched) bounds that distance from below. Critic
and student both raise it: nobody plays against anybody.

A mean over B anchors and S rows meets B * S hidden vectors. Each is a sum A_i + C_s of a part of the anchor and one of
the row, and the activation is piecewise linear, so that per hidden unit

    sum over i, s of w_is leaky(A_i + C_s) = sum_i A_i m_i + sum_s C_s n_s,

where m_i and n_s add up the weights w_is times the activation's slope. These slopes are constants for the gradient
almost everywhere, so value and gradient need them alone, and no tensor of size B x S x D is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.candidates import Candidates
from coterie.losses.critic import LEAK, CriticLayers, LipschitzCritic

_CHUNK_VALUES = 1 << 18  # hidden values looked at at a time on a CPU, 1 MiB of float32: they stay in its cache
_CHUNK_VALUES_ELSEWHERE = 1 << 25

NegWeight = Literal["mean", "count"]


@dataclass(frozen=True, slots=True)
class Dual:
    """What `bank_dual` and `batch_dual` return.

    Attributes:
        loss: `[]`, `2 * (factor * mismatched - matched)`: the sum of both directions, with gradient.
        matched: `[]`, mean value of the critic over matched pairs, detached.
        mismatched: `[]`, mean over mismatched pairs, both directions alike, detached. With a normalised critic the
            distance between the two distributions is at least `matched - mismatched`, but for chance.
    """

    loss: Tensor
    matched: Tensor
    mismatched: Tensor


def bank_dual(
    critic: LipschitzCritic,
    student: Tensor,
    teacher: Tensor,
    banks: Tensor | tuple[Tensor, Tensor],
    candidates: Candidates,
    *,
    neg_weight: NegWeight = "mean",
) -> Dual:
    """Dual with negatives from two memory banks: teacher anchors with student rows, student anchors with teacher rows.

    Args:
        critic: its parameters receive gradient.
        student: `[B, D]` embeddings; receive gradient.
        teacher: `[B, D]` embeddings of the same images; receive gradient where they require it.
        banks: `[2, N, D]` or two `[N, D]`, rows of the student, then of the teacher; constants.
        candidates: its negatives, `[S]` with their same-class mask or `[B, S]`. Its positives are not used: an anchor
            is matched with the other embedding of its own image.
        neg_weight: factor of the mismatched part: 1 for `mean`, S for `count`, a sum over all negatives.

    Returns:
        Loss, summed over the two directions, and its parts. An anchor without a negative has no mismatched part.

    Raises:
        ShapeError: embeddings, banks, rows and critic do not fit together.

    Example:
        >>> rows = Candidates(positives=torch.tensor([1]), negatives=torch.tensor([0, 2, 3]))
        >>> banks, own = torch.eye(4).expand(2, 4, 4), torch.eye(4)[1:2]
        >>> dual = bank_dual(LipschitzCritic(4), own, own, banks, rows)
        >>> bool(torch.allclose(dual.loss, 2 * (dual.mismatched - dual.matched)))
        True

    Reference:
        Chen et al., Wasserstein Contrastive Representation Distillation, CVPR 2021, arXiv:2012.08674 (global
        contrastive transfer).
    """
    own_bank, other_bank = banks
    _check(critic, student, teacher, own_bank, other_bank)
    if candidates.positives.shape != student.shape[:1]:
        raise ShapeError(f"candidates for {len(candidates.positives)} anchors and {len(student)} embeddings; give B")
    with torch.autocast(student.device.type, enabled=False):
        layers = critic.layers()
        of_teacher, of_student = _parts(layers, student, teacher)
        against = _mismatch(of_teacher, layers.student, layers.readout, own_bank, candidates)
        towards = _mismatch(of_student + layers.bias, layers.teacher, layers.readout, other_bank, candidates)
        factor = candidates.num_negatives if neg_weight == "count" else 1
        return _dual(layers, of_teacher + of_student, (against + towards) / 2, factor, candidates.same_class)


def batch_dual(
    critic: LipschitzCritic,
    student: Tensor,
    teacher: Tensor,
    *,
    same_class: Tensor | None = None,
    neg_weight: NegWeight = "mean",
) -> Dual:
    """Dual with negatives from the batch: every teacher embedding with every student embedding of another image.

    Mismatched pairs have gradient to both embeddings, for nothing comes from a bank. Both directions read the same
    pairs, which are looked at once.

    Args:
        critic: its parameters receive gradient.
        student: `[B, D]` embeddings; receive gradient.
        teacher: `[B, D]` embeddings of the same images; receive gradient where they require it.
        same_class: `[B, B]` bool, symmetric, True where two images have one class: not a negative then.
        neg_weight: factor of the mismatched part: 1 for `mean`, B - 1 for `count`.

    Returns:
        Loss, summed over the two directions, and its parts. An image without a negative has no mismatched part.

    Raises:
        ShapeError: embeddings, mask and critic do not fit together.

    Example:
        >>> dual = batch_dual(LipschitzCritic(4), torch.eye(4), torch.eye(4))
        >>> bool(torch.allclose(dual.loss, 2 * (dual.mismatched - dual.matched)))
        True
    """
    _check(critic, student, teacher)
    size = len(student)
    left_out = torch.eye(size, dtype=torch.bool, device=student.device)
    if same_class is not None:
        if same_class.shape != left_out.shape:
            raise ShapeError(f"the same-class mask is {tuple(same_class.shape)}; give [B, B] = {[size, size]}")
        left_out = left_out | same_class
    with torch.autocast(student.device.type, enabled=False):
        layers = critic.layers()
        of_teacher, of_student = _parts(layers, student, teacher)
        weights = _mean_weights(left_out, of_teacher.dtype)
        mismatched = _pair_sum(of_teacher, of_student, layers.readout, (weights + weights.t()) / 2)
        factor = size - 1 if neg_weight == "count" else 1
        return _dual(layers, of_teacher + of_student, mismatched, factor, left_out)


def _parts(layers: CriticLayers, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden parts `[B, H]` of the teacher, with the bias, and of the student."""
    dtype = layers.readout.dtype
    return F.linear(teacher.to(dtype), layers.teacher, layers.bias), F.linear(student.to(dtype), layers.student)


def _dual(layers: CriticLayers, hidden: Tensor, mismatched: Tensor, factor: int, left_out: Tensor | None) -> Dual:
    """Put both parts together, measured from the critic's value at the origin, which keeps `count` bounded."""
    origin = layers.origin()
    any_negative = 1 if left_out is None else (~left_out).any().to(origin.dtype)
    matched, mismatched = layers.read(hidden).mean() - origin, mismatched - origin * any_negative
    return Dual(2 * (factor * mismatched - matched), matched.detach(), mismatched.detach())


def _mismatch(anchors: Tensor, weight: Tensor, readout: Tensor, bank: Tensor, candidates: Candidates) -> Tensor:
    """Mean value of hidden anchor parts `[B, H]` with their negatives, whose part is `weight` times a bank row."""
    with torch.no_grad():
        slopes_of = _slopes_of_shared if candidates.negatives.dim() == 1 else _slopes_per_sample
        by_anchor, by_weight = slopes_of(anchors, weight, bank, candidates)
    return ((anchors * by_anchor).sum(dim=0) + (weight * by_weight).sum(dim=1)) @ readout


def _mean_weights(left_out: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights `[B, S]` with sum 1: equal anchors that have a negative, and equal negatives of each."""
    kept = ~left_out
    counts = kept.sum(dim=1, keepdim=True)
    return kept / (counts.clamp(min=1) * (counts > 0).sum().clamp(min=1)).to(dtype)


def _pair_sum(anchors: Tensor, rows: Tensor, readout: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the critic's values over all pairs of hidden parts `[B, H]` and `[S, H]`."""
    with torch.no_grad():
        by_anchor, by_row = _slopes(anchors, rows, weights)
    return ((anchors * by_anchor).sum(dim=0) + (rows * by_row).sum(dim=0)) @ readout


def _slopes(anchors: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of the activation's slope over the rows, `[B, H]`, and over the anchors, `[S, H]`."""
    size, width = anchors.shape
    against, by_turns = -anchors, weights.t().contiguous()
    by_anchor, by_row = torch.zeros_like(anchors), torch.empty_like(rows)
    step = _chunk(anchors, size * width)
    spare = anchors.new_empty(min(step, len(rows)), size, width)
    for part in (slice(start, start + step) for start in range(0, len(rows), step)):
        share = by_turns[part]
        active = torch.gt(rows[part, None], against, out=spare[: len(share)])
        torch.bmm(share[:, None], active, out=by_row[part, None])
        by_anchor += active.mul_(share[..., None]).sum(dim=0)
    return _leaky(by_anchor, weights.sum(dim=1)), _leaky(by_row, weights.sum(dim=0))


def _slopes_of_shared(anchors: Tensor, weight: Tensor, bank: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Weighted sums of the activation's slope over the negatives, `[B, H]`, and of slope times row, `[H, D]`."""
    left_out = candidates.same_class
    if left_out is None:
        left_out = torch.zeros(len(anchors), candidates.num_negatives, dtype=torch.bool, device=anchors.device)
    rows = bank.index_select(0, candidates.negatives).to(anchors.dtype)
    by_anchor, by_row = _slopes(anchors, F.linear(rows, weight), _mean_weights(left_out, anchors.dtype))
    return by_anchor, by_row.t() @ rows


def _slopes_per_sample(anchors: Tensor, weight: Tensor, bank: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
    """As `_slopes_of_shared`, with negatives of each anchor's own, a few anchors at a time."""
    (size, width), count = anchors.shape, candidates.num_negatives
    by_anchor, by_weight = torch.empty_like(anchors), torch.zeros_like(weight)
    step = _chunk(anchors, count * width)
    for part in (slice(start, start + step) for start in range(0, size, step)):
        rows = bank.index_select(0, candidates.negatives[part].flatten()).to(anchors.dtype)
        hidden = F.linear(rows, weight).view(-1, count, width)
        slopes = torch.gt(hidden, -anchors[part, None], out=hidden).mul_(1 - LEAK).add_(LEAK)
        torch.sum(slopes, dim=1, out=by_anchor[part])
        by_weight.addmm_(slopes.flatten(0, 1).t(), rows)
    return by_anchor / (size * count), by_weight / (size * count)


def _leaky(active: Tensor, total: Tensor) -> Tensor:
    return (1 - LEAK) * active + LEAK * total[:, None]


def _chunk(like: Tensor, values: int) -> int:
    return max(1, (_CHUNK_VALUES if like.device.type == "cpu" else _CHUNK_VALUES_ELSEWHERE) // values)


def _check(critic: LipschitzCritic, student: Tensor, teacher: Tensor, *banks: Tensor) -> None:
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ShapeError(
            f"student embeddings {tuple(student.shape)} and teacher embeddings {tuple(teacher.shape)} must both be"
            " [B, D]; give both networks the same batch and a head of the same size"
        )
    critic.check(student, *banks)
