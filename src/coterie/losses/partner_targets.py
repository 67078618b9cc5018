"""What several partners say together, each trusted so far, and the pull towards it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.losses.logits import at_least_float32


def trusted_mean(logits: Sequence[Tensor], trust: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Average the class probabilities of partners, each weighted by how far it is trusted for an image.

    q_b = sum_j a_jb softmax(z_jb) / sum_j a_jb, to be followed as far as the most trusted partner, a_b = max_j a_jb.

    Args:
        logits: J times `[B, K]` raw class scores, at least one; constants.
        trust: J times `[B]` in `[0, 1]`.

    Returns:
        `[B, K]` probabilities, 0 for an image about which no partner is trusted, and the trust `[B]` in them; constants
        in at least float32.

    Example:
        >>> mean, trust = trusted_mean([torch.zeros(1, 2), torch.ones(1, 2)], [torch.tensor([0.5]), torch.zeros(1)])
        >>> mean.tolist(), trust.tolist()
        ([[0.5, 0.5]], [0.5])
    """
    with torch.no_grad():
        chances = torch.stack([at_least_float32(scores).softmax(dim=1) for scores in logits])
        weights = torch.stack([at_least_float32(share) for share in trust])
        total = weights.sum(dim=0)
        mean = (weights[:, :, None] * chances).sum(dim=0) / total.masked_fill(total == 0, 1)[:, None]
        return mean, weights.amax(dim=0)


def trusted_cross_entropy(logits: Tensor, target: Tensor, trust: Tensor) -> Tensor:
    """Cross-entropy with a distribution over classes, of each image as far as its target is trusted.

    (1 / B) sum_b a_b H(q_b, softmax(z_b)): an image without a target counts in B and adds nothing.

    Args:
        logits: `[B, K]` raw class scores; receives gradient.
        target: `[B, K]` probabilities; a constant.
        trust: `[B]` in `[0, 1]`; a constant.

    Returns:
        `[]`, in at least float32.

    Example:
        >>> logits, target = torch.zeros(2, 2), torch.tensor([[0.3, 0.7], [0.0, 0.0]])
        >>> round(float(trusted_cross_entropy(logits, target, torch.tensor([1.0, 0.0]))), 4)
        0.3466
    """
    log_own = F.log_softmax(at_least_float32(logits), dim=1)
    return -(trust[:, None] * target * log_own).sum(dim=1).mean()


def trusted_entropy(target: Tensor, trust: Tensor) -> Tensor:
    """What `trusted_cross_entropy` is at the least, so that the difference is a KL divergence; a constant `[]`."""
    surprise: Tensor = torch.special.xlogy(target, target).sum(dim=1)
    return -(trust * surprise).mean()
