"""Steps that are taken on trial: they are undone, but a gradient with respect to what steered them is kept.

A bilevel method asks how its outer parameters should have been for some SGD steps on one objective to lead to a small
value of another. The steps are taken in place; the gradient goes back over them one by one with Hessian-vector
products, so that one graph exists at a time. At the end weights and running statistics are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from coterie.core.across import twice
from coterie.core.world import averaged

Objective = Callable[[], Tensor]


class Trial:
    """SGD with momentum, from empty momentum buffers, that remembers its way.

    Args:
        parameters: what is stepped, in place.
        lr: learning rate.
        momentum: of SGD, without looking ahead.
        weight_decay: added to the gradient, also where the objective does not reach a parameter.

    Example:
        >>> weight, outer = torch.tensor([2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
        >>> trial = Trial([weight], lr=0.1)
        >>> trial.step(lambda: (outer * weight).sum())
        >>> weight.detach()
        tensor([1.7000])
        >>> trial.hypergradient(lambda: weight.square().sum(), [outer])  # 2 * 1.7 * -0.1
        [tensor(-0.3400)]
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._buffers = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._way: list[tuple[Objective, list[Tensor]]] = []

    def step(self, objective: Objective) -> None:
        """Take a step down.

        Args:
            objective: gives `[]` from the parameters' present values, and the same again when it is called again.
        """
        self._way.append((objective, [parameter.detach().clone() for parameter in self.parameters]))
        slopes = _gradient(objective(), self.parameters)
        with torch.no_grad():
            torch._foreach_add_(slopes, self.parameters, alpha=self.weight_decay)
            torch._foreach_mul_(self._buffers, self.momentum)
            torch._foreach_add_(self._buffers, slopes)
            torch._foreach_add_(self.parameters, self._buffers, alpha=-self.lr)

    def hypergradient(self, objective: Objective, outer: Sequence[Tensor], *, released: bool = False) -> list[Tensor]:
        """Differentiate an objective, at the values reached, with respect to parameters that the steps depended on.

        The parameters end at the values before the first step.

        Args:
            objective: gives `[]` from the parameters' present values; what it owes to `outer` directly counts too.
            outer: parameters that the objectives of steps depend on.
            released: repeat a slip of published code, which on the way back over a step adds the adjoint of the
                momentum buffer with factor 1 where the derivative has the weight decay as factor.

        Returns:
            One gradient for each outer parameter, 0 where none flows.

        Reference:
            Maclaurin, Duvenaud and Adams, Gradient-based Hyperparameter Optimization through Reversible Learning, ICML
            2015, arXiv:1502.03492, with the recorded values in place of reversed ones.
        """
        first = _gradient(objective(), [*self.parameters, *outer])
        to_values, total = first[: len(self.parameters)], first[len(self.parameters) :]
        to_buffers = [torch.zeros_like(parameter) for parameter in self.parameters]
        for earlier, values in reversed(self._way):
            self._set(values)
            decayed = torch._foreach_mul(to_values, -self.lr)
            slopes = torch._foreach_add(decayed, to_buffers)
            with twice():
                value = earlier()
            bent = _products(value, self.parameters, slopes, outer)
            torch._foreach_add_(to_values, bent[: len(self.parameters)])
            torch._foreach_add_(to_values, decayed if released else slopes, alpha=self.weight_decay)
            if released:
                torch._foreach_add_(to_values, to_buffers)
            torch._foreach_add_(total, bent[len(self.parameters) :])
            to_buffers = list(torch._foreach_mul(slopes, self.momentum))
        return total

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.parameters, list(values))


@contextmanager
def undone(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put all parameters and buffers of modules back at the end, to the bit."""
    tensors = _tensors_of(modules)
    kept = [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(tensors, kept)


def _tensors_of(modules: Sequence[nn.Module]) -> list[Tensor]:
    tensors = chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)
    return [tensor.detach() for tensor in tensors]


def _gradient(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    slopes = torch.autograd.grad(value, parameters, allow_unused=True)
    return averaged(_all_filled(slopes, parameters))


def _products(
    value: Tensor, parameters: Sequence[Tensor], along: Sequence[Tensor], outer: Sequence[Tensor]
) -> list[Tensor]:
    """Second derivatives of a value times a direction in the parameters, with respect to parameters and outer ones."""
    wanted = [*parameters, *outer]
    reached = _reached(value, parameters, along)
    if not reached:
        return [torch.zeros_like(parameter) for parameter in wanted]
    slopes, ways = zip(*reached, strict=True)
    return averaged(_all_filled(torch.autograd.grad(slopes, wanted, ways, allow_unused=True), wanted))


def _reached(value: Tensor, parameters: Sequence[Tensor], along: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Slopes that depend on something, each with its part of the direction."""
    slopes = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
    pairs = zip(slopes, along, strict=True)
    return [(slope, way) for slope, way in pairs if slope is not None and slope.requires_grad]


def _all_filled(slopes: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor]:
    return [_filled(slope, parameter) for slope, parameter in zip(slopes, parameters, strict=True)]


def _filled(slope: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if slope is None else slope.detach().clone()
