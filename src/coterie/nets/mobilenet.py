"""MobileNetV2 for 32x32 images: narrow maps, wide depthwise convolutions between them.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, arXiv:1801.04381. The strides are
those of the ImageNet network, so a 32x32 image ends as 2x2 positions. All layers keep torch's default initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from coterie.nets.base import NETS, StagedNet, pooled
from coterie.nets.blocks import conv_norm, depthwise_norm
from coterie.nets.boundaries import Boundary, last_norm

_LAST = 1280
_WIDTH = 0.5
_GROUPS = (  # per stage: expansion, channels at width 1, blocks, stride of the first
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class InvertedResidual(nn.Module):
    """1x1 to a wide map, depthwise 3x3, 1x1 back; ReLU6 after the first two; the map is added where it fits.

    Args:
        in_channels: channels that go in.
        channels: channels that come out.
        stride: of the depthwise convolution.
        expansion: width between, in multiples of `in_channels`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * in_channels
        self.body = nn.Sequential(
            *conv_norm(in_channels, width, 1),
            nn.ReLU6(inplace=True),
            *depthwise_norm(width, stride),
            nn.ReLU6(inplace=True),
            *conv_norm(width, channels, 1),
        )
        self.adds = stride == 1 and in_channels == channels

    def forward(self, maps: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, channels, H/stride, W/stride]`."""
        inner: Tensor = self.body(maps)
        return inner + maps if self.adds else inner

    def ending(self) -> Boundary:
        """The block's own map: no activation follows."""
        return Boundary(norm=last_norm(self.body))


@NETS.register("mobilenet_v2_05x")
def mobilenet_v2_05x(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """MobileNetV2 of half the width, as in the benchmark of CRD; 0.81 M parameters at 100 classes."""
    stem = int(32 * _WIDTH)
    stages, widths, channels = list[nn.Module](), list[int](), stem
    for groups in _GROUPS:
        stages.append(_stage(channels, groups))
        channels = int(groups[-1][1] * _WIDTH)
        widths.append(channels)
    return StagedNet(
        stem=nn.Sequential(*conv_norm(in_channels, stem, 3, 2), nn.ReLU6(inplace=True)),
        stages=stages,
        neck=pooled(*conv_norm(channels, _LAST, 1), nn.ReLU6(inplace=True)),
        head=nn.Linear(_LAST, num_classes),
        stage_channels=widths,
    )


def _stage(channels: int, groups: Sequence[tuple[int, int, int, int]]) -> nn.Sequential:
    blocks = []
    for expansion, full, depth, stride in groups:
        width = int(full * _WIDTH)
        blocks.append(InvertedResidual(channels, width, stride, expansion))
        blocks += [InvertedResidual(width, width, 1, expansion) for _ in range(depth - 1)]
        channels = width
    return nn.Sequential(*blocks)
