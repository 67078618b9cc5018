"""Cohort and method as one module, so that one wrapper (autocast, DDP, compile) covers both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coterie.cohort import Cohort, Teachers
from coterie.cohort.cohort import note_guilty_peer
from coterie.cohort.partners import Partners
from coterie.core.across import largest
from coterie.core.errors import ConfigError
from coterie.core.method import Method
from coterie.core.shards import part_here
from coterie.core.types import Batch, PeerOutput, Terms
from coterie.core.world import gather
from coterie.nets.global_norm import shared_statistics


def check_compiler(device: torch.device) -> None:
    """Compile a sum, to find out whether this machine can.

    Raises:
        ConfigError: it cannot.
    """
    try:
        torch.compile(lambda numbers: numbers + 1)(torch.zeros(8, device=device))
    except Exception as error:  # torch, its compilers and their drivers fail in as many ways as there are
        reason = next(line for line in [*str(error).splitlines(), type(error).__name__] if line.strip())
        raise ConfigError(
            f"train.compile=default finds no working compiler for {device.type} ({reason}); install a C++ compiler, or"
            " set train.compile=none"
        ) from None


class Objective(nn.Module):
    """What a training step differentiates.

    Args:
        cohort: the peers.
        method: turns their outputs into terms; its heads are trained too.
        teachers: networks outside the cohort whose outputs the method learns from.
        sight: maps images `[B, C, H, W]` to what the peers see of them; the images themselves when None.
        partners: networks of other jobs that the method learns from.
        compiled: run the cohort through `torch.compile`; see `check_compiler`.
    """

    def __init__(
        self,
        cohort: Cohort,
        method: Method,
        *,
        teachers: Teachers | None = None,
        sight: nn.Module | None = None,
        partners: Partners | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.cohort = cohort
        self.method = method
        self.teachers = Teachers(()) if teachers is None else teachers
        self.sight = sight
        self.partners = partners
        self._run = torch.compile(cohort.forward) if compiled else cohort.__call__

    def forward(self, batch: Batch) -> tuple[list[PeerOutput], Terms]:
        """Run the cohort on the views of a batch and the method on its outputs.

        Args:
            batch: what `prepare` returned: views `[V, B, C, H, W]`, labels, rows, clock.

        Returns:
            The outputs of the M peers and the terms, both with gradient.
        """
        peers = self.peers(batch)
        return peers, self.method.losses(peers, batch)

    def peers(self, batch: Batch) -> list[PeerOutput]:
        """Run the cohort on a batch: M outputs with gradient, those of all ranks together."""
        try:
            with shared_statistics():
                peers: list[PeerOutput] = self._run(batch.views)
        except Exception as error:
            note_guilty_peer(error, self.cohort)
            raise
        return gather(peers)

    def prepare(self, batch: Batch) -> Batch:
        """Let the teachers look at a batch as the data give it, then leave in it what the peers see, partners too."""
        seen: Batch = self.teachers(batch)
        if self.sight is not None:
            views: Tensor = self.sight(batch.views.flatten(0, 1))
            seen = seen.with_views(views.view(*batch.views.shape[:2], *views.shape[1:]))
        return seen if self.partners is None else self.partners(seen)

    def broken(self) -> list[str]:
        """Names of parameters that are not finite in any process; waits for the device once."""
        named = dict(self.named_parameters())
        device = next((p.device for p in named.values() if p.requires_grad), torch.device("cpu"))
        broken = torch.stack([part_here(p).isfinite().logical_not().any().to(device) for p in named.values()])
        return [name for name, bad in zip(named, largest(broken.byte()).tolist(), strict=True) if bad]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters of the main optimiser by name, shared ones once, those of an outer step left out."""
        outer = {id(parameter) for parameter in self.method.outer_parameters()}
        return {name: p for name, p in self.named_parameters() if p.requires_grad and id(p) not in outer}
