"""The best convex combination of a cohort's logits: a small convex problem, solved on the device in a few steps.

    minimise over a: mean over rows of CE(sum_m a_m z_m, y),  a_m >= 0,  sum_m a_m = 1

by a primal-dual interior-point method of a set number of steps. Nothing is read back to the host, and all problems of a
batch are solved at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ShapeError
from coterie.losses.logits import in_longest

_CENTRING = 0.1  # share of the complementarity gap that a step aims at
_TO_WALL = 0.99  # share of the way to the nearest wall that a step may go
_FLATTEST = 1e-8  # least curvature as a share of the mean one: equal peers leave the weights open
_ROUNDING = 1e-12  # in cross-entropy: equal peers keep equal weights


@torch.no_grad()
def simplex_weights(logits: Tensor, labels: Tensor, *, per: str = "sample", steps: int = 30) -> Tensor:
    """Weights on the simplex whose combination of logits has the smallest cross-entropy.

    Computed in float64 where the device has it. With 30 steps the cross-entropy is above the smallest one by less than
    1e-12 for logits of standard deviation 5 and by less than 1e-8 for 12; it is never above that of the best peer.

    Args:
        logits: `[M, B, K]` raw class scores of the peers; no gradient flows.
        labels: `[B]` int64.
        per: `sample` for weights of each image, `batch` for one set of weights that serves the mean.
        steps: of the interior-point method.

    Returns:
        `[M, B]`, or `[M, 1]` per batch, at least 0 with sum 1 over M; at least float32, a constant.

    Raises:
        ShapeError: the logits are not `[M, B, K]`.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])
        >>> simplex_weights(logits, torch.tensor([0])).round(decimals=3)
        tensor([[1.],
                [0.]])

    Reference:
        Guo et al., Online Knowledge Distillation via Collaborative Learning, CVPR 2020, section 3.2 (KDCL-Linear).
    """
    if logits.dim() != 3 or labels.shape != logits.shape[1:2]:
        raise ShapeError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; give [M, B, K] and [B]")
    scores = in_longest(logits)
    scores = scores - scores.gather(2, labels.expand(scores.shape[0], -1)[..., None])
    rows = scores.transpose(0, 1)
    problems = rows[:, None] if per == "sample" else rows[None]
    weights = _no_worse_than_one(problems, _interior_point(problems, steps))
    return weights.t().to(torch.promote_types(logits.dtype, torch.float32))


def _interior_point(problems: Tensor, steps: int) -> Tensor:
    """Solve P problems `[P, R, M, K]`, scores relative to the true class, to weights `[P, M]`."""
    count, _, peers, _ = problems.shape
    weights = problems.new_full((count, peers), 1 / peers)
    slope = _derivatives(problems, weights)[0]
    lowest = slope.amin(dim=1, keepdim=True)
    duals = slope - lowest + 0.1 * (slope.amax(dim=1, keepdim=True) - lowest) + 1e-3
    for _ in range(steps):
        move, change = _direction(problems, weights, duals)
        length = _length(problems, move, torch.stack([weights, duals]), torch.stack([move, change]))
        weights, duals = weights + length * move, duals + length * change
        weights = weights / weights.sum(dim=1, keepdim=True)
    return weights


def _direction(problems: Tensor, weights: Tensor, duals: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's direction of weights and duals `[P, M]` towards a tenth of the present complementarity gap."""
    slope, curvature = _derivatives(problems, weights)
    gap = _CENTRING * (weights * duals).mean(dim=1, keepdim=True)
    least = _FLATTEST * curvature.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
    system = curvature + torch.diag_embed(duals / weights + least)
    sides = torch.stack([gap / weights - slope, torch.ones_like(slope)], dim=2)
    free, level = torch.linalg.solve_ex(system, sides)[0].unbind(dim=2)
    move = free - free.sum(dim=1, keepdim=True) / level.sum(dim=1, keepdim=True) * level
    return move, (gap - duals * move) / weights - duals


def _derivatives(problems: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient `[P, M]` and Hessian `[P, M, M]` of the mean cross-entropy in the weights."""
    chances = torch.einsum("pm,prmk->prk", weights, problems).softmax(dim=2)
    means = torch.einsum("prk,prmk->prm", chances, problems)
    squares = torch.einsum("prmk,prnk->pmn", problems * chances[:, :, None], problems)
    return means.mean(dim=1), (squares - torch.einsum("prm,prn->pmn", means, means)) / problems.shape[1]


def _length(problems: Tensor, move: Tensor, places: Tensor, moves: Tensor) -> Tensor:
    """Share `[P, 1]` of a step that stays within the walls and where the cross-entropy is still close to quadratic."""
    walls = torch.where(moves < 0, -places / moves, torch.inf).amin(dim=(0, 2))[:, None]
    shifts = torch.einsum("pm,prmk->prk", move, problems)
    spread = (shifts.amax(dim=2) - shifts.amin(dim=2)).amax(dim=1, keepdim=True) / 4
    damping = torch.where(spread > 1e-3, spread.log1p() / spread, 1.0)
    return torch.minimum(_TO_WALL * walls, damping).clamp(max=1)


def _no_worse_than_one(problems: Tensor, weights: Tensor) -> Tensor:
    """Replace weights `[P, M]` by those of the best single peer where that one is better or the solver has failed."""
    peers = weights.shape[1]
    single = torch.eye(peers, dtype=weights.dtype, device=weights.device)
    alone = problems.logsumexp(dim=3).mean(dim=1)
    together = torch.einsum("pm,prmk->prk", weights, problems).logsumexp(dim=2).mean(dim=1)
    best = F.embedding(alone.argmin(dim=1), single)
    return torch.where((together <= alone.amin(dim=1) + _ROUNDING)[:, None], weights, best)
