"""Entropic optimal transport between two sets of embeddings: the local term of WCoRD.

For a cost C, weights a of its rows and b of its columns, the plan P minimises

    sum(P * C) + eps * KL(P || a b^T)

among all P with row sums a and column sums b, or, relaxed, among all P with `rho * KL(row sums || a)` and the same for
the columns added. It is P = exp((f_i + g_j - C_ij) / eps), and Sinkhorn's iterations find the potentials f and g.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.core.errors import ConfigError, ShapeError
from coterie.losses.logits import at_least_float32

_LARGEST_FACTOR = 40.0  # of a round, as a logarithm: exp(40) leaves float32 as far from overflow as from underflow
_LONGEST_ROUND = 10  # iterations


@dataclass(frozen=True, slots=True)
class Plan:
    """What `sinkhorn` returns.

    Attributes:
        mass: `[R, C]` P, at least 0; its columns sum to their weights to rounding, its rows only when converged.
        rows: `[R]` potentials f, in units of the cost.
        columns: `[C]` potentials g.
    """

    mass: Tensor
    rows: Tensor
    columns: Tensor


def local_transport(
    student: Tensor,
    teacher: Tensor,
    *,
    eps: float = 0.05,
    iterations: int = 50,
    gradient: Literal["envelope", "unrolled"] = "envelope",
    student_weights: Tensor | None = None,
    teacher_weights: Tensor | None = None,
    rho: float | None = None,
) -> Tensor:
    """Cost of moving the batch of student embeddings onto the batch of teacher embeddings: sum(P * (1 - cosine)).

    No image is paired with itself: the loss compares two sets, does not change when either is permuted, and the sets
    may differ in size. The value has no entropy in it. Its `envelope` gradient takes the plan as a constant, which is
    the gradient of `sum(P * C) + eps * KL(P || a b^T)` at convergence and needs no graph through the iterations;
    `unrolled` is the derivative of the value itself.

    Args:
        student: `[R, D]` embeddings of any length but 0; receives gradient.
        teacher: `[C, D]` embeddings; receives gradient where it requires one, so detach what is frozen.
        eps: weight of the entropy, in units of the cost, which lies in [0, 2].
        iterations: how many; each one fits the rows, then the columns.
        gradient: see above.
        student_weights: `[R]` weights a with sum 1, 0 for rows to leave out; 1 / R each by default.
        teacher_weights: `[C]` weights b with sum 1.
        rho: how strictly the weights are kept; None for exactly.

    Returns:
        `[]`, in at least float32.

    Raises:
        ShapeError: the two sets have embeddings of different sizes, or weights do not fit.
        ConfigError: eps, rho or the number of iterations is not above 0.

    Example:
        >>> moved = torch.eye(3)[[2, 0, 1]]
        >>> round(float(local_transport(torch.eye(3), moved)), 6), round(float(local_transport(moved, -moved)), 4)
        (0.0, 1.0)

    Reference:
        Chen et al., Wasserstein Contrastive Representation Distillation, CVPR 2021, arXiv:2012.08674 (local
        contrastive transfer); Cuturi, Sinkhorn Distances, NeurIPS 2013.
    """
    with torch.autocast(student.device.type, enabled=False):
        cost = cosine_cost(student, teacher)
        given = cost if gradient == "unrolled" else cost.detach()
        plan = sinkhorn(given, eps=eps, iterations=iterations, a=student_weights, b=teacher_weights, rho=rho)
        return (plan.mass * cost).sum()


def cosine_cost(rows: Tensor, columns: Tensor) -> Tensor:
    """One minus the cosine of every row of one set and every row of the other.

    Args:
        rows: `[R, D]`; receives gradient.
        columns: `[C, D]`; receives gradient.

    Returns:
        `[R, C]` in [0, 2], in at least float32.

    Raises:
        ShapeError: they are not two matrices with rows of one size.

    Example:
        >>> cosine_cost(torch.eye(2), torch.tensor([[3.0, 0.0]]))
        tensor([[0.],
                [1.]])
    """
    if rows.dim() != 2 or columns.dim() != 2 or rows.shape[1] != columns.shape[1]:
        raise ShapeError(
            f"embeddings {tuple(rows.shape)} and {tuple(columns.shape)} must be [R, D] and [C, D] with one D;"
            " project both to the same size"
        )
    return 1 - F.normalize(at_least_float32(rows), dim=1) @ F.normalize(at_least_float32(columns), dim=1).t()


def sinkhorn(
    cost: Tensor,
    *,
    eps: float = 0.05,
    iterations: int = 50,
    a: Tensor | None = None,
    b: Tensor | None = None,
    rho: float | None = None,
) -> Plan:
    """Find the entropic plan by a set number of Sinkhorn iterations from potentials 0, in the log domain.

    Iterations go in rounds. A round begins with an iteration of log-sum-exps; the others of that round multiply by
    its row-wise and column-wise softmax, which is the same in exact arithmetic and a fraction of the work. With uniform
    weights the potentials move by at most eps * log(max(R, C)) in an iteration once the first is made, so a round of
    bounded length can neither overflow nor underflow; with other weights, and relaxed, each round is one iteration.

    Args:
        cost: `[R, C]`; the graph goes through all iterations where it requires gradient.
        eps: weight of the entropy, in units of the cost.
        iterations: how many; nothing is read back to the host and none is left out.
        a: `[R]` weights of the rows with sum 1; 1 / R each by default.
        b: `[C]` weights of the columns with sum 1.
        rho: weight of the KL divergences of the plan's row and column sums from a and b; None keeps them exactly.

    Returns:
        The plan and its potentials, in the cost's dtype, at least float32.

    Raises:
        ShapeError: the cost is not a matrix, or weights do not fit it.
        ConfigError: eps, rho or the number of iterations is not above 0.

    Example:
        >>> sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]])).mass.round(decimals=6)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])

    Reference:
        Peyre and Cuturi, Computational Optimal Transport, 2019, sections 4.4 and 10.2; Chizat et al., Scaling
        Algorithms for Unbalanced Optimal Transport Problems, Mathematics of Computation 2018 (rho).
    """
    _check(cost, eps, iterations, rho)
    kernel = at_least_float32(cost) / -eps
    log_a, log_b = _log_weights(a, kernel, 0), _log_weights(b, kernel, 1)
    power = 1.0 if rho is None else rho / (rho + eps)
    exact = a is None and b is None and rho is None
    u, v = kernel.new_zeros(cost.shape[0]), kernel.new_zeros(cost.shape[1])
    for length in _rounds(iterations, max(cost.shape) if exact else None):
        u, v = _round(kernel, v, log_a, log_b, power, length)
    return Plan((kernel + u[:, None] + v).exp(), u * eps, v * eps)


def _round(kernel: Tensor, v: Tensor, log_a: Tensor, log_b: Tensor, power: float, length: int) -> tuple[Tensor, Tensor]:
    """One iteration of log-sum-exps, then `length - 1` that correct it by factors p of the rows and q of the columns.

    The fit of a row is u_i = log a_i - power * LSE_j(kernel_ij + v_j). After the first one of a round, with power 1,
    that is u_i + log p_i with 1 / p_i = sum_j softmax_j(kernel_ij + v_j) q_j: a mean of positive numbers.
    """
    by_row = kernel + v
    fit = torch.logsumexp(by_row, dim=1)
    u = log_a - power * fit
    by_column = kernel + u[:, None]
    log_sums = torch.logsumexp(by_column, dim=0)
    moved = log_b - power * log_sums
    if length == 1:
        return u, moved
    rows, columns = (by_row - fit[:, None]).exp(), (by_column - log_sums).exp()
    first = (moved - v).exp()
    p, q = torch.ones_like(u), first
    for _ in range(length - 1):
        p = (rows @ q).reciprocal()
        q = first / (p @ columns)
    return u + p.log(), v + q.log()


def _rounds(iterations: int, size: int | None) -> Iterator[int]:
    """Lengths of the rounds, with that sum: the first is 1, the others as long as factors stay in bounds."""
    longest = 1 if size is None else max(1, min(_LONGEST_ROUND, int(_LARGEST_FACTOR / math.log(max(size, 2)))))
    yield 1
    whole, rest = divmod(iterations - 1, longest)
    yield from [longest] * whole
    if rest:
        yield rest


def _log_weights(weights: Tensor | None, kernel: Tensor, axis: int) -> Tensor:
    size = kernel.shape[axis]
    if weights is None:
        return kernel.new_full((size,), -math.log(size))
    if weights.shape != (size,):
        raise ShapeError(
            f"weights {tuple(weights.shape)} for axis {axis} of a cost {tuple(kernel.shape)}; give [{size}]"
        )
    return weights.to(kernel.dtype).log()


def _check(cost: Tensor, eps: float, iterations: int, rho: float | None) -> None:
    if cost.dim() != 2 or 0 in cost.shape:
        raise ShapeError(f"the cost of a transport is {tuple(cost.shape)}; give [R, C] with at least one of each")
    for name, value in (("eps", eps), ("iterations", iterations), ("rho", rho)):
        if value is not None and value <= 0:
            raise ConfigError(f"{name}={value} of the transport; give a number above 0")
