"""SGD for parameters that only an outer step changes; its momentum is kept like any memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from coterie.core.errors import CheckpointError


class OuterSGD:
    """SGD with Nesterov momentum whose state is saved with a method's memories.

    Args:
        parameters: those it will step, by name; only their shapes are kept.
        momentum: share of the buffer that stays at a step.

    Example:
        >>> weight = torch.tensor([1.0])
        >>> sgd = OuterSGD([("weight", weight)])
        >>> sgd.step([weight], [torch.tensor([0.5])], lr=0.1)
        >>> weight, sgd.state()["weight"]
        (tensor([0.9050]), tensor([0.5000]))
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], *, momentum: float = 0.9) -> None:
        self.momentum = momentum
        self._buffers = {name: torch.zeros_like(parameter) for name, parameter in parameters}

    @torch.no_grad()
    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], *, lr: float, weight_decay: float = 0.0
    ) -> None:
        """Change the parameters in place.

        Args:
            parameters: in the order of their names.
            gradients: one for each.
            lr: learning rate.
            weight_decay: added to the gradients.
        """
        parameters, buffers = list(parameters), list(self._buffers.values())
        slopes = torch._foreach_add(list(gradients), parameters, alpha=weight_decay)
        torch._foreach_mul_(buffers, self.momentum)
        torch._foreach_add_(buffers, slopes)
        torch._foreach_add_(slopes, buffers, alpha=self.momentum)
        torch._foreach_add_(parameters, slopes, alpha=-lr)

    def state(self) -> dict[str, Tensor]:
        """The momentum buffers by name, not copied."""
        return dict(self._buffers)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned.

        Raises:
            CheckpointError: it belongs to other parameters.
        """
        for name, buffer in self._buffers.items():
            saved = state.get(name)
            if saved is None or saved.shape != buffer.shape:
                found = "is missing" if saved is None else f"was saved as {list(saved.shape)}"
                raise CheckpointError(
                    f"the momentum of {name} {found} and is {list(buffer.shape)} here; continue with the same cohort,"
                    " or start a new run"
                )
        for name, buffer in self._buffers.items():
            buffer.copy_(state[name])

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a move to another device or dtype to every buffer."""
        self._buffers = {name: change(buffer) for name, buffer in self._buffers.items()}
