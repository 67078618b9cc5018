"""Wide ResNet: few layers, many channels, batch norm and ReLU before each convolution.

Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, arXiv:1605.07146. `wrn_D_K` has D layers and K times the
channels of a CIFAR ResNet: three stages of (D - 4) / 6 blocks, of 16K, 32K and 64K channels. The last batch norm and
ReLU belong to the neck. Kaiming normal initialisation (fan-out) of the convolutions; the head keeps torch's default.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from coterie.nets.base import NETS, StagedNet, pooled
from coterie.nets.blocks import conv, kaiming_fan_out
from coterie.nets.boundaries import Boundary

_STEM = 16


class WideBlock(nn.Module):
    """BN-ReLU-3x3-BN-ReLU-3x3 with a shortcut.

    Where the channels change, the first BN-ReLU is applied before both paths and the shortcut is a 1x1 convolution;
    elsewhere the shortcut is the map itself.

    Args:
        in_channels: channels that go in.
        width: channels that come out.
        stride: step of the first convolution.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = conv(in_channels, width, 3, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width)
        self.shortcut = conv(in_channels, width, 1, stride) if in_channels != width else None

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, width, H/stride, W/stride]`."""
        active = self.relu(self.norm1(maps))
        kept: Tensor = maps if self.shortcut is None else self.shortcut(active)
        inner = F.relu(self.norm2(self.conv1(active)), inplace=True)
        return kept.add(self.conv2(inner))

    def opening(self) -> Boundary:
        """What came in after the first batch norm."""
        return Boundary(inputs=(self.relu,), norm=self.norm1)


@NETS.register("wrn_16_1")
def wrn_16_1(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """WRN-16-1: 0.18 M parameters at 100 classes."""
    return _wide(16, 1, num_classes, in_channels)


@NETS.register("wrn_16_2")
def wrn_16_2(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """WRN-16-2: 0.70 M parameters at 100 classes."""
    return _wide(16, 2, num_classes, in_channels)


@NETS.register("wrn_40_1")
def wrn_40_1(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """WRN-40-1: 0.57 M parameters at 100 classes."""
    return _wide(40, 1, num_classes, in_channels)


@NETS.register("wrn_40_2")
def wrn_40_2(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """WRN-40-2: 2.26 M parameters at 100 classes."""
    return _wide(40, 2, num_classes, in_channels)


@NETS.register("wrn_28_4")
def wrn_28_4(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """WRN-28-4: 5.87 M parameters at 100 classes."""
    return _wide(28, 4, num_classes, in_channels)


def _wide(depth: int, factor: int, num_classes: int, in_channels: int) -> StagedNet:
    widths = [16 * factor, 32 * factor, 64 * factor]
    stages: list[nn.Module] = []
    channels = _STEM
    for width in widths:
        blocks = [WideBlock(channels, width, 2 if stages else 1)]
        blocks += [WideBlock(width, width, 1) for _ in range((depth - 4) // 6 - 1)]
        stages.append(nn.Sequential(*blocks))
        channels = width
    net = StagedNet(
        stem=conv(in_channels, _STEM),
        stages=stages,
        neck=pooled(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
        head=nn.Linear(channels, num_classes),
        stage_channels=widths,
    )
    kaiming_fan_out(net)
    return net
