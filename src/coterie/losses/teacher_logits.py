"""Losses between the logits of a student and a frozen teacher, beyond the plain KL of `kl_logits`."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.logits import kl_logits
from coterie.losses.teaching import lesson

_REMEDY = "give both networks the same batch and classes"


def dkd_parts(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
    """Decouple the KL of two sets of logits into the true class against the rest, and the classes of the rest.

    Plain KD is the first part plus the second one weighted by the teacher's doubt `1 - p_y`, sample by sample.

    Args:
        student: `[B, K]` raw class scores of K > 1 classes; receives gradient.
        teacher: `[B, K]` raw class scores; a constant.
        labels: `[B]` int64.
        temperature: T, divides all logits; both parts carry a factor T squared.

    Returns:
        The target-class part and the non-target-class part, both `[]`, at least float32, means over the batch.

    Raises:
        ShapeError: the shapes differ, there is one class only, or labels do not fit.

    Example:
        >>> logits, labels = torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0])
        >>> target, others = dkd_parts(logits, logits + torch.tensor([[5.0, 0.0, 0.0]]), labels)
        >>> bool(target > 1), float(others)  # they disagree about the true class only
        (True, 0.0)

    Reference:
        Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, arXiv:2203.08679, equation 7.
    """
    student, teacher = lesson(student, teacher, axes="B, K", shared=2, remedy=_REMEDY)
    if labels.shape != student.shape[:1] or student.shape[1] < 2:
        raise ShapeError(
            f"logits {tuple(student.shape)} and labels {tuple(labels.shape)} must be [B, K] of two or more classes and"
            " [B]; give each image one label"
        )
    one, rest = _split(student, labels)
    goal, goals = _split(teacher, labels)
    pair, target = (_against(a / temperature, b / temperature) for a, b in ((one, rest), (goal, goals)))
    return kl_logits(pair, target) * temperature**2, kl_logits(rest, goals, temperature=temperature)


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled knowledge distillation: both parts of `dkd_parts`, weighted.

    Args:
        student: `[B, K]` raw class scores; receives gradient.
        teacher: `[B, K]` raw class scores; a constant.
        labels: `[B]` int64.
        alpha: weight of the target-class part.
        beta: weight of the non-target-class part.
        temperature: T.

    Returns:
        `[]`, at least float32.

    Raises:
        ShapeError: as `dkd_parts`.
    """
    target, others = dkd_parts(student, teacher, labels, temperature=temperature)
    return alpha * target + beta * others


def dist_loss(
    student: Tensor, teacher: Tensor, *, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Match the correlations of softened probabilities, over the classes of an image and over the images of a class.

    Args:
        student: `[B, K]` raw class scores; receives gradient.
        teacher: `[B, K]` raw class scores; a constant.
        inter: weight of 1 minus the mean correlation over classes.
        intra: weight of 1 minus the mean correlation over the batch.
        temperature: tau; both parts carry a factor tau squared.

    Returns:
        `[]`, at least float32; 0 for equal logits, whose probabilities are not all the same.

    Raises:
        ShapeError: the two shapes differ or are not `[B, K]`.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 3.0]])
        >>> round(float(dist_loss(logits, -logits)), 4)  # both correlations are -1
        4.0

    Reference:
        Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv:2205.10536.
    """
    student, teacher = lesson(student, teacher, axes="B, K", shared=2, remedy=_REMEDY)
    own, goal = ((logits / temperature).softmax(dim=1) for logits in (student, teacher))
    return temperature**2 * (inter * _uncorrelated(own, goal) + intra * _uncorrelated(own.t(), goal.t()))


def standardised_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 2.0, times_squared_temperature: bool = True
) -> Tensor:
    """KL between logits whose rows have been given mean 0 and standard deviation 1, so that ranks count, not sizes.

    Args:
        student: `[B, K]` raw class scores of K > 1 classes; receives gradient.
        teacher: `[B, K]` raw class scores; a constant.
        temperature: T, divides the standardised logits.
        times_squared_temperature: multiply by T squared as in every other KL; the published code leaves it out when
            there is no cross-entropy beside.

    Returns:
        `[]`, at least float32, mean over the batch.

    Raises:
        ShapeError: the two shapes differ, are not `[B, K]`, or there is one class only.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
        >>> round(float(standardised_kl(logits, 10 * logits + 3)), 5)
        0.0

    Reference:
        Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv:2403.01427.
    """
    student, teacher = lesson(student, teacher, axes="B, K", shared=2, remedy=_REMEDY)
    if student.shape[1] < 2:
        raise ShapeError(f"logits {tuple(student.shape)} must be [B, K]; give two or more classes to standardise over")
    loss = kl_logits(_standardised(student), _standardised(teacher), temperature=temperature)
    return loss if times_squared_temperature else loss / temperature**2


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The true class `[B, 1]` and all others `[B, K - 1]`, in order."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = others + (others >= labels[:, None]).long()
    return logits.gather(1, labels[:, None]), logits.gather(1, others)


def _against(one: Tensor, rest: Tensor) -> Tensor:
    """Logits `[B, 2]` of one class and of all others together."""
    return torch.cat([one, rest.logsumexp(dim=1, keepdim=True)], dim=1)


def _uncorrelated(own: Tensor, goal: Tensor) -> Tensor:
    """1 minus the mean over rows of Pearson's correlation; `[R, C]` twice to `[]`."""
    own, goal = (values - values.mean(dim=1, keepdim=True) for values in (own, goal))
    lengths: Tensor = torch.linalg.vector_norm(own, dim=1) * torch.linalg.vector_norm(goal, dim=1)
    return 1 - ((own * goal).sum(dim=1) / (lengths + 1e-8)).mean()


def _standardised(logits: Tensor) -> Tensor:
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)
