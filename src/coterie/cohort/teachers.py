"""Teachers: networks outside the cohort that are never trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from coterie.core.types import Batch, PeerOutput
from coterie.core.world import gather
from coterie.nets import Tappable, as_tappable
from coterie.nets.inputs import Sight


class Teachers(nn.Module):
    """Frozen networks that see the same view of each image as the leader.

    They are always in evaluation mode and none of their parameters takes gradient.

    Args:
        nets: trained networks.
        sights: what each of them sees of an image; all of it where this is empty.
        view: which of the views they see; the leader's.
        stage_maps: whether their outputs carry stage maps.
        preactivations: whether their outputs carry the maps before the last activation of each stage.

    Attributes:
        cached: what each of them says about all N training images, `[N, K]` and `[N, D]`; then none of them is run.
    """

    cached: tuple[PeerOutput, ...]

    def __init__(
        self,
        nets: Sequence[nn.Module],
        *,
        sights: Sequence[Sight] = (),
        view: int = 0,
        stage_maps: bool = False,
        preactivations: bool = False,
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleList(as_tappable(net) for net in nets)
        self.sees = tuple(sights)
        self.sights = nn.ModuleList(sights or [nn.Identity() for _ in nets])
        self.cached: tuple[PeerOutput, ...] = ()
        self.view = view
        self.stage_maps = stage_maps
        self.preactivations = preactivations
        self.requires_grad_(False)
        self.eval()

    def __len__(self) -> int:
        return len(self.nets)

    def __iter__(self) -> Iterator[Tappable]:
        return iter(cast("Sequence[Tappable]", self.nets))

    def train(self, mode: bool = True) -> Teachers:
        """Stay in evaluation mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """Add what every teacher says about the images of a batch; one that has been added stays as it is."""
        if batch.teachers or not len(self):
            return batch
        if self.cached:
            return replace(batch, teachers=tuple(_rows(output, batch.indices) for output in self.cached))
        return replace(batch, teachers=tuple(gather(self.look(batch.views[self.view % batch.views.shape[0]]))))

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[PeerOutput, ...]:
        """Map images `[B, C, H, W]`, as the data give them, to the outputs of every teacher."""
        asked = self.stage_maps, self.preactivations
        return tuple(net.tap(sight(images), *asked) for net, sight in zip(self, self.sights, strict=True))


def _rows(output: PeerOutput, indices: Tensor) -> PeerOutput:
    return PeerOutput(logits=output.logits[indices], embedding=output.embedding[indices])
