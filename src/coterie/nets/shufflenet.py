"""ShuffleNet V1 and V2 for 32x32 images: no max-pool, three stages that halve the map.

Zhang et al., ShuffleNet, CVPR 2018, arXiv:1707.01083; Ma et al., ShuffleNet V2, ECCV 2018, arXiv:1807.11164. A stage of
V2 is a unit that halves the map and 3, 7 or 3 that keep it; its neck is a 1x1 convolution to 1024 channels before the
pooling. `shufflenet_v2_05x` and `shufflenet_v2_1x` begin with a 3x3 convolution, as in MCL; `shufflenet_v2_stem1` and
`shufflenet_v1_stem1` with a 1x1 one, as in the benchmark of CRD. Sharing one stage gives the branches of MCL. All
layers keep torch's default initialisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.nets.base import NETS, StagedNet, pooled
from coterie.nets.blocks import conv_norm_relu, depthwise_norm
from coterie.nets.boundaries import Boundary, last_norm

_STEM = 24
_LAST = 1024


class ShuffleUnitV2(nn.Module):
    """Half of the channels pass by, the other half go through 1x1, depthwise 3x3 and 1x1 convolutions.

    Args:
        channels: channels that go in and come out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_separable_v2(channels // 2, channels // 2, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to the same size."""
        by, through = maps.chunk(2, dim=1)
        return shuffled(torch.cat([by, self.body(through)], dim=1), 2)

    def ending(self) -> Boundary:
        """The half that passes by, active already, beside the other half before its ReLU."""
        return Boundary(inputs=(self, self.body[-1]), join=_joined)


class ShuffleDownV2(nn.Module):
    """Both paths see all channels and halve the map; each gives half of the channels.

    Args:
        in_channels: channels that go in.
        channels: channels that come out.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_separable_v2(in_channels, channels // 2, 2))
        self.shortcut = nn.Sequential(
            *depthwise_norm(in_channels, 2),
            *conv_norm_relu(in_channels, channels // 2, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, channels, H/2, W/2]`."""
        return shuffled(torch.cat([self.shortcut(maps), self.body(maps)], dim=1), 2)


class ShuffleUnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3 and grouped 1x1 convolutions; batch norm and ReLU after the first two.

    At stride 2 the averaged map is appended to the result, elsewhere the map is added.

    Args:
        in_channels: channels that go in.
        channels: channels that come out.
        stride: 1 or 2.
        groups: of the 1x1 convolutions; the first one has a single group right after the stem.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int = 3) -> None:
        super().__init__()
        self.stride = stride
        self.groups = 1 if in_channels == _STEM else groups
        out = channels - in_channels if stride == 2 else channels
        width = out // 4
        self.relu = nn.ReLU(inplace=True)
        self.reduce = nn.Sequential(*_grouped(in_channels, width, self.groups), nn.ReLU(inplace=True))
        self.expand = nn.Sequential(
            *depthwise_norm(width, stride), nn.ReLU(inplace=True), *_grouped(width, out, groups)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, channels, H/stride, W/stride]`."""
        inner: Tensor = self.expand(shuffled(self.reduce(maps), self.groups))
        if self.stride == 2:
            inner = torch.cat([inner, F.avg_pool2d(maps, 3, stride=2, padding=1)], dim=1)
        else:
            inner = inner + maps
        active: Tensor = self.relu(inner)
        return active

    def ending(self) -> Boundary:
        """The sum, whose batch norm is that of the last convolution; at stride 2 half of it has none."""
        return Boundary(inputs=(self.relu,), norm=last_norm(self.expand) if self.stride == 1 else None)


def shuffled(maps: Tensor, groups: int) -> Tensor:
    """Deal the channels of `[B, C, H, W]` out: the first of every group, then the second of every group, and so on.

    Example:
        >>> shuffled(torch.arange(6.0).view(1, 6, 1, 1), 2).flatten().tolist()
        [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    size, channels, height, width = maps.shape
    return maps.view(size, groups, channels // groups, height, width).transpose(1, 2).reshape(maps.shape)


@NETS.register("shufflenet_v2_05x")
def shufflenet_v2_05x(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ShuffleNetV2 0.5x: stages of 48, 96 and 192 channels; 0.44 M parameters at 100 classes."""
    return _shufflenet_v2((48, 96, 192), num_classes, in_channels, 3)


@NETS.register("shufflenet_v2_1x")
def shufflenet_v2_1x(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ShuffleNetV2 1x: stages of 116, 232 and 464 channels; 1.36 M parameters at 100 classes."""
    return _shufflenet_v2((116, 232, 464), num_classes, in_channels, 3)


@NETS.register("shufflenet_v2_stem1")
def shufflenet_v2_stem1(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ShuffleNetV2 1x with a 1x1 stem, as in the benchmark of CRD; 1.36 M parameters at 100 classes."""
    return _shufflenet_v2((116, 232, 464), num_classes, in_channels, 1)


@NETS.register("shufflenet_v1_stem1")
def shufflenet_v1_stem1(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """ShuffleNet 1x in three groups with a 1x1 stem, as in the benchmark of CRD; 0.95 M parameters at 100 classes."""
    widths = [240, 480, 960]
    stages, channels = list[nn.Module](), _STEM
    for width, depth in zip(widths, (4, 8, 4), strict=True):
        units = [ShuffleUnitV1(channels, width, 2), *(ShuffleUnitV1(width, width, 1) for _ in range(depth - 1))]
        stages.append(nn.Sequential(*units))
        channels = width
    return StagedNet(
        stem=nn.Sequential(*conv_norm_relu(in_channels, _STEM, 1)),
        stages=stages,
        neck=pooled(),
        head=nn.Linear(channels, num_classes),
        stage_channels=widths,
    )


def _shufflenet_v2(widths: tuple[int, ...], num_classes: int, in_channels: int, stem: int) -> StagedNet:
    stages, channels = list[nn.Module](), _STEM
    for width, depth in zip(widths, (3, 7, 3), strict=True):
        stages.append(nn.Sequential(ShuffleDownV2(channels, width), *(ShuffleUnitV2(width) for _ in range(depth))))
        channels = width
    return StagedNet(
        stem=nn.Sequential(*conv_norm_relu(in_channels, _STEM, stem)),
        stages=stages,
        neck=pooled(*conv_norm_relu(channels, _LAST, 1)),
        head=nn.Linear(_LAST, num_classes),
        stage_channels=widths,
    )


def _joined(maps: Tensor, through: Tensor) -> Tensor:
    return shuffled(torch.cat([maps.chunk(2, dim=1)[0], through], dim=1), 2)


def _separable_v2(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        *conv_norm_relu(in_channels, out_channels, 1),
        *depthwise_norm(out_channels, stride),
        *conv_norm_relu(out_channels, out_channels, 1),
    ]


def _grouped(in_channels: int, out_channels: int, groups: int) -> list[nn.Module]:
    layer = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(out_channels)]
