"""Losses between logits: cross-entropy of a cohort, soft targets, and the mean of a cohort's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ShapeError


def kl_logits(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, detach: bool = True) -> Tensor:
    """KL divergence from the teacher's softened class probabilities to the student's.

    Summed over classes, averaged over the batch and multiplied by the temperature squared, so that its gradient keeps
    the scale of a cross-entropy. Half-precision logits are raised to float32 first.

    Args:
        student: `[B, K]` raw class scores; receives gradient.
        teacher: `[B, K]` raw class scores of the target; receives gradient only with `detach=False`.
        temperature: T > 0, divides both logits before the softmax.
        detach: treat the teacher as a constant.

    Returns:
        `[]`, at least 0; 0 when both say the same.

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
    return F.kl_div(log_student, log_target, reduction="batchmean", log_target=True) * temperature**2


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
