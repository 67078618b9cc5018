"""ResNet for 224x224 images: a 7x7 stem with max-pool and four stages, stride on the 3x3 convolution.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385. Kaiming normal initialisation
(fan-out) of the convolutions; the head keeps torch's default. Sharing two stages gives the branches of MCL-OKD.
"""

from __future__ import annotations

from torch import nn

from coterie.nets.base import NETS, StagedNet, pooled
from coterie.nets.blocks import Block, basic, bottleneck, conv_norm_relu, kaiming_fan_out, residual_stages

_WIDTHS = (64, 128, 256, 512)


@NETS.register("resnet18")
def resnet18(*, num_classes: int, in_channels: int = 3, image_size: int = 224) -> StagedNet:
    """ResNet-18: 2, 2, 2, 2 basic blocks; 11.7 M parameters at 1000 classes."""
    return _resnet(basic, (2, 2, 2, 2), num_classes, in_channels)


@NETS.register("resnet34")
def resnet34(*, num_classes: int, in_channels: int = 3, image_size: int = 224) -> StagedNet:
    """ResNet-34: 3, 4, 6, 3 basic blocks; 21.8 M parameters at 1000 classes."""
    return _resnet(basic, (3, 4, 6, 3), num_classes, in_channels)


@NETS.register("resnet50")
def resnet50(*, num_classes: int, in_channels: int = 3, image_size: int = 224) -> StagedNet:
    """ResNet-50: 3, 4, 6, 3 bottleneck blocks; 25.6 M parameters at 1000 classes."""
    return _resnet(bottleneck, (3, 4, 6, 3), num_classes, in_channels)


def _resnet(block: Block, depths: tuple[int, ...], num_classes: int, in_channels: int) -> StagedNet:
    stages, channels = residual_stages(block, 64, _WIDTHS, depths)
    net = StagedNet(
        stem=nn.Sequential(*conv_norm_relu(in_channels, 64, 7, 2), nn.MaxPool2d(3, stride=2, padding=1)),
        stages=stages,
        neck=pooled(),
        head=nn.Linear(channels[-1], num_classes),
        stage_channels=channels,
    )
    kaiming_fan_out(net)
    return net
