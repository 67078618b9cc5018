"""A critic of pairs of embeddings that is never steeper than 1, for the Kantorovich-Rubinstein dual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.core.errors import ShapeError
from coterie.losses.logits import in_longest

LEAK = 0.2
"""Slope of the critic's activation below 0."""

_SQUARINGS = 7  # bound at most 128 ** (1 / 2**9), 0.95 %, above the norm of a matrix of rank 128
_ROUNDING = 1e-6  # added to the bound, relative: what its own rounding and that of the divided weights could take away


@dataclass(frozen=True, slots=True)
class CriticLayers:
    """The weights a critic really uses, after normalisation, and what they make of pairs.

    The value of a pair (t, s) is `readout . leaky(teacher t + student s + bias)`, measured from that of the pair of
    zeros: a constant would cancel in every difference, and without one |g(t, s)| <= |(t, s)|.

    Attributes:
        teacher: `[H, D]`, applied to the teacher's embedding.
        student: `[H, D]`, applied to the student's embedding.
        bias: `[H]`.
        readout: `[H]`.
    """

    teacher: Tensor
    student: Tensor
    bias: Tensor
    readout: Tensor

    def hidden(self, teacher: Tensor, student: Tensor) -> Tensor:
        """What the activation sees, `[..., H]`, for embeddings `[..., D]`."""
        return F.linear(teacher, self.teacher, self.bias) + F.linear(student, self.student)

    def read(self, hidden: Tensor) -> Tensor:
        """Readout `[...]` of what the activation makes of hidden values `[..., H]`."""
        return F.leaky_relu(hidden, LEAK) @ self.readout

    def origin(self) -> Tensor:
        """Readout `[]` of the pair of zeros."""
        return self.read(self.bias)

    def values(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The critic's value `[...]` for pairs of embeddings `[..., D]`, with gradient to all."""
        return self.read(self.hidden(teacher, student)) - self.origin()

    def slopes(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Derivative of the value by the pair, `[..., 2D]`, teacher first; with gradient to the weights."""
        active = (self.hidden(teacher, student) > 0).to(self.readout.dtype)
        return ((LEAK + (1 - LEAK) * active) * self.readout) @ torch.cat([self.teacher, self.student], dim=1)


class LipschitzCritic(nn.Module):
    """g(teacher, student): linear on the concatenated pair, leaky ReLU of slope 0.2, linear to one number; 0 for zeros.

    Guarantee: |g(x) - g(y)| <= |x - y| for all pairs x, y in exact arithmetic, at every moment: after construction,
    between and after optimiser steps, in training and in evaluation. Each layer is divided by an upper bound of its
    spectral norm that is computed from its present weights alone (`norm_bound`), not by the estimate of a power
    iteration, which lags behind the weights and lies below the norm. The activation is nowhere steeper than 1. The
    bound exceeds the norm by less than 1 percent for D up to 128, so the critic is not much flatter than allowed
    either. There is no state but the parameters.

    Computed in the dtype of its weights, inside autocast too.

    Args:
        dim: D of both embeddings, and size of the hidden layer.
        normalise: divide the layers as above; without it the critic is free, for use with `gradient_penalty`.

    Example:
        >>> critic = LipschitzCritic(4)
        >>> x, y = torch.randn(2, 9, 8).double(), torch.randn(2, 9, 8).double()
        >>> there, here = critic.double()(*x.chunk(2, -1)), critic(*y.chunk(2, -1))
        >>> bool(((there - here).abs() <= (x - y).norm(dim=-1)).all())
        True

    Reference:
        Chen et al., Wasserstein Contrastive Representation Distillation, CVPR 2021, arXiv:2012.08674 (global
        contrastive transfer); Miyato et al., Spectral Normalization, ICLR 2018 (layers divided by their norm).
    """

    def __init__(self, dim: int = 128, *, normalise: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.normalise = normalise
        self.first = nn.Linear(2 * dim, dim)
        self.second = nn.Linear(dim, 1, bias=False)

    def layers(self) -> CriticLayers:
        """The weights in use, with gradient to the parameters; take them once in a step."""
        weight, readout = self.first.weight, self.second.weight.squeeze(0)
        if self.normalise:
            weight = weight / norm_bound(weight)
            readout = readout / norm_bound(readout[None])
        return CriticLayers(weight[:, : self.dim], weight[:, self.dim :], self.first.bias, readout)

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Judge pairs.

        Args:
            teacher: `[..., D]`; receives gradient.
            student: `[..., D]`; receives gradient.

        Returns:
            `[...]`.

        Raises:
            ShapeError: the embeddings are not of the critic's size.
        """
        self.check(teacher, student)
        with torch.autocast(teacher.device.type, enabled=False):
            dtype = self.first.weight.dtype
            return self.layers().values(teacher.to(dtype), student.to(dtype))

    def check(self, *embeddings: Tensor) -> None:
        """Refuse embeddings `[..., D]` of another size than the critic's."""
        for rows in embeddings:
            if rows.shape[-1] != self.dim:
                raise ShapeError(
                    f"embeddings {tuple(rows.shape)} for a critic of size {self.dim}; project both to [B, {self.dim}]"
                )


def norm_bound(weight: Tensor, squarings: int = _SQUARINGS) -> Tensor:
    """Upper bound of the spectral norm of a matrix, differentiable once and without memory of earlier calls.

    With G the matrix times its transpose and n = 2 ** squarings it is |G ** n| ** (1 / 2n) in the Frobenius norm, which
    lies between the spectral norm and rank ** (1 / 4n) times it. Computed in float64 where the device has it, and
    raised by 1e-6 for rounding.

    Args:
        weight: `[R, C]`; receives gradient.
        squarings: of G; each one halves the gap.

    Returns:
        `[]`, in the weight's dtype.

    Example:
        >>> norm_bound(torch.diag(torch.tensor([3.0, 4.0])))
        tensor(4.0000)

    Reference:
        Delattre et al., Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration, ICML 2023.
    """
    with torch.no_grad():
        value, slope = _gram_bound(weight if weight.shape[0] <= weight.shape[1] else weight.t(), squarings)
    slope = slope if weight.shape[0] <= weight.shape[1] else slope.t()
    return value + ((weight - weight.detach()) * slope).sum()


def _gram_bound(rows: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
    """The bound `[]` and its derivative by the matrix, which is proportional to G ** (2n - 1) times the matrix.

    The bound being homogeneous of degree 1, derivative and matrix have the bound as their inner product.
    """
    exact = in_longest(rows)
    power = exact @ exact.t()
    log_bound = power.new_zeros(())
    product = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    for k in range(squarings + 1):
        scale = power.norm()
        log_bound += scale.log() / 2**k
        power = power / scale
        product = product @ power.to(rows.dtype)
        if k < squarings:
            power = power @ power
    value = ((1 + _ROUNDING) * (0.5 * log_bound).exp()).to(rows.dtype)
    slope = product @ rows
    return value, slope * (value / (slope * rows).sum())


def gradient_penalty(
    critic: LipschitzCritic, joint: tuple[Tensor, Tensor], product: tuple[Tensor, Tensor], mix: Tensor
) -> Tensor:
    """Penalty on slopes other than 1 between matched and mismatched pairs, the alternative to normalised layers.

    Args:
        critic: usually one with `normalise=False`; its parameters receive gradient, the embeddings do not.
        joint: teacher and student embeddings of matched pairs, `[B, D]` each.
        product: teacher and student embeddings of mismatched pairs, `[B, D]` each.
        mix: `[B]` in [0, 1), drawn by the caller: the share of the matched pair at each point looked at.

    Returns:
        `[]`, mean of (slope - 1) squared.

    Raises:
        ShapeError: the embeddings are not of the critic's size.

    Example:
        >>> flat = LipschitzCritic(2, normalise=False)
        >>> _ = nn.init.zeros_(flat.second.weight)
        >>> pair = torch.eye(2), torch.eye(2)
        >>> gradient_penalty(flat, pair, pair, torch.rand(2)).item()
        1.0

    Reference:
        Gulrajani et al., Improved Training of Wasserstein GANs, NeurIPS 2017, arXiv:1704.00028, equation 3.
    """
    critic.check(*joint, *product)
    with torch.autocast(mix.device.type, enabled=False):
        ends = [torch.stack(pair).detach().to(critic.first.weight.dtype) for pair in (product, joint)]
        points = torch.lerp(ends[0], ends[1], mix.to(ends[0].dtype)[:, None])
        steepness: Tensor = torch.linalg.vector_norm(critic.layers().slopes(points[0], points[1]), dim=-1)
        return (steepness - 1).square().mean()
