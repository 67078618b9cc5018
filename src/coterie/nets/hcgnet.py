"""HCGNet for 32x32 images: dense growth by gated units, attention pooling, and hybrid connections.

Yang et al., Gated Convolutional Networks with Hybrid Connectivity for Image Classification, AAAI 2020,
arXiv:1908.09699. Every convolution of a map is BN-ReLU-convolution. A transition belongs to the stage that it ends, so
sharing one stage gives the branches of MCL-OKD and DML, two those of ONE and OKDDip. Kaiming normal initialisation
(fan-out) of the convolutions; the head keeps torch's default. The gates have batch norms over a single position: in
training mode a batch needs at least two images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coterie.nets.base import NETS, StagedNet, pooled
from coterie.nets.blocks import conv, kaiming_fan_out, norm_relu_conv
from coterie.nets.boundaries import Boundary, opening_of

_UNITS = 8


class AttentionPool(nn.Module):
    """A mean over all positions, weighted by the softmax of a 1x1 convolution to one map.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = conv(channels, 1, 1, bias=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Average maps `[B, C, H, W]` to `[B, C, 1, 1]`."""
        weights = self.score(maps).flatten(2).softmax(dim=2)
        vectors: Tensor = (maps.flatten(2) * weights).sum(dim=2)
        return vectors[..., None, None]


class Gates(nn.Module):
    """Adds to a map what two depthwise convolutions, of dilation 1 and 2, saw of it, and forgets a part of the map.

    The update gate mixes the two pooled vectors channel by channel; the forget gate scales the map's channels.

    Args:
        channels: C.
        reduction: divides the width of the gates' hidden layers.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.near = nn.Sequential(*_depthwise(channels, 1), AttentionPool(channels))
        self.far = nn.Sequential(*_depthwise(channels, 2), AttentionPool(channels))
        self.hidden = _hidden(2 * channels, 2 * channels // reduction)
        self.choose_near = conv(2 * channels // reduction, channels, 1, bias=True)
        self.choose_far = conv(2 * channels // reduction, channels, 1, bias=True)
        self.forget = nn.Sequential(
            AttentionPool(channels),
            _hidden(channels, channels // reduction),
            conv(channels // reduction, channels, 1, bias=True),
            nn.Sigmoid(),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C, H, W]`."""
        near, far = self.near(maps), self.far(maps)
        hidden = self.hidden(torch.cat([near, far], dim=1))
        choice = torch.stack([self.choose_near(hidden), self.choose_far(hidden)]).softmax(dim=0)
        kept: Tensor = maps * self.forget(maps)
        return kept.add(choice[0] * near + choice[1] * far)


class HybridUnit(nn.Module):
    """1x1 convolution, 3x3 convolution in four groups, gates; the result is appended to what came in.

    Args:
        in_channels: channels that go in.
        growth: channels that are appended; the 1x1 convolution has four times as many.
    """

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *norm_relu_conv(in_channels, 4 * growth, 1),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, growth, 3, padding=1, groups=4, bias=False),
            Gates(growth, 2),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, in_channels + growth, H, W]`."""
        return torch.cat([maps, self.body(maps)], dim=1)

    def opening(self) -> Boundary | None:
        """What came in after the first batch norm."""
        return opening_of(self.body)


@NETS.register("hcgnet_a1")
def hcgnet_a1(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """HCGNet-A1: three stages of eight units, growth 12, 24, 36; 1.10 M parameters at 100 classes."""
    return _hcgnet((12, 24, 36), num_classes, in_channels)


@NETS.register("hcgnet_a2")
def hcgnet_a2(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """HCGNet-A2: three stages of eight units, growth 24, 36, 64; 3.13 M parameters at 100 classes."""
    return _hcgnet((24, 36, 64), num_classes, in_channels)


def _hcgnet(growths: Sequence[int], num_classes: int, in_channels: int) -> StagedNet:
    stem = 2 * growths[0]
    channels, widths, stages = stem, list[int](), list[nn.Module]()
    for number, growth in enumerate(growths):
        parts: list[nn.Module] = [HybridUnit(channels + k * growth, growth) for k in range(_UNITS)]
        channels += _UNITS * growth
        if number < len(growths) - 1:
            parts += _transition(channels, channels // 2)
            channels //= 2
        stages.append(nn.Sequential(*parts))
        widths.append(channels)
    net = StagedNet(
        stem=conv(in_channels, stem),
        stages=stages,
        neck=pooled(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
        head=nn.Linear(channels, num_classes),
        stage_channels=widths,
    )
    kaiming_fan_out(net)
    return net


def _transition(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Halve the channels and the sides of a map; nothing is appended."""
    middle = in_channels - (in_channels - out_channels) // 2
    return [
        *norm_relu_conv(in_channels, middle, 1),
        *norm_relu_conv(middle, out_channels, 3, 2),
        Gates(out_channels, 4),
    ]


def _depthwise(channels: int, dilation: int) -> list[nn.Module]:
    layer = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), layer]


def _hidden(in_channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(conv(in_channels, width, 1, bias=True), nn.BatchNorm2d(width), nn.Tanh())
