"""Identity on the way forward, a scaled gradient on the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rescale_gradient(value: Tensor, factor: float) -> Tensor:
    """Return `value` with its gradient multiplied by `factor`.

    Args:
        value: any tensor.
        factor: of the gradient; `1 / n` where n branches begin.

    Returns:
        The same values.

    Reference:
        Song and Chai, Collaborative Learning for Deep Neural Networks, NeurIPS 2018, arXiv:1805.11761, section 3.2.
    """
    scaled: Tensor = _Rescale.apply(value, factor)  # type: ignore[no-untyped-call]
    return scaled


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:  # noqa: ANN401 (autograd's own context)
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return grad * ctx.factor, None
