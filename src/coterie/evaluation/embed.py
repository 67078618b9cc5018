"""Embeddings of a frozen network: what its classifier receives, or the mean over positions of its stage maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from coterie.core.errors import ConfigError
from coterie.core.types import PeerOutput
from coterie.nets import Tappable, as_tappable

EMBEDDING = "embedding"


def layer_names(stages: Sequence[int]) -> list[str]:
    """How reports call what is probed: `stage 0` (the stem), `stage 1`, ..., or `embedding` when no stage is named."""
    return [f"stage {stage}" for stage in stages] or [EMBEDDING]


def check_stages(net: nn.Module, stages: Sequence[int], name: str) -> None:
    """Check that a network has these stages.

    Args:
        net: the network.
        stages: numbers of stages; 0 is the stem.
        name: how an error calls the network.

    Raises:
        ConfigError: a stage is out of range, or the network names no stages.
    """
    last = len(cast("Tappable", as_tappable(net)).stage_channels)
    for stage in stages:
        if not last:
            raise ConfigError(f"{name} does not say where its stages end; leave --stage out to probe its embedding")
        if not 0 <= stage <= last:
            raise ConfigError(f"{name} has no stage {stage}; give one of 0 (the stem) to {last}")


@torch.no_grad()
def embed(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], stages: Sequence[int] = ()
) -> tuple[dict[str, Tensor], Tensor]:
    """Run a network once over images, in evaluation mode, which is put back afterwards.

    Args:
        net: a classifier; its weights are not changed.
        batches: images `[B, C, H, W]` and labels `[B]` int64, on the network's device.
        stages: whose maps are averaged over their positions; none for the embedding.

    Returns:
        Layer name to features `[N, D]` float32, and labels `[N]` int64, on the CPU.
    """
    tapped = cast("Tappable", as_tappable(net))
    parts: list[list[Tensor]] = []
    labels: list[Tensor] = []
    training = net.training
    net.eval()
    try:
        for images, targets in batches:
            parts.append([layer.float().cpu() for layer in _layers(tapped.tap(images, bool(stages)), stages)])
            labels.append(targets.cpu())
    finally:
        net.train(training)
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return dict(zip(layer_names(stages), columns, strict=True)), torch.cat(labels)


def _layers(peer: PeerOutput, stages: Sequence[int]) -> list[Tensor]:
    return [peer.stages[stage].flatten(2).mean(dim=2) for stage in stages] or [peer.embedding]
