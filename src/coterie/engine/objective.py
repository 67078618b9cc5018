"""Cohort and method as one module, so that one wrapper (autocast, DDP, compile) covers both."""

from __future__ import annotations

import torch
from torch import nn

from coterie.cohort import Cohort
from coterie.core.method import Method
from coterie.core.types import Batch, PeerOutput, Terms


class Objective(nn.Module):
    """What a training step differentiates.

    Args:
        cohort: the peers.
        method: turns their outputs into terms; its heads are trained too.
    """

    def __init__(self, cohort: Cohort, method: Method) -> None:
        super().__init__()
        self.cohort = cohort
        self.method = method

    def forward(self, batch: Batch) -> tuple[list[PeerOutput], Terms]:
        """Run the cohort on the views of a batch and the method on its outputs.

        Args:
            batch: views `[V, B, C, H, W]`, labels, rows, clock.

        Returns:
            The outputs of the M peers and the terms, both with gradient.
        """
        peers: list[PeerOutput] = self.cohort(batch.views)
        return peers, self.method.losses(peers, batch)

    def broken(self) -> list[str]:
        """Names of parameters that are not finite; waits for the device once."""
        names, parameters = zip(*self.named_parameters(), strict=True)
        fine: list[bool] = torch.stack([parameter.isfinite().all() for parameter in parameters]).tolist()
        return [name for name, good in zip(names, fine, strict=True) if not good]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters of the main optimiser by name, shared ones once, those of an outer step left out."""
        outer = {id(parameter) for parameter in self.method.outer_parameters()}
        return {name: p for name, p in self.named_parameters() if p.requires_grad and id(p) not in outer}
