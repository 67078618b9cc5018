"""DenseNet-BC for 32x32 images: every layer sees the maps of all layers before it.

Huang et al., Densely Connected Convolutional Networks, CVPR 2017, arXiv:1608.06993. `densenet40_12` is the bottleneck
form with compression 0.5 that the literature of online distillation uses (0.19 M parameters), not the 1.0 M network of
the same name without bottlenecks. A transition belongs to the stage that it ends, so sharing one stage gives the
branches of MCL-OKD and DML, two those of ONE and OKDDip. Kaiming normal initialisation (fan-in), zero bias of the head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coterie.nets.base import NETS, StagedNet, pooled
from coterie.nets.blocks import conv, norm_relu_conv
from coterie.nets.boundaries import Boundary, opening_of
from coterie.nets.layers import layers_of


class DenseLayer(nn.Module):
    """BN-ReLU-1x1-BN-ReLU-3x3, whose maps are appended to what came in.

    Args:
        in_channels: channels that go in.
        growth: channels that are appended; the 1x1 convolution has four times as many.
    """

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *norm_relu_conv(in_channels, 4 * growth, 1),
            *norm_relu_conv(4 * growth, growth, 3),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, in_channels + growth, H, W]`."""
        return torch.cat([maps, self.body(maps)], dim=1)

    def opening(self) -> Boundary | None:
        """What came in after the first batch norm."""
        return opening_of(self.body)


@NETS.register("densenet40_12")
def densenet40_12(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """DenseNet-BC-40-12: three stages of six layers, growth 12; 0.19 M parameters at 100 classes."""
    growth, channels = 12, [24]
    stages: list[nn.Module] = []
    for ends in (False, False, True):
        stage, width = _stage(channels[-1], growth, 6, transition=not ends)
        stages.append(stage)
        channels.append(width)
    net = StagedNet(
        stem=conv(in_channels, channels[0]),
        stages=stages,
        neck=pooled(nn.BatchNorm2d(channels[-1]), nn.ReLU(inplace=True)),
        head=nn.Linear(channels[-1], num_classes),
        stage_channels=channels[1:],
    )
    _initialise(net)
    return net


def _stage(in_channels: int, growth: int, depth: int, *, transition: bool) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [DenseLayer(in_channels + k * growth, growth) for k in range(depth)]
    channels = in_channels + depth * growth
    if transition:
        layers += [*norm_relu_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
        channels //= 2
    return nn.Sequential(*layers), channels


def _initialise(net: StagedNet) -> None:
    for layer in layers_of(net, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(net.head.bias)
