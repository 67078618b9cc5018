"""Number formats of the forward pass, and the gradient scaling that float16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

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
