"""One soft target made of the logits of a whole cohort, with the help of the labels or of held-out images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.losses.logits import at_least_float32, in_longest


def naive_target(logits: Tensor, labels: Tensor, *, per: str = "sample") -> Tensor:
    """The logits of the peer with the smallest cross-entropy.

    Args:
        logits: `[M, B, K]` raw class scores; each receives gradient where it is chosen, unless the result is detached.
        labels: `[B]` int64.
        per: choose for each `sample`, or one peer for the whole `batch`.

    Returns:
        `[B, K]`.

    Example:
        >>> naive_target(torch.tensor([[[0.0, 1.0]], [[3.0, 0.0]]]), torch.tensor([0]))
        tensor([[3., 0.]])

    Reference:
        Guo et al., Online Knowledge Distillation via Collaborative Learning, CVPR 2020, section 3.2 (KDCL-Naive).
    """
    losses = F.cross_entropy(at_least_float32(logits).movedim(2, 1), labels.expand(logits.shape[:2]), reduction="none")
    losses = losses if per == "sample" else losses.mean(dim=1, keepdim=True).expand_as(losses)
    chosen = losses.argmin(dim=0)[None, :, None].expand(1, *logits.shape[1:])
    return logits.gather(0, chosen)[0]


def min_logit_target(logits: Tensor, labels: Tensor) -> Tensor:
    """The smallest logit of each class among the peers, once each peer's true logit is shifted to 0.

    Its cross-entropy is at most that of any peer: all rivals of the true class are lowered, the true class stays.

    Args:
        logits: `[M, B, K]` raw class scores; each receives gradient where it is smallest, unless detached.
        labels: `[B]` int64.

    Returns:
        `[B, K]`, 0 at the true class.

    Example:
        >>> min_logit_target(torch.tensor([[[2.0, 1.0, 4.0]], [[1.0, 2.0, 0.0]]]), torch.tensor([0]))
        tensor([[ 0., -1., -1.]])

    Reference:
        Guo et al., Online Knowledge Distillation via Collaborative Learning, CVPR 2020, section 3.2 (KDCL-MinLogit).
    """
    true = logits.gather(2, labels.expand(logits.shape[0], -1)[..., None])
    return (logits - true).amin(dim=0)


def error_products(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Inner products of the peers' errors, summed over images.

    Args:
        logits: M times `[B, K]` raw class scores on held-out images; no gradient flows.
        labels: `[B]` int64.

    Returns:
        `[M, M]` float64 where the device has it: entry (i, j) is the sum over images of <p_i - t, p_j - t> with
        probabilities p and one-hot labels t; divided by the number of images it is the error matrix.

    Example:
        >>> error_products([torch.zeros(1, 2)] * 2, torch.tensor([1]))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    chances = torch.stack([in_longest(scores.detach()).softmax(dim=1) for scores in logits])
    errors = (chances - F.one_hot(labels, chances.shape[2])).flatten(1)
    return errors.mm(errors.t())


def least_error_weights(matrix: Tensor, *, ridge: float = 1e-6) -> Tensor:
    """Weights with sum 1 whose mixture has the smallest squared error; they may be negative.

    Args:
        matrix: `[M, M]` error matrix, symmetric.
        ridge: added to its diagonal as a share of the mean diagonal entry, so that equal peers have an answer.

    Returns:
        `[M]`: the row sums of the inverse, divided by their sum.

    Example:
        >>> least_error_weights(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), ridge=0.0)
        tensor([0.7500, 0.2500])

    Reference:
        Guo et al., Online Knowledge Distillation via Collaborative Learning, CVPR 2020, section 3.2 (KDCL-General).
    """
    identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    sums: Tensor = torch.linalg.solve(matrix + ridge * matrix.diagonal().mean() * identity, torch.ones_like(matrix[0]))
    return sums / sums.sum()
