"""Weights that grow over the first epochs."""

from __future__ import annotations

import torch
from torch import Tensor


def ramp_up(epoch: Tensor, length: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight that rises from exp(-5) to 1: `exp(-5 (1 - min(epoch, length) / length)^2)`.

    Args:
        epoch: `[]` whole number counted from 0, on the device of the loss.
        length: epochs until the weight is 1; with 0 it always is.
        dtype: of the result; that of the loss, so that neither is rounded to the other.

    Returns:
        `[]` on the device of the epoch, without gradient.

    Example:
        >>> [round(float(ramp_up(torch.tensor(epoch), 80)), 4) for epoch in (0, 40, 200)]
        [0.0067, 0.2865, 1.0]

    Reference:
        Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017, arXiv:1610.02242, appendix A.
    """
    if length <= 0:
        return torch.ones((), dtype=dtype, device=epoch.device)
    left = 1 - epoch.clamp(max=length).to(dtype) / length
    return torch.exp(-5 * left.square())


def linear_ramp(epoch: Tensor, length: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight that rises in equal steps to 1: `min((epoch + 1) / length, 1)`.

    Args:
        epoch: `[]` whole number counted from 0, on the device of the loss.
        length: epochs until the weight is 1, which it is in the last of them; with 0 it always is.
        dtype: of the result; that of the loss, so that neither is rounded to the other.

    Returns:
        `[]` on the device of the epoch, without gradient.

    Example:
        >>> [float(linear_ramp(torch.tensor(epoch), 20)) for epoch in (0, 9, 19, 200)]
        [0.05..., 0.5, 1.0, 1.0]
    """
    if length <= 0:
        return torch.ones((), dtype=dtype, device=epoch.device)
    return ((epoch + 1).to(dtype) / length).clamp(max=1)
