"""Auxiliary exits: from the map after a stage to features and logits of their own, through stages built anew."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.nets import StagedNet


class Exit(nn.Module):
    """The remaining stages of a network with fresh weights, its neck and a classifier.

    Args:
        net: the network; it is copied, never referred to.
        depth: stages that come before the exit, at least 1 and less than the network has.
        blocks: blocks of every rebuilt stage that are kept, the first ones; 0 for all.

    Raises:
        ConfigError: the network has no stages that can be rebuilt.

    Example:
        >>> stages = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        >>> net = StagedNet(stem=nn.Identity(), stages=stages, neck=nn.Flatten(), head=nn.Linear(5, 2))
        >>> features, logits = Exit(net, 1)(torch.ones(7, 4, 1, 1))
        >>> features.shape, logits.shape
        (torch.Size([7, 5]), torch.Size([7, 2]))
    """

    def __init__(self, net: StagedNet, depth: int, *, blocks: int = 0) -> None:
        super().__init__()
        parts = [_shortened(stage, blocks) for stage in net.stages[depth:]]
        self.body = nn.Sequential(*parts, copy.deepcopy(net.neck))
        self.head = copy.deepcopy(net.head)
        self.requires_grad_(True)
        for module in self.modules():
            _refresh(module)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Map what the stage gave, `[B, C, H, W]`, to features `[B, D]` and logits `[B, K]`."""
        features: Tensor = self.body(maps)
        return features, self.head(features)


def exits_of(nets: Sequence[nn.Module], *, blocks: int = 0) -> nn.ModuleList:
    """Build an exit after every stage but the last, for every peer.

    Args:
        nets: M networks, which stay as they are.
        blocks: blocks of every rebuilt stage; 0 for all.

    Returns:
        M lists of exits, first stage first.

    Raises:
        ConfigError: a peer is no `StagedNet` of at least two stages.
    """
    exits = []
    for peer, net in enumerate(nets):
        if not isinstance(net, StagedNet) or len(net.stages) < 2:
            raise ConfigError(
                f"peer {peer} is a {type(net).__name__} without two stages to build exits from;"
                " choose networks of `coterie list nets` or build it as a coterie.StagedNet"
            )
        exits.append(nn.ModuleList(Exit(net, depth, blocks=blocks) for depth in range(1, len(net.stages))))
    return nn.ModuleList(exits)


def _shortened(stage: nn.Module, blocks: int) -> nn.Module:
    if blocks and isinstance(stage, nn.Sequential):
        return copy.deepcopy(stage[:blocks])
    return copy.deepcopy(stage)


@torch.no_grad()
def _refresh(module: nn.Module) -> None:
    """Draw weights of the size that the network's own have, for each family has its own initialisation."""
    own = list(module.parameters(recurse=False))
    if any(weight.dim() > 1 for weight in own):
        for weight in own:
            size = weight.square().mean().sqrt()
            weight.normal_().mul_(size)
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()
