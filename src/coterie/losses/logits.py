"""Losses between logits: cross-entropy of a cohort, soft targets, and the mean of a cohort's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ShapeError


def kl_logits(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, detach: bool = True, offset: float = 0.0
) -> Tensor:
    """KL divergence from the teacher's softened class probabilities to the student's.

    Summed over classes, averaged over the batch and multiplied by the temperature squared, so that its gradient keeps
    the scale of a cross-entropy. Half-precision logits are raised to float32 first.

    Args:
        student: `[B, K]` raw class scores; receives gradient.
        teacher: `[B, K]` raw class scores of the target; receives gradient only with `detach=False`.
        temperature: T > 0, divides both logits before the softmax.
        detach: treat the teacher as a constant.
        offset: added to every probability of the teacher, which then sum to a little more than 1; some published code
            adds 1e-7.

    Returns:
        `[]`, at least 0 without an offset; 0 when both say the same.

    Raises:
        ShapeError: the two shapes differ or are not `[B, K]`.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> float(kl_logits(logits, logits)), round(float(kl_logits(logits, -logits, temperature=2.0)), 4)
        (0.0, 1.8485)

    Reference:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 2.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ShapeError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must both be [B, K];"
            " give both networks the same batch and classes"
        )
    target = teacher.detach() if detach else teacher
    log_student = F.log_softmax(at_least_float32(student) / temperature, dim=1)
    log_target = F.log_softmax(at_least_float32(target) / temperature, dim=1)
    if offset:
        return F.kl_div(log_student, log_target.exp() + offset, reduction="batchmean") * temperature**2
    return F.kl_div(log_student, log_target, reduction="batchmean", log_target=True) * temperature**2


def summed_kl(
    logits: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    temperature: float = 1.0,
    detach: bool = True,
    offset: float = 0.0,
) -> Tensor:
    """KL divergence from a target to each peer, summed over the peers; see `kl_logits`.

    Args:
        logits: M times `[B, K]`; each receives gradient from its own target only.
        targets: M times `[B, K]` raw class scores, one for each peer.
        temperature: divides all of them before the softmax.
        detach: treat the targets as constants.
        offset: added to every probability of the targets.

    Returns:
        `[]`, in at least float32.

    Example:
        >>> float(summed_kl([torch.eye(3)] * 2, [torch.eye(3)] * 2, temperature=3.0))
        0.0
    """
    pairs = zip(logits, targets, strict=True)
    pulls = [kl_logits(own, goal, temperature=temperature, detach=detach, offset=offset) for own, goal in pairs]
    return torch.stack(pulls).sum()


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy with a distribution over classes instead of a label, averaged over the batch.

    Args:
        logits: `[B, K]` raw class scores; receives gradient.
        probabilities: `[B, K]`, rows that sum to 1; a constant.

    Returns:
        `[]`, in at least float32; the entropy of the target when both agree.

    Example:
        >>> round(float(soft_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.3, 0.7]]))), 4)
        0.6931
    """
    log_own = F.log_softmax(at_least_float32(logits), dim=1)
    return -(probabilities.detach() * log_own).sum(dim=1).mean()


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Average the logits of a cohort: the naive ensemble.

    Args:
        logits: M times `[B, K]`; each receives gradient unless the result is detached.

    Returns:
        `[B, K]`, at least float32.

    Raises:
        ShapeError: there are none, or their shapes differ.

    Example:
        >>> mean_logits([torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 5.0]])])
        tensor([[2., 4.]])
    """
    shapes = [tuple(scores.shape) for scores in logits]
    if len(set(shapes)) != 1:
        raise ShapeError(f"logits of a cohort have shapes {shapes}; give at least one [B, K], all of one shape")
    return torch.stack([at_least_float32(scores) for scores in logits]).mean(dim=0)


def mean_of_others(logits: Sequence[Tensor]) -> list[Tensor]:
    """For each peer the mean of the logits of all other peers.

    Args:
        logits: M times `[B, K]`, at least two; each receives gradient unless the result is detached.

    Returns:
        M times `[B, K]`, at least float32.

    Example:
        >>> [float(mean) for mean in mean_of_others([torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.zeros(1, 1)])]
        [1.0, 0.5, 1.5]
    """
    return [mean_logits([*logits[:m], *logits[m + 1 :]]) for m in range(len(logits))]


def summed_cross_entropy(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy with the labels, averaged over the batch and summed over the peers.

    Args:
        logits: M times `[B, K]` raw class scores; each receives gradient.
        labels: `[B]` int64.

    Returns:
        `[]`, in at least float32.

    Example:
        >>> float(summed_cross_entropy([torch.zeros(3, 1)] * 2, torch.zeros(3, dtype=torch.int64)))
        0.0
    """
    return torch.stack([F.cross_entropy(at_least_float32(scores), labels) for scores in logits]).sum()


def at_least_float32(values: Tensor) -> Tensor:
    """Raise half-precision values to float32 and leave float32 and float64 alone; gradient passes."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def in_longest(values: Tensor) -> Tensor:
    """Convert to the longest floating point of the tensor's device: float64, or float32 on Apple's accelerator."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)
