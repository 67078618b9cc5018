"""Sizes of what a network says, found by running it on an empty image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from coterie.core.method import PeerFacts
from coterie.nets import StagedNet, Tappable


@torch.no_grad()
def facts_of(net: nn.Module, shape: Sequence[int]) -> PeerFacts:
    """Find the sizes of a network's outputs.

    Args:
        net: a `Tappable` network on the CPU; it is left as it was.
        shape: `(C, H, W)` of what it sees.

    Example:
        >>> stage = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        >>> parts = {"neck": nn.Flatten(), "head": nn.Linear(16, 5), "stage_channels": [4]}
        >>> facts = facts_of(StagedNet(stem=nn.Identity(), stages=[stage], **parts), (3, 2, 2))
        >>> facts.embedding_dim, facts.stages, facts.preactivations
        (16, ((3, 2, 2), (4, 2, 2)), ((4, 2, 2),))
    """
    boundaries = net.boundaries() if isinstance(net, StagedNet) else ()
    known = cast("Tappable", net)
    with evaluating(net):
        output = known.tap(torch.zeros(2, *shape), bool(known.stage_channels), bool(boundaries))
    return PeerFacts(
        embedding_dim=known.embedding_dim,
        num_classes=known.num_classes,
        stages=tuple(map(_shape, output.stages)),
        preactivations=tuple(map(_shape, output.preactivations)),
        norms=tuple(_affine(boundary.norm) for boundary in boundaries),
    )


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Context in which a network and its parts are in evaluation mode; each is in its own mode again afterwards."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    yield
    for module, mode in modes.items():
        module.training = mode


def _shape(maps: Tensor) -> tuple[int, int, int]:
    return maps.shape[1], maps.shape[2], maps.shape[3]


def _affine(norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor] | None:
    if norm is None or not norm.affine:
        return None
    return norm.weight.detach().clone(), norm.bias.detach().clone()
