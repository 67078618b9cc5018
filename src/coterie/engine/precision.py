"""Number formats of the forward pass, and the gradient scaling that float16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from coterie.core.across import largest

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Autocast and gradient scaler of a run.

    Args:
        name: `float32` (no autocast), `bfloat16` or `float16` (autocast with gradient scaling).
        device: where the step runs.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = _DTYPES[name]
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        """Context of the forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide gradients by the scale; where one is infinite in any process, all will skip the step."""
        if not self.scaler.is_enabled():
            return
        self.scaler.unscale_(optimizer)
        found = self.scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        infinite = next(iter(found.values()), torch.zeros((), device=self.device))  # of the one device of this process
        found[infinite.device] = largest(infinite)
