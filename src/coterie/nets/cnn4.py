"""Four small convolutions, for images of 8x8 pixels such as scikit-learn's digits.

`cnn4_wW` has 3x3 convolutions of W, W, 2W and 2W channels, each with batch norm and ReLU; the third halves the map.
The first is the stem, each other one a stage. Torch's default initialisation.
"""

from __future__ import annotations

from torch import nn

from coterie.nets.base import NETS, StagedNet, pooled
from coterie.nets.blocks import conv_norm_relu


@NETS.register("cnn4_w4")
def cnn4_w4(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """Width 4: about a thousand parameters, the compact network of the demonstration."""
    return _cnn4(4, num_classes, in_channels)


@NETS.register("cnn4_w6")
def cnn4_w6(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """Width 6: about two and a half thousand parameters."""
    return _cnn4(6, num_classes, in_channels)


@NETS.register("cnn4_w8")
def cnn4_w8(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """Width 8: about four thousand parameters."""
    return _cnn4(8, num_classes, in_channels)


@NETS.register("cnn4_w16")
def cnn4_w16(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """Width 16: about seventeen thousand parameters."""
    return _cnn4(16, num_classes, in_channels)


@NETS.register("cnn4_w32")
def cnn4_w32(*, num_classes: int, in_channels: int = 3, image_size: int = 32) -> StagedNet:
    """Width 32: about sixty-six thousand parameters."""
    return _cnn4(32, num_classes, in_channels)


def _cnn4(width: int, num_classes: int, in_channels: int) -> StagedNet:
    return StagedNet(
        stem=nn.Sequential(*conv_norm_relu(in_channels, width)),
        stages=[
            nn.Sequential(*conv_norm_relu(width, width)),
            nn.Sequential(*conv_norm_relu(width, 2 * width, 3, 2)),
            nn.Sequential(*conv_norm_relu(2 * width, 2 * width)),
        ],
        neck=pooled(),
        head=nn.Linear(2 * width, num_classes),
        stage_channels=[width, 2 * width, 2 * width],
    )
