"""Conv-4, the encoder of few-shot learning: four times 3x3 convolution, batch norm, ReLU and max-pool.

Vinyals et al., Matching Networks, NeurIPS 2016, arXiv:1606.04080; Snell et al., Prototypical Networks, NeurIPS 2017,
arXiv:1703.05175. The embedding is the flattened last map: 64 numbers for 28x28 images, 1600 for 84x84. Torch's default
initialisation.
"""

from __future__ import annotations

from torch import nn

from coterie.nets.base import NETS, StagedNet
from coterie.nets.blocks import check_size, conv

_WIDTH = 64


@NETS.register("conv4")
def conv4(*, num_classes: int, in_channels: int = 3, image_size: int = 84) -> StagedNet:
    """Conv-4 with a linear head; 0.11 M parameters without the head."""
    check_size("conv4", image_size, 16)
    stem, *stages = [_block(channels) for channels in (in_channels, _WIDTH, _WIDTH, _WIDTH)]
    return StagedNet(
        stem=stem,
        stages=stages,
        neck=nn.Flatten(1),
        head=nn.Linear(_WIDTH * (image_size // 16) ** 2, num_classes),
        stage_channels=[_WIDTH] * len(stages),
    )


def _block(in_channels: int) -> nn.Sequential:
    layers = conv(in_channels, _WIDTH, bias=True), nn.BatchNorm2d(_WIDTH), nn.ReLU(inplace=True), nn.MaxPool2d(2)
    return nn.Sequential(*layers)
